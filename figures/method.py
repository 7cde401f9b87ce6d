"""Draws ``figures/method.png`` and ``.pdf``: the method in one picture, from an image and an answer to a mask, with real maps.

``python figures/method.py`` draws from the saved record and needs no model; with ``--measure`` lab/llava describes the scene again
first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from PIL import Image

import probe
from probe.figure_scripts import run_script
from probe.plots.maps import PhraseMap, mask_pixels, muted_pixels
from probe.plots.overlays import draw_map
from probe.plots.panels import heading, mark_point
from probe.plots.styles import DOUBLE_COLUMN, literal
from probe.text import find_phrase

READS = ("method.safetensors", "method.json", "method.png", "method-masks.png")
MODEL, PROMPT, REFINER = "lab/llava", "Describe the image.", "lab/sam"
#: Scenes that are looked at for one in which every object is named exactly right.
MOST = 100
HEIGHTS = (2.45, 1.6)  # of the two rows, in inches
PHRASE = "#D55E00"  # what belongs to the phrase
MAPS = "magma_r"


def measure(data: Path) -> None:
    """Writes everything that ``draw`` reads, of the first test scene in which the model names every object exactly right."""
    from probe.lab.scenes import scene

    subject = probe.load_model(MODEL)
    for index in range(MOST):
        example = scene(index)
        record = probe.run(subject, example.image, PROMPT).record
        if all(len(find_phrase(record.text, one.text)) == 1 for one in example.phrases):
            break
    else:
        raise probe.ProbeError(f"{MODEL} names every object of a scene in none of {MOST} scenes; train it again first.")
    largest = max(example.phrases, key=lambda one: int(one.mask.sum()))
    [found] = probe.attend_and_segment(record, example.image, phrases=[largest.text], refiner=REFINER).phrases
    if found.point is None:
        raise probe.ProbeError(f"The map of {largest.text!r} points nowhere: {found.note}.")
    probe.save(record.mean("layer", "head"), data / "method.safetensors")
    example.image.save(data / "method.png")
    # Grey level 1 for the mask that was found, 2 for the true one, 3 for both.
    levels = found.mask.astype(np.uint8) + 2 * largest.mask.astype(np.uint8)
    Image.fromarray(levels).save(data / "method-masks.png")
    facts = {"model": MODEL, "prompt": PROMPT, "scene": index, "phrase": largest.text, "refiner": REFINER}
    facts |= {"layers": len(record.layers), "heads": len(record.layers[0].heads), "point": list(found.point)}
    (data / "method.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Steps:
    """What the method makes, one after the other, of the saved record: attention averaged over layers and heads.

    Attributes
    ----------
    rows : (token, patch), the attention of every token of the answer.
    phrase : which of the tokens are the phrase's.
    of_phrase, of_answer, difference : (row, col) means over the phrase's tokens and over all tokens, and their difference (Eq. 3).
    """

    rows: np.ndarray
    phrase: tuple[int, ...]
    of_phrase: np.ndarray
    of_answer: np.ndarray
    difference: np.ndarray

    @classmethod
    def of(cls, record: probe.AttentionRecord, phrase: str) -> Steps:
        """The steps for one phrase of the answer."""
        [layer] = record.layers
        maps = layer.values[0, 0].double().numpy()
        [span] = find_phrase(record.text, phrase)
        tokens = record.tokens_of(*span)
        of_phrase, of_answer = maps[list(tokens)].mean(0), layer.token_mean[0, 0].double().numpy()
        return cls(maps.reshape(len(maps), -1), tokens, of_phrase, of_answer, of_phrase - of_answer)


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "method.json").read_text(encoding="utf-8"))
    record, image = probe.load(data / "method.safetensors"), probe.read_image(data / "method.png")
    steps = Steps.of(record, facts["phrase"])
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(HEIGHTS), DOUBLE_COLUMN))
        top, bottom = figure.subfigures(2, 1, height_ratios=HEIGHTS)
        left, right = top.subfigures(1, 2, width_ratios=[1, 2.35])
        heading(left, "a  An image in patches")
        draw_patches(left.subplots(), record, image, facts["prompt"])
        heading(right, "b  Attention of each word of the answer to each patch, averaged")
        draw_rows(right.subplots(), record, steps)
        heading(bottom, "c  The phrase's map minus the mean over the answer (Eq. 3), its point, and a mask")
        draw_steps(bottom, record, image, steps, facts, np.asarray(Image.open(data / "method-masks.png")))
        return probe.plots.save_figure(figure, out)


def draw_patches(ax: Axes, record: probe.AttentionRecord, image: Image.Image, prompt: str) -> None:
    """The image with the edges of its patches, and below it what was asked."""
    grid = record.layers[0].grid
    ax.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
    ax.vlines(grid.col_edges, 0, image.height, color="white", linewidth=0.5)
    ax.hlines(grid.row_edges, 0, image.width, color="white", linewidth=0.5)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.6")
    literal(ax.set_xlabel(f"\N{LEFT DOUBLE QUOTATION MARK}{prompt}\N{RIGHT DOUBLE QUOTATION MARK}", labelpad=3))


def draw_rows(ax: Axes, record: probe.AttentionRecord, steps: Steps) -> None:
    """A row for each token of the answer and a column for each patch, row by row of the image; the phrase's rows are framed."""
    rows, cols = record.layers[0].grid.shape
    drawn = ax.imshow(steps.rows, cmap=MAPS, aspect="auto", vmin=0)
    ax.set_yticks(
        range(len(record.tokens)), [one.strip() or one for one in record.tokens], fontsize=6, parse_math=False
    )
    for place in steps.phrase:
        ax.get_yticklabels()[place].set(color=PHRASE, fontweight="bold")
    first, last = min(steps.phrase), max(steps.phrase)
    frame = Rectangle((-0.5, first - 0.5), rows * cols, last - first + 1, fill=False, edgecolor=PHRASE, linewidth=1.2)
    frame.set_clip_on(False)
    ax.add_patch(frame)
    ax.vlines(np.arange(1, rows) * cols - 0.5, -0.5, len(steps.rows) - 0.5, color="0.75", linewidth=0.4)
    ax.set_xticks((np.arange(rows) + 0.5) * cols - 0.5, [f"row {row}" for row in range(rows)])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(f"{rows * cols} patches, in {rows} rows of {cols}")
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.015, aspect=22)
    bar.outline.set_linewidth(0.5)
    bar.set_label("attention", fontsize=8)


