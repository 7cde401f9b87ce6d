"""The figures of a paper: scripts of a folder, each of which draws one figure from data that it saved before.

    [figure] = find_figures("figures", ["emergence"])
    files = redraw(figure, Path("figures"))

A script ``NAME.py`` is a figure if it defines ``draw(data, out)``, which gives back the paths of the PDF and the PNG that it drew
from files of the folder ``data``, at ``out`` without a suffix. It also defines ``READS``, the names of those files (a whole path
where one lies elsewhere); ``caption(data)``, the text below the figure, with its numbers read from them; and, where the data can be
made again, ``measure(data)``. Other scripts of the folder are none of ours and are not run.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from probe.errors import FileError, InputError, ProbeError, did_you_mean
from probe.writing import write_beside

__all__ = ["FigureScript", "find_figures", "load_figure", "redraw", "run_script"]

#: What a file that was drawn is, beside the file of that name that was there before.
State = Literal["same", "different", "new"]

#: Letters in a line of a caption.
LINE = 120


@dataclass(frozen=True)
class FigureScript:
    """One figure's script, which was run once to define its functions.

    Attributes
    ----------
    name : of the script, and of what it draws.
    data : the folder that its data lies in.
    reads : the files that it draws from.
    module : with ``draw``, ``caption`` and maybe ``measure``.
    """

    name: str
    data: Path
    reads: tuple[Path, ...]
    module: ModuleType

    def require_data(self) -> None:
        """Nothing; ``FileError`` if a file that the script draws from is not there."""
        for path in self.reads:
            if not path.is_file():
                cure = f"python {self.module.__file__} --measure" if hasattr(self.module, "measure") else "restore it"
                raise FileError(f"The figure {self.name!r} is drawn from {path}, which is not there; {cure} first.")

    def text(self) -> str:
        """The caption in lines, and below it what the figure is drawn from and how it is drawn again."""
        paragraphs = [
            textwrap.fill(" ".join(one.split()), LINE) for one in self.module.caption(self.data).split("\n\n")
        ]
        made = f" and measured by `python figures/{self.name}.py --measure`" if hasattr(self.module, "measure") else ""
        read = ", ".join(self._shown(path) for path in self.reads)
        # A figure that was not drawn again after its data changed can be told from its caption, whatever drew it.
        content = hashlib.sha256(b"".join(path.read_bytes() for path in self.reads)).hexdigest()[:12]
        foot = textwrap.fill(
            f"Drawn from {read} (SHA-256 {content}) by `probe figures {self.name}`{made}.", LINE, break_on_hyphens=False
        )
        return "\n\n".join([*paragraphs, foot]) + "\n"

    def _shown(self, path: Path) -> str:
        """A file's name as it stands in the source, wherever that lies."""
        if path.parent == self.data:
            return f"data/{path.name}"
        package = Path(__file__).parent
        return str(path.relative_to(package.parent)) if path.is_relative_to(package) else path.name


def find_figures(folder: str | Path, names: Sequence[str] | None = None) -> tuple[FigureScript, ...]:
    """The figures of a folder, or those of these names, in the order of the alphabet.

    Raises
    ------
    InputError
        If the folder holds no figure or none of a name, or a script cannot be run or lacks what makes it a figure.
    """
    home = Path(folder)
    known = sorted(path.stem for path in home.glob("*.py") if _draws(path))
    if not known:
        raise InputError(
            f"There are no scripts that draw figures in {str(home)!r}. They come with the source and not with the installed "
            "package: run this in a checkout, or name the folder with --scripts."
        )
    for name in names or ():
        if name not in known:
            raise InputError(f"There is no figure {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")
    return tuple(load_figure(home / f"{name}.py") for name in known if not names or name in names)


def _draws(path: Path) -> bool:
    """True if a script defines ``draw``; read, not run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path} is not Python: {error}.") from error
    return any(isinstance(one, ast.FunctionDef) and one.name == "draw" for one in tree.body)


def load_figure(script: str | Path) -> FigureScript:
    """The figure of a script, whose functions are defined by running it.

    Raises
    ------
    InputError
        If the script lacks what makes it a figure.
    """
    path = Path(script)
    spec = importlib.util.spec_from_file_location(f"{path.stem}_figure", path)
    assert spec is not None  # for the type checker: a path that ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    if lacking := [one for one in ("READS", "caption", "draw") if not hasattr(module, one)]:
        raise InputError(
            f"{path} is no figure's script: it lacks {' and '.join(lacking)} (see probe/figure_scripts.py)."
        )
    data = path.parent / "data"
    # A path that is whole stays as it is.
    return FigureScript(path.stem, data, tuple(data / one for one in module.READS), module)


def redraw(figure: FigureScript, out: Path, *, check: bool = False) -> dict[str, State]:
    """Name of each file of the figure -> whether ``out`` held the same bytes before.

    The files are PDF, PNG, caption and, where ``out`` is not the folder of the scripts, copies of the data. They are written once
    all of them are made; with ``check`` none is written.

    Raises
    ------
    FileError
        If data is missing or cannot be drawn from, or a file not be written.
    """
    figure.require_data()
    with tempfile.TemporaryDirectory(prefix="probe-figures-") as folder:
        made = Path(folder)
        try:
            drawn = figure.module.draw(figure.data, made / figure.name)
            text = figure.text()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise FileError(f"The figure {figure.name!r} cannot be drawn from its data ({reason}).") from error
        (made / f"{figure.name}.txt").write_text(text, encoding="utf-8")
        new = {path.name: path for path in (*drawn, made / f"{figure.name}.txt")}
        if out.resolve() != figure.data.parent.resolve():
            new |= {f"data/{path.name}": path for path in figure.reads}
        states = {name: _state(path, out / name) for name, path in new.items()}
        for name, path in new.items():
            if not check and states[name] != "same":
                write_beside(out / name, _copying(path))
    return states


def _state(made: Path, before: Path) -> State:
    if not before.is_file():
        return "new"
    return "same" if made.read_bytes() == before.read_bytes() else "different"


def _copying(path: Path) -> Callable[[Path], Any]:
    return lambda beside: shutil.copyfile(path, beside)


def run_script(script: str) -> None:
    """Draws a script's figure beside it, as ``python figures/NAME.py`` does; with ``--measure`` its data is made again first."""
    figure = load_figure(script)
    parser = argparse.ArgumentParser(
        description=figure.module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if hasattr(figure.module, "measure"):
        parser.add_argument(
            "--measure", action="store_true", help="make the data again first, with the models themselves"
        )
    try:
        if vars(parser.parse_args()).get("measure"):
            figure.data.mkdir(parents=True, exist_ok=True)
            figure.module.measure(figure.data)
        for name, state in redraw(figure, Path(script).parent).items():
            print(f"{state:<10} {name}")
    except ProbeError as error:
        sys.exit(f"{Path(script).name}: {error}")
