"""``probe figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probe.commands.arguments import OptionalWords
from probe.reports import Report, make_table, output_folder, progress

__all__ = ["figures"]


def figures(
    names: OptionalWords,
    *,
    scripts: str = "figures",
    out: str | None = None,
    check: bool = False,
) -> Report:
    """Draw the paper's figures again from saved tables and records, to the same bytes; no model is needed.

    Of each figure these are written: a PDF and a PNG, its caption as text and, into another folder than that of the scripts, the
    data that it is drawn from.

    Parameters
    ----------
    names
        Which ones, such as emergence; by default all.
    scripts
        Folder of the scripts, which are run; they come with the source, not with the installed package.
    out
        Folder to write into; by default that of the scripts.
    check
        Write nothing, and exit with code 1 if a file is not there or has other bytes. Other versions of matplotlib may draw
        other bytes of the same picture.
    """
    from probe.figure_scripts import find_figures, redraw

    target = output_folder(out or scripts)
    chosen, found = find_figures(scripts, names), {}
    with progress("drawing", len(chosen)) as tell:
        for number, figure in enumerate(chosen):
            tell(number, f"drawing {figure.name}")
            found[figure.name] = redraw(figure, target, check=check)
    wrong = sum(state != "same" for files in found.values() for state in files.values())
    data: dict[str, Any] = {"out": str(target), "figures": [_row(name, files) for name, files in found.items()]}
    if check:
        data["passed"] = not wrong
    return Report(data, _parts(found, target, check), 1 if check and wrong else 0)


def _row(name: str, files: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "files": [{"name": file, "state": state} for file, state in files.items()]}


def _parts(found: dict[str, dict[str, Any]], target: Path, check: bool) -> list[Any]:
    """A table with a row for each figure: its pictures and caption by their state, and how many files of data stand beside them."""
    table = make_table(f"figures in {target}, beside what was there before", "figure", "PDF", "PNG", "caption", "data")
    for name, files in found.items():
        states = [files[f"{name}{suffix}"] for suffix in (".pdf", ".png", ".txt")]
        copies = [state for file, state in files.items() if file.startswith("data/")]
        worst = next((one for one in ("different", "new") if one in copies), "same")
        table.add_row(name, *states, f"{len(copies)}, {worst}" if copies else "in place")
    wrong = [name for name, files in found.items() if set(files.values()) != {"same"}]
    if not check:
        return [table]
    return [
        table,
        f"not as drawn now: {', '.join(wrong)}" if wrong else "all files are what is drawn now, byte for byte",
    ]
