"""What figures of several panels share: headings with letters, shaded rows, numbers as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import patheffects

from probe.plots.styles import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

__all__ = ["SMALLEST", "heading", "interval", "mark_point", "shade_rows", "true_minus"]

#: The smallest letters of a paper's figure, in points.
SMALLEST = 6


def heading(part: FigureBase, text: str) -> None:
    """Nothing; the part of the figure gets a bold line in its upper left corner, such as "a  More noise"."""
    literal(part.suptitle(text, x=0.005, ha="left", fontsize=8, fontweight="bold"))


def shade_rows(ax: Axes, names: Sequence[str], *, size: float = 7) -> None:
    """Nothing; the Axes then have one row a name, from the top, every other one shaded."""
    ax.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    for place in range(1, len(names), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="0.95", linewidth=0, zorder=-2)


def interval(row: Any) -> str:
    """ "0.87 [0.84, 0.89]", of a row with value, low and high."""
    numbers = (f"{row[key]:.2f}".replace("-", "\N{MINUS SIGN}") for key in ("value", "low", "high"))
    return "{} [{}, {}]".format(*numbers)


def true_minus(value: float, _: Any = None) -> str:
    """A tick's number in its shortest form, with a minus sign as long as a plus."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def mark_point(ax: Axes, point: Sequence[float], *, hit: bool = True) -> None:
    """Nothing; the Axes, which show an image in its pixels, get a cross at its pixel (row, col), or a white dot for a miss."""
    marker, size = ("x", 5.0) if hit else ("o", 4.5)
    look: dict[str, Any] = {"color": "black", "markersize": size, "markeredgewidth": 1.2, "markerfacecolor": "white"}
    # A pixel i covers [i, i + 1).
    [drawn] = ax.plot(point[1] + 0.5, point[0] + 0.5, marker, **look)
    drawn.set_path_effects([patheffects.withStroke(linewidth=2.8, foreground="white")])
