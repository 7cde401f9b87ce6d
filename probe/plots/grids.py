"""How well each head and layer localises: a grid of all heads, and the readings of the table with their controls."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.errors import InputError
from probe.plots.maps import NO_TEXT
from probe.plots.styles import DOUBLE_COLUMN, OKABE_ITO, SINGLE_COLUMN, checked_limits, literal, points, style, wrapped
from probe.plots.tables import Row, ScoreTable, layer_numbers, score_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from probe.analysis.heads import HeadScores

__all__ = ["heads", "readings", "text_colour"]

#: Smallest letters that are written into a cell, in points; where they do not fit, colour alone is drawn.
SMALLEST = 4.0
#: So many of the highest heads are outlined where no numbers fit.
OUTLINED = 10


@style()
def heads(
    scores: HeadScores | Any,
    *,
    metric: str | None = None,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    intervals: bool = True,
) -> Axes:
    """The Axes with one cell for each layer (row) and head (col), coloured by how well it localises.

        probe.plots.heads(scores, metric="pointing")

    Values are written into the cells, and their intervals below, where they fit; in larger grids the ten highest cells are
    outlined instead.

    Parameters
    ----------
    scores : a ``HeadScores``, or its table (``to_frame()``) as it was saved.
    metric : which of its metrics; by default the first.
    ax : where to draw; by default a new figure.
    limits : (low, high) of the colour scale, to share it between pictures; by default all values and chance.
    intervals : whether intervals are written too.

    Raises
    ------
    InputError
        If the scores have no such metric, no head was scored, or the limits cannot be used.
    """
    table = score_table(scores, metric)
    if not np.isfinite(table.value).any():
        raise InputError(f"These scores hold no value of {table.metric!r} for any head; nothing can be drawn.")
    low, high = _limits(table, limits)
    if ax is None:
        ax = _new_axes(table)
    count, width = table.value.shape
    ax.set_facecolor("0.93")  # where a layer has fewer heads, or none has a value
    drawn = ax.imshow(np.ma.masked_invalid(table.value), norm=Normalize(low, high), aspect="auto")
    read = f" ({table.reading})" if table.reading else ""
    title = [f"{table.metric}{read}: {table.counts}"]
    if _write(ax, table, drawn, intervals=intervals):
        ax.hlines(np.arange(1, count) - 0.5, -0.5, width - 0.5, color="white", linewidth=0.8)
        ax.vlines(np.arange(1, width) - 0.5, -0.5, count - 0.5, color="white", linewidth=0.8)
    else:
        title += [f"outlined: {_outline_top(ax, table)} highest on these images"]
    if table.quantity == "contribution":
        title += [NO_TEXT]
    letters = max(int((_room(ax) + 30) / 4.4), 12)
    literal(ax.set_title("\n".join(textwrap.fill(one, letters) for one in title), fontsize=8))
    literal(ax.set_xlabel("head", fontsize=8))
    literal(ax.set_ylabel("layer", fontsize=8))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=7)
    for axis, numbers in ((ax.xaxis, table.heads), (ax.yaxis, table.layers)):
        labelled = range(0, len(numbers), -(-len(numbers) // 16))
        axis.set_ticks(list(labelled), [str(numbers[place]) for place in labelled])
    _bar(ax, drawn, table)
    return ax


def _fitted(ax: Axes, text: str) -> str:
    """The text in lines that fit over the Axes: a letter of 8 points is about 4.6 points wide."""
    return textwrap.fill(text, max(int(points(ax, "width") / 4.6), 12))


def _limits(table: ScoreTable, limits: tuple[float, float] | None) -> tuple[float, float]:
    if limits is None:
        known = [*table.value[np.isfinite(table.value)], *([] if table.chance is None else [table.chance])]
        low, high = float(min(known)), float(max(known))
        return (low, high) if low < high else (low - 0.5, high + 0.5)
    return checked_limits(limits)


def _new_axes(table: ScoreTable) -> Axes:
    rows, cols = table.value.shape
    written = max(rows, cols) <= 16  # more numbers than that nobody reads
    width = DOUBLE_COLUMN if written and cols > 4 else SINGLE_COLUMN
    height = min(max(0.34 * rows + 0.75, 1.4), 4.0) if written else 2.9
    return plt.figure(figsize=(width, height)).add_subplot()


def _write(ax: Axes, table: ScoreTable, drawn: AxesImage, *, intervals: bool) -> bool:
    """True if values were written into the cells, which they are if letters of SMALLEST points fit."""
    rows, cols = table.value.shape
    cell_height, cell_width = points(ax, "height") / rows, _room(ax) / cols
    size = min(7.5, cell_width / (4 * 0.68), cell_height / 1.3)
    if size < SMALLEST:
        return False
    small = min(4.6, cell_width / (9 * 0.62), cell_height / 3.0)
    intervals = intervals and small >= SMALLEST and bool(np.isfinite(table.low).any())
    for row, col in zip(*np.nonzero(np.isfinite(table.value)), strict=True):
        value, low, high = (float(one[row, col]) for one in (table.value, table.low, table.high))
        colour = text_colour(drawn.cmap(drawn.norm(np.asarray(value))))
        look: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "parse_math": False}
        paired = intervals and np.isfinite([low, high]).all()
        ax.text(col, row - 0.14 * paired, f"{value:.2f}", fontsize=size, **look)
        if paired:
            ax.text(col, row + 0.24, f"{low:.2f}–{high:.2f}", fontsize=small, **look)
    return True


def _room(ax: Axes) -> float:
    """Points that the cells will have side by side: the colour bar takes about an eighth of the width, and 95 points in all with
    the numbers and names on both sides, of which Axes that are not laid out yet leave free about a quarter of their place."""
    width = points(ax, "width")
    return min(0.88 * width, width / 0.775 - 95)


def text_colour(colour: Any) -> str:
    """Black or white, whichever stands out more from a colour (WCAG relative luminance)."""
    parts = np.asarray(colour[:3], dtype=np.float64)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def _outline_top(ax: Axes, table: ScoreTable) -> int:
    """How many of the highest cells were outlined, white within black."""
    flat = np.where(np.isfinite(table.value), table.value, -np.inf).ravel()
    count = min(OUTLINED, int(np.isfinite(table.value).sum()))
    for index in np.argsort(-flat, kind="stable")[:count]:
        row, col = divmod(int(index), table.value.shape[1])
        box = Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=0.7, zorder=3)
        box.set_path_effects([patheffects.withStroke(linewidth=1.7, foreground="black")])
        ax.add_patch(box)
    return count


def _bar(ax: Axes, drawn: AxesImage, table: ScoreTable) -> None:
    low, high = drawn.get_clim()
    values = table.value[np.isfinite(table.value)]
    under, over = values.min() < low, values.max() > high
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((under, over), "neither")
    bar = ax.figure.colorbar(
        drawn, ax=ax, extend=extend, aspect=16, pad=0.03, ticks=MaxNLocator(5, steps=[1, 2, 5, 10])
    )
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=7)
    label = table.metric
    if table.chance is not None:
        inside = low <= table.chance <= high
        label += f"; {'triangle: chance' if inside else 'chance, off this scale'}, {table.chance:.2f}"
        if inside:
            beside = bar.ax.get_yaxis_transform()
            bar.ax.plot(-0.35, table.chance, ">", color="black", markersize=4, transform=beside, clip_on=False)
    label = "\n".join(wrapped(label, points(ax, "height")))
    bar.set_label(label, fontsize=7, parse_math=False)


@style()
def readings(scores: HeadScores | Any, *, metric: str | None = None, ax: Axes | None = None) -> Axes:
    """The Axes with every reading, control and layer of a table: its value and interval, drawn and written.

        probe.plots.readings(scores, metric="pointing")

    Parameters
    ----------
    scores : a ``HeadScores``, or its table (``to_frame()``) as it was saved. Rows that rest on fewer images than the others, such
        as what was chosen on one half and is reported on the other, are marked.
    metric : which of its metrics; by default the first.
    ax : where to draw; by default a new figure, one column wide.

    Raises
    ------
    InputError
        If the scores have no such metric, or hold single heads alone.
    """
    table = score_table(scores, metric)
    if not table.rows:
        raise InputError(f"These scores of {table.metric!r} hold single heads alone; draw them with probe.plots.heads.")
    kinds = sorted(
        dict.fromkeys(row.kind for row in table.rows), key=lambda kind: kind == "control"
    )  # what they are held to
    rows = [row for kind in kinds for row in table.rows if row.kind == kind]
    # Half a line stays free between kinds.
    places = np.arange(len(rows)) + np.array([0.5 * kinds.index(row.kind) for row in rows])
    if ax is None:
        ax = plt.figure(figsize=(SINGLE_COLUMN, 0.75 + 0.16 * float(places[-1] + 1))).add_subplot()
    for number, kind in enumerate(kinds):
        _intervals(ax, [(place, row) for place, row in zip(places, rows, strict=True) if row.kind == kind], number)
    if table.chance is not None:
        ax.axvline(table.chance, color="0.4", linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
    ax.set_ylim(float(places[-1]) + 0.7, -0.7)
    ax.set_yticks(places, _names(rows), parse_math=False)
    edges = [one for row in rows for one in (row.value, row.low, row.high) if np.isfinite(one)]
    low, high = min([0.0, *edges]), max([0.0, *edges])
    ax.set_xlim(low - 0.03 * (high - low), high + 0.05 * (high - low) or 1.0)
    fewer = sorted({row.images for row in rows} - {max(row.images for row in rows)}, reverse=True)
    label = table.metric + (" (dashed: chance)" if table.chance is not None else "")
    label += f"\n* on {' or '.join(f'{count:,}' for count in fewer)} images" if fewer else ""
    literal(ax.set_xlabel(label, fontsize=8))
    note = f"\n{_fitted(ax, NO_TEXT)}" if table.quantity == "contribution" else ""
    title = f"{table.metric}: {table.counts}{note}"
    literal(ax.set_title(title, fontsize=8))
    ax.tick_params(axis="y", length=0, labelsize=7)
    ax.spines["left"].set_visible(False)
    return ax


def _names(rows: list[Row]) -> list[str]:
    """What the rows are called: words for names, "layer 3" for the path of a module, "*" after those of fewer images."""
    layers = [row.name for row in rows if row.kind == "layer"]
    numbered = dict(zip(layers, layer_numbers(tuple(layers)), strict=True))
    most = max(row.images for row in rows)
    return [
        (f"layer {numbered[row.name]}" if row.kind == "layer" else row.name.replace("_", " "))
        + "*" * (row.images < most)
        for row in rows
    ]


def _intervals(ax: Axes, rows: list[tuple[float, Row]], number: int) -> None:
    """Draws rows of one kind in its own colour and marker, and writes the numbers to the right of the Axes."""
    colour, marker = OKABE_ITO[number % 7], "osD^vPX"[number % 7]
    for place, row in rows:
        if np.isfinite([row.low, row.high]).all():
            ax.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        ax.plot(row.value, place, marker=marker, color=colour, markersize=3.5, markeredgewidth=0)
        beside = ax.get_yaxis_transform()
        ax.text(
            1.02, place, row.text, transform=beside, va="center_baseline", ha="left", fontsize=6.5, parse_math=False
        )
