"""An answer beside its image: the sentence with each phrase in the colour of the region that it looks at."""

from __future__ import annotations

import functools
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker

from probe.attention import AttentionRecord
from probe.grounding.segment import Segmentation, SegmentedPhrase, attend_and_segment
from probe.plots.maps import Picture, mask_pixels, muted_pixels
from probe.plots.overlays import hatch_unseen
from probe.plots.styles import MARGIN, OKABE_ITO, SINGLE_COLUMN, STYLE, points, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "answer"]

#: Without yellow, which nobody can read on white, and black, in which the rest of the sentence is written.
COLOURS = OKABE_ITO[:6]
LETTERS = 7.0  # points
BLANK = 2.2  # points between two words
DOTS = STYLE["figure.dpi"]
#: A sentence longer than this many lines is cut: the picture is for looking, the text is in the record.
MOST_LINES = 14
GAP = 5.0  # points between image and sentence
HIGHEST = 8.5  # inches of both


@style()
def answer(
    found: Segmentation | AttentionRecord,
    image: Picture,
    *,
    phrases: Iterable[Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The Axes with the image, the outline and point of each phrase's region, and below it the answer in the same colours.

        probe.plots.answer(probe.attend_and_segment(run.record, image), image)

    Colours repeat after six phrases; the small number after a phrase stands at its point too.

    Parameters
    ----------
    found : what ``attend_and_segment`` gave, or a record, which is then segmented with its defaults.
    image : the image that was recorded: a path, a PIL image or an array.
    phrases : with a record, the phrases to segment, as in ``attend_and_segment``.
    ax : where to draw; by default a new figure, one column wide. The sentence stands below these Axes.

    Raises
    ------
    InputError
        If the image is not of the record's size, or as in ``attend_and_segment``.
    """
    if isinstance(found, AttentionRecord):
        found = attend_and_segment(found, image, phrases=phrases)
    height, width = found.image_size
    pixels = muted_pixels(image, found.image_size)
    own = None
    if ax is None:
        own = plt.figure(figsize=(SINGLE_COLUMN, 3.0), layout="none")
        ax = own.subplots()
    ax.imshow(pixels, extent=(0, width, height, 0))  # pixel i covers [i, i + 1), as in PatchGrid
    # The largest first, so that it hides no other.
    numbered = sorted(enumerate(found.phrases), key=lambda one: -int(one[1].mask.sum()))
    for number, one in numbered:
        _region(ax, one, number, found.image_size)
    for number, one in enumerate(found.phrases):
        _number(ax, one, number, found, shared=[each.point for each in found.phrases[:number]].count(one.point))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.6")
    unseen = hatch_unseen(ax, found.grid)
    room = (SINGLE_COLUMN - MARGIN) * 72 if own else max(points(ax, "width"), 60)
    below = _sentence(ax, found, room=room, unseen=unseen)
    if own is not None:
        _place(own, ax, below)
    return ax


def _place(figure: Figure, ax: Axes, below: AnnotationBbox) -> None:
    """Makes the figure as high as image and sentence are: how wide the image can be does not depend on what is below."""
    width, height = abs(float(np.diff(ax.get_xlim())[0])), abs(float(np.diff(ax.get_ylim())[0]))
    text = below.offsetbox.get_bbox(RendererAgg(1, 1, figure.dpi)).height / figure.dpi + GAP / 72
    wide = min(SINGLE_COLUMN - MARGIN, (HIGHEST - text) * width / height)
    high = wide * height / width
    total = high + text + MARGIN
    figure.set_figheight(total)
    ax.set_position((MARGIN / 2 / SINGLE_COLUMN, 1 - (MARGIN / 2 + high) / total, wide / SINGLE_COLUMN, high / total))


def _region(ax: Axes, one: SegmentedPhrase, number: int, size: tuple[int, int]) -> None:
    """Draws one phrase's mask, its outline and both points."""
    colour = COLOURS[number % len(COLOURS)]
    white: list[Any] = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    if one.mask.any():
        mask = mask_pixels(one.mask, size)
        tint = np.empty((*mask.shape, 4))
        tint[..., :3], tint[..., 3] = to_rgb(colour), 0.2 * mask
        ax.imshow(tint, extent=(0, size[1], size[0], 0))
        # One pixel of nothing all round closes the outline where the mask touches the border.
        rows, cols = (
            (np.arange(count + 2) - 0.5) * length / count for count, length in zip(mask.shape, size, strict=True)
        )
        ax.contour(cols, rows, np.pad(mask, 1), levels=[0.5], colors=[colour], linewidths=1.1).set_path_effects(white)
    for point, marker in ((one.bicubic_point, "o"), (one.patch_point, "x")):
        if point is not None:
            row, col = point[0] + 0.5, point[1] + 0.5
            [dot] = ax.plot(col, row, marker, color=colour, markersize=3.5, markeredgewidth=1.1, linestyle="none")
            dot.set_path_effects([patheffects.withStroke(linewidth=2.6, foreground="white")])


def _number(ax: Axes, one: SegmentedPhrase, number: int, found: Segmentation, *, shared: int) -> None:
    """Writes the phrase's number at its point, beside those of ``shared`` earlier phrases with the same point."""
    if one.point is None:
        return
    (row, col), (height, width) = one.point, found.image_size
    # Towards the middle, so that a number never stands outside the picture.
    right, down = col < 0.85 * width, row < 0.15 * height
    label = ax.annotate(
        str(number + 1), (col + 0.5, row + 0.5), ((4 + 7 * shared) * (1 if right else -1), -4 if down else 4),
        textcoords="offset points", ha="left" if right else "right", va="top" if down else "bottom",
        fontsize=7, fontweight="bold", color=COLOURS[number % len(COLOURS)],
    )  # fmt: skip
    label.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="white")])