def draw_steps(
    part: Any,
    record: probe.AttentionRecord,
    image: Image.Image,
    steps: Steps,
    facts: dict[str, Any],
    levels: np.ndarray,
) -> None:
    """The phrase's map, the answer's, their difference, the same upsampled with its largest pixel, and the mask of that point."""
    pixels = muted_pixels(image, record.image_size)
    grid, top = record.layers[0].grid, float(max(steps.of_phrase.max(), steps.of_answer.max()))
    panels = (
        ("the phrase", steps.of_phrase, (0.0, top), False),
        ("the whole answer", steps.of_answer, (0.0, top), False),
        ("difference", steps.difference, (0.0, float(steps.difference.max())), False),
        ("largest pixel", steps.difference, (0.0, float(steps.difference.max())), True),
    )
    axes = part.subplots(1, len(panels) + 1, gridspec_kw={"wspace": 0.2})
    for ax, (title, values, scale, smooth) in zip(axes, panels, strict=False):
        draw_map(ax, PhraseMap(values, grid, "", "", ""), pixels, None, scale, smooth=smooth, title=title)
    mark_point(axes[-2], facts["point"])
    draw_mask(axes[-1], image, levels, facts["refiner"])
    mark_point(axes[-1], facts["point"])
    for ax, sign in zip(axes[1:], ("\N{MINUS SIGN}", "=", "\N{RIGHTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"), strict=True):
        place = {"xytext": (-9.5, 0), "textcoords": "offset points", "ha": "center", "va": "center"}
        # It stands in the gap before the panel, where nothing has to make room for it.
        ax.annotate(
            sign, (0, 0.5), xycoords="axes fraction", fontsize=12, in_layout=False, annotation_clip=False, **place
        )


def draw_mask(ax: Axes, image: Image.Image, levels: np.ndarray, refiner: str) -> None:
    """The image, pale outside the mask that was found; the true mask as an outline."""
    size = (image.height, image.width)
    found, true = (levels & 1) > 0, (levels & 2) > 0
    pixels = muted_pixels(image, size)
    pixels = np.where(found[..., None], np.asarray(image) / 255, pixels)
    ax.imshow(pixels, extent=(0, image.width, image.height, 0), norm=Normalize(0, 1))
    rows, cols = (np.arange(count + 2) - 0.5 for count in size)
    outline = ax.contour(cols, rows, np.pad(mask_pixels(true, size), 1), levels=[0.5], colors="white", linewidths=0.9)
    outline.set_path_effects([patheffects.withStroke(linewidth=2.1, foreground="black")])
    ax.set(xlim=(0, image.width), ylim=(image.height, 0), xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.6")
    literal(ax.set_title(f"mask by {refiner}"))


def caption(data: Path) -> str:
    """What each panel is, and how good the mask is."""
    facts = json.loads((data / "method.json").read_text(encoding="utf-8"))
    record = probe.load(data / "method.safetensors")
    levels = np.asarray(Image.open(data / "method-masks.png"))
    overlap = (levels == 3).sum() / (levels > 0).sum()
    return (
        f"The method in one picture, with the maps of {facts['model']} itself. It is shown an image (a), asked "
        f"{facts['prompt']!r} and answers {record.text!r}. While it says a word its attention to the patches is kept, in "
        f"{facts['layers']} layers of {facts['heads']} heads, and averaged over them (b); the phrase {facts['phrase']!r} is "
        "framed. (c) The mean map of the phrase's tokens, minus the mean over all tokens of the answer (one scale for both, its "
        "own for the difference), is where the model looks for the phrase more than for anything else; the largest pixel of "
        f"that map, upsampled, is a point, and {facts['refiner']} makes a mask of it (in full colour; outline: the true mask, "
        f"IoU {overlap:.2f}). Nothing was trained for grounding but {facts['refiner']}. One scene (n = 1), so there is no "
        f"interval: number {facts['scene']} of the test split, the first in which the model names every object exactly right, "
        "and the largest object in it."
    )


if __name__ == "__main__":
    run_script(__file__)
