"""Draws ``figures/phrases.png`` and ``.pdf``: where each small model looks for the same phrases, one row a phrase.

``python figures/phrases.py`` draws from saved maps and needs no model; with ``--measure`` all models read the scenes again first.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

import probe
from probe.figure_scripts import run_script
from probe.plots.maps import PhraseMap, mask_pixels, muted_pixels
from probe.plots.overlays import draw_map, map_limits
from probe.plots.panels import mark_point
from probe.plots.styles import DOUBLE_COLUMN, literal

READS = ("phrases.csv", "phrases.json", "phrases.png", "phrases-masks.png")
#: As the columns stand.
SYSTEMS = ("lab/llava", "lab/llava-clip", "lab/difflmm", "lab/difflmm-diffusion", "lab/clip", "lab/diffusion")
#: The first scenes of the test split and the first phrase of each: none was chosen for how it looks.
SCENES = 6
HEIGHT = 6.6  # inches


def measure(data: Path) -> None:
    """Writes everything that ``draw`` reads: scenes and masks as strips, and the maps of every phrase and system."""
    from probe.evaluation.lab import read_lab
    from probe.plots.maps import phrase_map
    from probe.runs import records_of

    examples = list(read_lab(limit=SCENES))
    wanted = [one.phrases[0] for one in examples]
    parts = []
    for name in SYSTEMS:
        for index, (record, pairs) in enumerate(records_of(probe.load_model(name), examples)):
            span = pairs[0][0]
            found = phrase_map(record.select(tokens=record.tokens_of(*span)), reading="minus mean", view=None)
            rows, cols = np.indices(found.values.shape)
            columns = {"row": rows.ravel(), "col": cols.ravel(), "value": found.values.ravel()}
            parts.append(pd.DataFrame({"scene": index, "system": name} | columns))
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(data / "phrases.csv", index=False, lineterminator="\n", float_format="%.6g")
    facts = {"phrases": [one.text for one in wanted], "captions": [one.text for one in examples]}
    (data / "phrases.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    images = [np.asarray(probe.read_image(one.image)) for one in examples]
    Image.fromarray(np.concatenate(images, axis=1)).save(data / "phrases.png")
    masks = np.concatenate([np.asarray(one.mask) for one in wanted], axis=1)
    Image.fromarray(255 * masks.astype(np.uint8)).save(data / "phrases-masks.png")


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    maps, phrases, images, masks = read_saved(data)
    with probe.plots.style():
        figure = probe.plots.new_figure((HEIGHT, DOUBLE_COLUMN))
        axes = figure.subplots(len(phrases), 1 + len(SYSTEMS))
        for row, (phrase, image, mask) in enumerate(zip(phrases, images, masks, strict=True)):
            show_scene(axes[row, 0], image, phrase)
            for ax, name in zip(axes[row, 1:], SYSTEMS, strict=True):
                show_map(ax, maps[name, row], image, mask)
        for ax, name in zip(axes[0], ("the image", *SYSTEMS), strict=True):
            literal(ax.set_title(name.replace("difflmm-", "difflmm-\n"), fontsize=7))
        return probe.plots.save_figure(figure, out)


def read_saved(data: Path) -> tuple[dict[tuple[str, int], np.ndarray], list[str], list[Image.Image], list[np.ndarray]]:
    """(system, scene) -> (row, col) map; and of every scene its phrase, its image, and the phrase's mask."""
    table = pd.read_csv(data / "phrases.csv")
    maps = {
        (str(name), int(scene)): part.pivot(index="row", columns="col", values="value").to_numpy()
        for (name, scene), part in table.groupby(["system", "scene"])
    }
    phrases = json.loads((data / "phrases.json").read_text(encoding="utf-8"))["phrases"]
    strips = (np.asarray(Image.open(data / name)) for name in ("phrases.png", "phrases-masks.png"))
    images, masks = (np.split(one, len(phrases), axis=1) for one in strips)
    return maps, phrases, [Image.fromarray(one) for one in images], [one > 0 for one in masks]


def show_scene(ax: Axes, image: Image.Image, phrase: str) -> None:
    """The scene as it is, with the phrase beside it."""
    ax.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.6")
    first, rest = phrase.split(" ", 1)
    literal(ax.set_ylabel(f"{first}\n{rest}", fontsize=7))


def show_map(ax: Axes, values: np.ndarray, image: Image.Image, mask: np.ndarray) -> None:
    """One map on its own scale; a cross at the centre of the best patch, a dot if that misses."""
    size = (image.height, image.width)
    drawn = PhraseMap(values, grid_of(values, size), "", "", "")
    # Where every patch spreads 1 over the words, a map minus its mean may be below 0 all over: its own middle begins the scale.
    scale = map_limits((float(np.median(values)), float(values.max())), [drawn])
    draw_map(ax, drawn, muted_pixels(image, size), mask_pixels(mask, size), scale, smooth=False, title="")
    point = best_pixel(values, size)
    mark_point(ax, point, hit=bool(mask[point]))


def grid_of(values: np.ndarray, size: tuple[int, int]) -> probe.PatchGrid:
    """The grid of a picture that its patches cover without padding or crop, as all these models see a scene."""
    edges = (
        tuple(np.linspace(0, length, count + 1).tolist()) for count, length in zip(values.shape, size, strict=True)
    )
    return probe.PatchGrid(size, *edges)


def best_pixel(values: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """(row, col) of the pixel at the centre of the largest patch."""
    row, col = np.unravel_index(int(values.argmax()), values.shape)
    return int((row + 0.5) * size[0] / values.shape[0]), int((col + 0.5) * size[1] / values.shape[1])


def caption(data: Path) -> str:
    """What is drawn, how it was chosen, and how many of the maps point right."""
    maps, phrases, images, masks = read_saved(data)
    hits = {
        name: sum(
            bool(masks[row][best_pixel(maps[name, row], (image.height, image.width))])
            for row, image in enumerate(images)
        )
        for name in SYSTEMS
    }
    counts = ", ".join(f"{name} {count}" for name, count in hits.items())
    return (
        f"Where each small model looks for the same {len(phrases)} phrases, all layers and heads, minus the mean over the "
        "caption (Eq. 3): the first phrase of each of the first scenes of the test split, so that none was chosen for how it "
        "looks. Every map has a scale of its own, from its median to its largest patch, since the quantities differ: attention "
        "of language models to patches; of lab/clip, which has no attention from text to patches, contributions to its "
        "similarity with the phrase; of lab/diffusion cross-attention of patches to words at timestep 100. Outline: the true "
        f"mask. Cross: the centre of the largest patch lies in it; white dot: it does not. Of {len(phrases)} phrases these point "
        f"right: {counts}. How often they do so on many scenes, with intervals, is in the figures localisation and comparison."
    )


if __name__ == "__main__":
    run_script(__file__)