def _sentence(ax: Axes, found: Segmentation, *, room: float, unseen: bool) -> AnnotationBbox:
    """The answer below the Axes, in lines of so many points, each phrase in its colour, and how it was segmented."""
    lines: list[list[Word]] = [[]]
    used = 0.0
    for word in (part for whole in _words(found) for part in _broken(whole, room)):
        length = sum(map(_width, word))
        if used and used + BLANK + length > room:
            lines.append([])
            used = 0.0
        lines[-1].append(word)
        used += BLANK * bool(used) + length
    backwards = _backwards(found.text)
    rows: list[Any] = [_row(line, backwards) for line in lines[:MOST_LINES] if line]
    rows += [_letters("…", None, LETTERS)] if len(lines) > MOST_LINES else []
    sentence = VPacker(children=rows, pad=0, sep=2.5, align="right" if backwards else "left")
    notes: list[Any] = [_letters(note, None, 6.0) for note in _notes(found, int(room / 3.3), unseen=unseen)]
    below = AnnotationBbox(
        VPacker(children=[sentence, *notes] if rows else notes, pad=0, sep=2.5, align="left"), (0, 0), xybox=(0, -GAP),
        xycoords="axes fraction", boxcoords="offset points", box_alignment=(0, 1), frameon=False, pad=0,
        annotation_clip=False,
    )  # fmt: skip
    ax.add_artist(below)
    return below


Piece = tuple[str, int | None, float]
Word = list[Piece]


@functools.cache
def _width(piece: Piece) -> float:
    """Points that the piece's letters take, as they will be drawn: a script without a font of its own has wide boxes instead."""
    text, number, size = piece
    weight = "normal" if number is None else "bold"
    font = FontProperties(family=STYLE["font.sans-serif"], weight=weight, size=size)
    return RendererAgg(1, 1, DOTS).get_text_width_height_descent(text, font, ismath=False)[0] / DOTS * 72


def _broken(word: Word, room: float) -> list[Word]:
    """The word, or, where scripts have no blanks and it is longer than a line, parts of it that are not."""
    if sum(map(_width, word)) <= room:
        return [word]
    parts: list[Word] = [[]]
    used = 0.0
    for text, number, size in word:
        for letter in text:
            length = _width((letter, number, size))
            if used and used + length > room:
                parts.append([])
                used = 0.0
            last = parts[-1][-1] if parts[-1] else None
            if last is not None and last[1:] == (number, size):
                parts[-1][-1] = (last[0] + letter, number, size)
            else:
                parts[-1].append((letter, number, size))
            used += length
    return parts


def _backwards(text: str) -> bool:
    """True if the first letter is of a script that is written from right to left."""
    first = next((one for one in map(unicodedata.bidirectional, text) if one in ("L", "R", "AL")), "L")
    return first != "L"


def _row(line: list[Word], backwards: bool) -> HPacker:
    """The words of one line as they stand side by side: runs of the other direction are turned round."""
    ways = [_backwards("".join(text for text, number, size in word if size == LETTERS) or "x") for word in line]
    turned = list(zip(ways, line, strict=True))[:: -1 if backwards else 1]
    runs = [(way, list(run)) for way, run in groupby(turned, key=lambda one: one[0])]
    ordered = [one for way, run in runs for one in (run if way == backwards else run[::-1])]
    words: list[Any] = [
        HPacker(children=[_letters(*part) for part in word[:: -1 if way else 1]], pad=0, sep=0) for way, word in ordered
    ]
    return HPacker(children=words, pad=0, sep=BLANK)


def _words(found: Segmentation) -> list[Word]:
    """The answer's words, each as pieces (text, number of the phrase or None, size), a number after each phrase's end."""
    owner = _owners(found.text, [one.span for one in found.phrases])
    words: list[Word] = []
    fresh = True
    for place, character in enumerate(found.text):
        number = owner[place]
        if character.isspace():
            fresh = True
        elif fresh or words[-1][-1][1:] != (number, LETTERS):
            words[len(words) if fresh else -1 :] = [[*([] if fresh else words[-1]), (character, number, LETTERS)]]
            fresh = False
        else:
            words[-1][-1] = (words[-1][-1][0] + character, number, LETTERS)
        for index, one in enumerate(found.phrases):
            if one.span[1] == place + 1 and words:
                words[-1].append((str(index + 1), index, 5.0))
    return words


def _owners(text: str, spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each character the phrase that it is coloured by: of several the shortest."""
    owner: list[int | None] = [None] * len(text)
    for index, (start, end) in sorted(enumerate(spans), key=lambda one: one[1][0] - one[1][1]):
        owner[start:end] = [index] * (end - start)
    return owner


def _letters(text: str, number: int | None, size: float) -> TextArea:
    look: dict[str, Any] = {"fontsize": size, "color": "0.25" if size == LETTERS else "0.45"}
    if number is not None:
        look |= {"color": COLOURS[number % len(COLOURS)], "fontweight": "bold"}
    return TextArea(text, textprops=look | {"parse_math": False})  # words are data: "$x$" is no formula


def _notes(found: Segmentation, letters: int, *, unseen: bool) -> list[str]:
    text = f"outline: {found.refiner}, from the {found.point} point; dot: bicubic, cross: patch centre"
    parts = [text if found.phrases else found.note, "hatched: cropped away, unseen" if unseen else ""]
    return textwrap.wrap("; ".join(filter(None, parts)), letters)
