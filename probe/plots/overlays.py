"""Where a phrase looks: its map on the image, with the outline of the true mask."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.layout import PatchGrid
from probe.plots.maps import PhraseMap, Picture, Reading, mask_pixels, muted_pixels, phrase_map
from probe.plots.styles import (
    DOUBLE_COLUMN,
    SINGLE_COLUMN,
    checked_limits,
    ends,
    literal,
    one_line,
    points,
    style,
    trim,
    wrapped,
)
from probe.text import find_phrase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["draw_map", "hatch_unseen", "map_limits", "overlay", "overlay_axes", "phrases", "see_through", "shared_bar"]

#: The map is opaque up to OPAQUE, from this share of the scale on; below, transparency follows the value.
OPAQUE, KNEE = 0.85, 0.5


@style()
def overlay(
    record: AttentionRecord,
    image: Picture,
    *,
    mask: Any = None,
    reading: Reading = "minus mean",
    view: str | None = None,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    smooth: bool = True,
    colorbar: bool = True,
    title: str | None = None,
) -> Axes:
    """The Axes with a record's map on its image: mean over layers, heads, timesteps and tokens.

        probe.plots.overlay(run.record["red circle"], "photo.jpg", mask=mask)

    Parameters
    ----------
    record : the phrase's part of a record, or any other selection.
    image : the image that was recorded: a path, a PIL image or an array.
    mask : (height, width), the true mask in the image's pixels; drawn as an outline.
    reading : "minus mean" subtracts the mean over the whole answer first (Eq. 3); "attention" does not.
    view : which view of the image, where the record has several.
    ax : where to draw; by default a new figure, one column wide.
    limits : (low, high) of the colour scale, to share it between pictures; by default 0 to the largest patch. What lies
        below is not drawn: with "minus mean", where the phrase looks less than the average token does. Contributions are drawn
        in two colours on both sides of zero, which is the middle of the scale.
    smooth : upsample bicubically, as in ``record.heatmap``; False shows the patches themselves.
    colorbar : whether to draw the bar that names quantity, reading and scale.
    title : the phrase, by default.

    Raises
    ------
    InputError
        If the image or mask is not of the record's size, or a reading, view or limit cannot be used.
    """
    found = phrase_map(record, reading=reading, view=view)
    pixels = muted_pixels(image, record.image_size)
    shape = None if mask is None else mask_pixels(mask, record.image_size)
    scale = map_limits(limits, [found])
    own = ax is None
    if ax is None:
        ax = overlay_axes(1, record.image_size, below=_wide(record.image_size))[0]
    notes = draw_map(ax, found, pixels, shape, scale, smooth=smooth, title=title)
    literal(ax.set_xlabel("\n".join(notes), fontsize=6, color="0.3"))
    if colorbar:
        shared_bar([ax], scale, [found], pixels, location="bottom" if _wide(record.image_size) else "right")
    if own:
        trim(ax)
    return ax


@style()
def phrases(
    record: AttentionRecord,
    wanted: Sequence[str | tuple[str, int]],
    image: Picture,
    *,
    masks: Sequence[Any] | None = None,
    reading: Reading = "minus mean",
    view: str | None = None,
    axes: Sequence[Axes] | None = None,
    limits: tuple[float, float] | None = None,
    smooth: bool = True,
) -> list[Axes]:
    """The Axes of overlays side by side, one for each phrase, with one colour scale and one colour bar for all.

        probe.plots.phrases(run.record, ["red circle", ("square", 1)], "photo.jpg", masks=[first, second])

    Parameters
    ----------
    wanted : phrases, each as in ``record[phrase]``.
    masks : for each phrase its true mask, or None.
    axes : where to draw, one for each phrase; by default a new figure, with rows of at most four.
    limits : (low, high) of the common scale; by default 0 to the largest patch of all phrases.

    The other parameters are those of ``overlay``.

    Raises
    ------
    InputError
        If a phrase is not in the answer, the numbers of phrases, masks and Axes differ, or as in ``overlay``.
    """
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    given = [None] * len(wanted) if masks is None else list(masks)
    _require_as_many(wanted, masks=given, axes=wanted if axes is None else axes)
    found = [phrase_map(record[one], reading=reading, view=view) for one in wanted]
    pixels = muted_pixels(image, record.image_size)
    shapes = [None if one is None else mask_pixels(one, record.image_size) for one in given]
    scale = map_limits(limits, found)
    drawn = overlay_axes(len(wanted), record.image_size) if axes is None else list(axes)
    notes: dict[str, None] = {}
    for ax, one, shape, asked in zip(drawn, found, shapes, wanted, strict=True):
        title = one.phrase + _which_time(record.text, asked)
        notes.update(dict.fromkeys(draw_map(ax, one, pixels, shape, scale, smooth=smooth, title=title)))
    shared_bar(drawn, scale, found, pixels, location="bottom", notes=tuple(notes))
    if axes is None:
        trim(drawn[0])
    return drawn


def _which_time(text: str, wanted: str | tuple[str, int]) -> str:
    """ ", 2nd time" where words are said several times, since the pictures of all of them have the same title; else nothing."""
    words, number = (wanted, 0) if isinstance(wanted, str) else wanted
    count = len(find_phrase(text, words))
    if count < 2:
        return ""
    place = number % count + 1  # -1 is the last time
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f", {place}{ending} time"


def _require_as_many(wanted: Sequence[Any], **given: Sequence[Any]) -> None:
    if not wanted:
        raise InputError("No phrase was given; name at least one, for instance phrases(record, ['red circle'], image).")
    for name, found in given.items():
        if len(found) != len(wanted):
            raise InputError(f"{len(wanted)} phrases need as many {name}, found {len(found)}; None stands for no mask.")


def _wide(image_size: tuple[int, int]) -> bool:
    """True where a colour bar to the right would be too short for its label."""
    return image_size[1] > 1.15 * image_size[0]


def overlay_axes(count: int, image_size: tuple[int, int], *, below: bool = True) -> list[Axes]:
    """Axes of a new figure for so many overlays, in rows of at most four, with room for a colour bar below or to the right."""
    rows = -(-count // 4)
    cols = -(-count // rows)  # five are three and two, not four and one
    width = min(DOUBLE_COLUMN, max(2.3 * cols, SINGLE_COLUMN))
    # A bar to the right takes of the width.
    height = (width if below else 2.3) / cols * image_size[0] / image_size[1] + 0.35
    figure = plt.figure(figsize=(width, min(rows * height + (1.0 if below else 0.2), 9.0)))
    axes = list(figure.subplots(rows, cols, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return axes[:count]


def map_limits(limits: tuple[float, float] | None, maps: Sequence[PhraseMap]) -> tuple[float, float]:
    """0 to the largest patch; where maps are signed, as far below zero as above, so that zero is in the middle."""
    if limits is not None:
        return checked_limits(limits)
    top = max(one.top for one in maps)
    if any(one.signed for one in maps):
        top = max(top, *(-one.bottom for one in maps))
        return (-top, top) if top > 0 else (-1.0, 1.0)
    return 0.0, top if top > 0 else 1.0  # nothing above zero: an empty picture, whatever the scale


def draw_map(
    ax: Axes,
    found: PhraseMap,
    pixels: NDArray[np.float64],
    mask: NDArray[np.float64] | None,
    scale: tuple[float, float],
    *,
    smooth: bool,
    title: str | None,
) -> list[str]:
    """Notes on what was drawn beside the map; one overlay without its colour bar."""
    height, width = found.grid.image_size
    extent = (0, width, height, 0)  # pixel i covers [i, i + 1), as in PatchGrid
    ax.imshow(pixels, extent=extent)
    drawn = found.pixels(pixels.shape[:2], smooth=smooth)
    ax.imshow(np.ma.masked_invalid(drawn), norm=Normalize(*scale), cmap=see_through(found.signed), extent=extent)
    notes = []
    if mask is not None and mask.any():
        _outline(ax, mask, (height, width))
        notes.append("outline: true mask")
    if hatch_unseen(ax, found.grid):
        notes.append("hatched: cropped away, unseen")
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.6")
    # A letter of 8 points is about 4.6 points wide, and the layout will make the Axes somewhat wider than they are now.
    words = textwrap.fill(found.phrase if title is None else one_line(title), max(int(points(ax, "width") / 4.0), 12))
    literal(ax.set_title(words, fontsize=8))
    return notes


def _outline(ax: Axes, mask: NDArray[np.float64], image_size: tuple[int, int]) -> None:
    """The mask's outline, white within black: visible on light and on dark."""
    # One pixel of nothing all round closes the outline where the mask touches the border.
    rows, cols = (
        (np.arange(count + 2) - 0.5) * length / count for count, length in zip(mask.shape, image_size, strict=True)
    )
    drawn = ax.contour(cols, rows, np.pad(mask, 1), levels=[0.5], colors="white", linewidths=0.9)
    drawn.set_path_effects([patheffects.withStroke(linewidth=2.1, foreground="black")])


