"""The one paper style, and saving that gives the same bytes on every run."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from probe.errors import FileError, InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = [
    "DOUBLE_COLUMN",
    "MARGIN",
    "OKABE_ITO",
    "SINGLE_COLUMN",
    "STYLE",
    "checked_limits",
    "ends",
    "literal",
    "new_figure",
    "one_line",
    "points",
    "save_figure",
    "style",
    "trim",
    "wrapped",
]

#: Widths in inches of one and of both columns of a two-column paper.
SINGLE_COLUMN, DOUBLE_COLUMN = 3.35, 6.9

#: Above and below what a figure shows, in inches: a little more than the layout itself keeps free.
MARGIN = 0.1

#: Eight colours that stay apart under every common colour-vision deficiency (Okabe and Ito, 2008); black comes last, since
#: outlines, text and chance lines are black already.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

#: What is different from matplotlib's own defaults.
STYLE: dict[Any, Any] = {
    "figure.figsize": (SINGLE_COLUMN, 2.4),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    # The font that comes with matplotlib: any other would make pictures differ between machines.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=OKABE_ITO),
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "image.cmap": "viridis",
    # Type 42 keeps text as text: Type 3 fonts are refused by many venues.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    # Without a salt every SVG has ids of its own.
    "svg.hashsalt": "groundprobe",
}


@contextmanager
def style() -> Iterator[None]:
    """A context, and a decorator, in which pictures are drawn in the paper style whatever the session's own settings.

        with probe.plots.style():
            figure, ax = plt.subplots()

        @probe.plots.style()
        def draw(): ...

    Saving reads settings too, such as the font type; ``save_figure`` enters the style by itself.
    """
    with matplotlib.rc_context():
        matplotlib.style.use("default")
        matplotlib.rcParams.update(STYLE)
        yield


@style()
def new_figure(size: tuple[float, float] = (2.4, SINGLE_COLUMN)) -> Figure:
    """An empty figure of (height, width) inches in the paper style, for pictures that go to files.

    It is unknown to pyplot: it needs no closing and never appears on a screen by itself. Add its Axes within ``style()``.
    """
    height, width = size
    return Figure(figsize=(width, height), layout="constrained")


@style()
def save_figure(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The paths of the PDF and the PNG (300 dots an inch) that were written: the same bytes on every run.

    Parameters
    ----------
    figure : its layout is made at the first save and kept, so that both files show the same.
    path : where to write, without a suffix; missing folders are made.

    Raises
    ------
    FileError
        If a file cannot be written; nothing half-written is left behind, and older files stay as they were.
    """
    # Dates and versions would make every run's file another one.
    empty: dict[str, dict[str, Any]] = {
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".png": {"Software": None},
    }
    base = Path(path)
    final = {suffix: base.with_name(base.name + suffix) for suffix in empty}
    beside = {suffix: base.with_name(f".{base.name}.{os.getpid()}{suffix}") for suffix in empty}
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        _settle(figure)
        for suffix, metadata in empty.items():
            figure.savefig(beside[suffix], metadata=metadata)
        for suffix in empty:
            os.replace(beside[suffix], final[suffix])
    except OSError as error:
        raise FileError(f"The figure {str(base)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        for leftover in beside.values():
            with suppress(OSError):
                leftover.unlink(missing_ok=True)
    return final[".pdf"], final[".png"]


def _settle(figure: Figure) -> None:
    """Makes the figure's layout once and for all: made anew for each file, it would move a little every time."""
    engine = figure.get_layout_engine()
    if engine is None or isinstance(engine, PlaceHolderLayoutEngine):
        return
    for _ in range(2):  # ticks and Axes of a fixed shape settle in the second pass
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # The layout's solver differs in the last bit from run to run, which is enough to shade a pixel otherwise.
    parts = [*figure.subfigs]
    for part in parts:  # grows by the parts of parts
        parts += part.subfigs
        part.bbox_relative.set_points(
            np.round(part.bbox_relative.get_points(), 12) + 0.0
        )  # + 0.0: -0 is printed otherwise
    for ax in figure.axes:
        ax.set_position(np.round(ax.get_position(original=True).bounds, 12) + 0.0)


def trim(ax: Axes) -> None:
    """Takes from the figure the height that Axes of a fixed shape do not use, which can only be guessed before it is laid out."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # for the type checker
    for _ in range(2):  # a lower figure is laid out a little differently
        figure.draw_without_rendering()
        figure.set_figheight(min(figure.get_tightbbox().height + MARGIN, figure.get_figheight()))


def one_line(text: str) -> str:
    """The text with every run of white space as one blank, since a line break in a title moves the whole picture."""
    return " ".join(text.split())


def wrapped(text: str, room: float) -> list[str]:
    """Lines of small letters (7 points) no longer than ``room`` in points, broken at a semicolon before anywhere else."""
    letters = max(int(room / 3.6), 12)  # such a letter is about 3.6 points wide
    lines: list[str] = []
    for part in re.split(r"(?<=;) ", text):
        if lines and len(lines[-1]) + 1 + len(part) <= letters:
            lines[-1] += f" {part}"
        else:
            lines += textwrap.wrap(part, letters)
    return lines


def literal(text: Text) -> Text:
    """The same text object, printing its characters as they are: words come from data, and "$x^2$" is no formula."""
    text.set_parse_math(False)
    return text


def points(ax: Axes, side: Literal["height", "width"]) -> float:
    """The Axes' height or width in points, as far as it is known before the layout is made."""
    return getattr(ax.get_window_extent(), side) / ax.figure.dpi * 72


def checked_limits(limits: tuple[float, float]) -> tuple[float, float]:
    """The (low, high) of a colour scale.

    Raises
    ------
    InputError
        If they are not two finite numbers in this order.
    """
    try:
        low, high = map(float, limits)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"limits must be two finite numbers (low, high) with low < high, found {limits!r}.")
    return low, high


def ends(under: bool, over: bool) -> Literal["both", "min", "max", "neither"]:
    """At which ends a colour bar gets an arrow: values lie under or over its scale."""
    if under and over:
        return "both"
    return "min" if under else "max" if over else "neither"
