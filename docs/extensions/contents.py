"""What the generated parts of the documentation say, as Markdown; needs no Sphinx."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import probe

FIGURES = Path(__file__).parents[2] / "figures"
#: Columns of a help text: what a page holds without scrolling.
WIDTH = "96"

IMAGE_TOKENS = {
    "placeholder": "one placeholder a patch",
    "grid_thw": "a grid of the picture's own size",
    "anyres": "thumbnail, then tiles put together",
    "tiles": "tile by tile, thumbnail behind them",
    "cross-attention": "keys of layers of their own",
    "none": "no sequence shared with text",
}


def family_table() -> str:
    """A row for each of ``probe.families.FAMILIES``, in its order, under a heading for each kind of model."""
    from probe.families import FAMILIES

    about = _family_modules()
    parts = []
    for kind in dict.fromkeys(one.kind for one in FAMILIES):
        rows = ["| family | model classes | how patches reach it | image processors |", "|---|---|---|---|"]
        for one in (one for one in FAMILIES if one.kind == kind):
            classes = "<br>".join(f"`{name}`" for name in one.models)
            processors = "<br>".join(f"`{name}`" for name in one.image_processors) or "the pipeline's own"
            reach = IMAGE_TOKENS[one.image_tokens]
            rows.append(f"| **{one.name}**<br>{about[one.name]} | {classes} | {reach} | {processors} |")
        parts.append(f"## {kind[0].upper()}{kind[1:]}s\n\n" + "\n".join(rows))
    return "\n\n".join(parts).replace("## Diffusions", "## Diffusion pipelines")


def _family_modules() -> dict[str, str]:
    """Name of a family -> what the file that declares it says of it."""
    import probe.families
    from probe.families import Family

    found = {}
    for _, module in _modules("probe.families")[1:]:  # not the package itself, which lists them all
        for one in vars(module).values():
            if isinstance(one, Family):
                found.setdefault(one.name, _summary(module))
    return found


def metric_table() -> str:
    """A row for each of ``probe.analysis.METRICS``: its range, chance, and what leaves it as it is."""
    from probe.analysis.metrics import METRICS

    yes = {True: "yes", False: "no"}
    rows = ["| metric | range | of a uniform map | unchanged by a factor | unchanged by an offset |", "|---|---|---|---|---|"]
    for one in METRICS.values():
        low, high = (f"{end:g}".replace("inf", "∞") for end in one.range)
        even = "depends on the mask" if one.chance is None else f"{one.chance:g}"
        kept = f"{yes[one.scale_invariant]} | {yes[one.offset_invariant]}"
        rows.append(f"| `{one.name}` | {low} to {high} | {even} | {kept} |")
    return "\n".join(rows)


def command_help(path: str) -> str:
    """What ``probe PATH --help`` prints, as a block."""
    from probe.cli import main

    printed = io.StringIO()
    arguments = [*path.split(), "--help"]
    with patch.dict(os.environ, COLUMNS=WIDTH), patch.object(sys, "argv", ["probe", *arguments]):
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main(arguments)
    return f"```text\n$ probe {path} --help\n{printed.getvalue().rstrip()}\n```"


def gallery() -> str:
    """Every picture in ``figures/``, with what its script says of it, or the caption that lies beside it."""
    parts = []
    for picture in sorted(FIGURES.glob("*.png")):
        parts.append(
            f"## {picture.stem.capitalize()}\n\n![{picture.stem}](../figures/{picture.name})\n\n{caption(picture)}\n"
        )
    return "\n".join(parts)


def caption(picture: Path) -> str:
    """The caption file beside a picture; where there is none, what the first paragraphs of its script say, and how to redraw it."""
    for ending in (".md", ".txt"):
        if (beside := picture.with_suffix(ending)).is_file():
            return beside.read_text(encoding="utf-8").strip()
    script = picture.with_suffix(".py").read_text(encoding="utf-8")
    text = re.match(r'"""(.*?)"""', script, flags=re.DOTALL)
    if text is None:
        raise ValueError(f"{picture.with_suffix('.py')} says nothing of what it draws; begin it with a docstring.")
    return text[1].strip().replace("``", "`")


def public_names() -> str:
    """A table of the public names, each with the first line of its docstring and a link to its entry."""
    rows = ["| name | what it is |", "|---|---|"]
    for name in sorted(probe._PUBLIC, key=str.casefold):
        rows.append(f"| {{py:obj}}`probe.{name}` | {_summary(getattr(probe, name))} |")
    return "\n".join(rows)


def public_entries(names: str) -> str:
    """The entries of these public names, as ``probe`` exports them."""
    return _eval_rst("\n".join(_entry(f"probe.{name}", getattr(probe, name)) for name in names.split()))


def module_entries(room: str) -> str:
    """A section for each module of a package, or for one module, with the entries of its ``__all__``.

    What is public in ``probe`` itself stands under its public name alone, and what another module defines stands there.
    """
    parts = []
    for name, module in _modules(room):
        own = [one for one in getattr(module, "__all__", ()) if _belongs(module, one)]
        if not own:
            continue
        entries = "\n".join(_entry(f"{name}.{one}", getattr(module, one)) for one in own)
        about = (module.__doc__ or "").strip().split("\n\n")[0]
        parts.append(f"## {name}\n\n" + _eval_rst(f"{about}\n\n.. py:module:: {name}\n\n{entries}"))
    return "\n\n".join(parts)


def _modules(room: str) -> list[tuple[str, ModuleType]]:
    """Names and modules of a package, or of one module."""
    outer = importlib.import_module(room)
    inner = [one.name for one in pkgutil.iter_modules(getattr(outer, "__path__", []), f"{room}.")]
    return [(name, importlib.import_module(name)) for name in [room, *sorted(inner)]]


def _belongs(module: ModuleType, name: str) -> bool:
    """True if a name is documented with this module: a class or function that it defines, and no public name of ``probe``."""
    thing = getattr(module, name)
    return callable(thing) and getattr(thing, "__module__", "") == module.__name__ and name not in probe._PUBLIC


def _entry(path: str, thing: Any) -> str:
    if isinstance(thing, type) and issubclass(thing, Exception):
        return f".. autoexception:: {path}\n"
    if isinstance(thing, type):
        return f".. autoclass:: {path}\n   :members:\n"
    return f".. autofunction:: {path}\n"


def _eval_rst(text: str) -> str:
    return f"````{{eval-rst}}\n{text}\n````"


def _summary(thing: Any) -> str:
    """The first paragraph of a docstring, as one line of a Markdown table."""
    paragraph = (thing.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|").replace("``", "`")