def hatch_unseen(ax: Axes, grid: PatchGrid) -> bool:
    """True if part of the image was cropped away; that part is greyed out and hatched."""
    height, width = grid.image_size
    top, bottom = max(grid.row_edges[0], 0), min(grid.row_edges[-1], height)
    left, right = max(grid.col_edges[0], 0), min(grid.col_edges[-1], width)
    bands = [
        (0, 0, top, width),
        (bottom, 0, height, width),
        (top, 0, bottom, left),
        (top, right, bottom, width),
    ]
    # Rounding in the processor leaves slivers of less than a pixel, which are no crop.
    bands = [one for one in bands if min(one[2] - one[0], one[3] - one[1]) >= 0.5]
    for low_row, low_col, high_row, high_col in bands:
        size = high_col - low_col, high_row - low_row
        band = Rectangle((low_col, low_row), *size, facecolor=(0.85, 0.85, 0.85, 0.7), edgecolor="0.5")
        band.set(linewidth=0, hatch="/////")
        ax.add_patch(band)
    return bool(bands)


def see_through(signed: bool) -> Colormap:
    """Light to dark, from nothing at the lower limit to nearly opaque; signed, from nothing in the middle to both ends."""
    level = np.linspace(-1 if signed else 0, 1, 257 if signed else 256)
    colours = colormaps["PuOr_r"]((level + 1) / 2) if signed else colormaps["magma_r"](0.12 + 0.73 * level)
    colours[:, 3] = OPAQUE * np.minimum(np.abs(level) / KNEE, 1)
    under = {} if signed else {"under": (0, 0, 0, 0)}
    return ListedColormap(colours, name="probe").with_extremes(bad=(0, 0, 0, 0), **under)


def shared_bar(
    axes: Sequence[Axes],
    scale: tuple[float, float],
    found: Sequence[PhraseMap],
    pixels: NDArray[np.float64],
    *,
    location: Literal["right", "bottom"],
    notes: Sequence[str] = (),
) -> None:
    """Adds one colour bar for all the maps: their colours as they look on the image's mean tone."""
    signed = any(one.signed for one in found)
    tones = see_through(signed)(np.linspace(0, 1, 256))
    behind = pixels.mean()
    solid = tones[:, :3] * tones[:, 3:] + behind * (1 - tones[:, 3:])
    under, over = min(one.bottom for one in found) < scale[0], max(one.top for one in found) > scale[1]
    across = location == "bottom"
    beyond = {} if signed else {"under": (behind,) * 3}
    bar = axes[0].figure.colorbar(
        ScalarMappable(Normalize(*scale), ListedColormap(solid).with_extremes(**beyond)),
        ax=list(axes),
        location=location,
        extend=ends(under, over),
        shrink=0.9 if len(axes) == 1 else 0.6,
        aspect=22 if len(axes) == 1 else 45,
        pad=0.02,
        ticks=MaxNLocator(5, steps=[1, 2, 5, 10]),
        format=FuncFormatter(lambda value, _: f"{value:g}"),  # every tick a whole number: no factor above the bar
    )
    bar.outline.set_linewidth(0.5)
    below = f"below {scale[0]:g} not drawn" if under and not signed else ""
    room = _across(axes) if across else points(axes[0], "height")
    texts = (found[0].label, "; ".join(one for one in (found[0].detail, below) if one), "; ".join(notes))
    lines = [line for text in texts for line in wrapped(text, room)]
    bar.set_label("\n".join(lines), fontsize=7, parse_math=False)


def _across(axes: Sequence[Axes]) -> float:
    """Points that the Axes have side by side: those of one row, however many rows there are."""
    boxes = [ax.get_window_extent() for ax in axes]
    span = (max(one.x1 for one in boxes) - min(one.x0 for one in boxes)) / axes[0].figure.dpi * 72
    return min(span, sum(points(ax, "width") for ax in axes))
