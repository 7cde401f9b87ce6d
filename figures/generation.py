"""Draws what lab/diffusion makes of captions, ``figures/generation.png`` and ``.pdf``, from saved pictures.

``python figures/generation.py`` draws and needs no model; with ``--measure`` it first lets lab/diffusion draw again.
Beside the pictures of three seeds stands the test scene that the caption was written for, which the model has never seen. How
recognisable pictures are is measured too: how often lab/clip, whose image side had no part in drawing them, picks the right caption
of many.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import probe
from probe.figure_scripts import run_script
from probe.plots.panels import SMALLEST, interval
from probe.plots.styles import DOUBLE_COLUMN

READS = ("generation.json", "generation.png")
MODEL = "lab/diffusion"
SCENES = 12
SEEDS = (0, 1, 2)
STEPS, GUIDANCE = 50, 5.0
RECOGNISED, AT_ONCE = 128, 32  # captions among which lab/clip picks, and pictures drawn together
BLOCKS = 2  # scenes beside each other
LINE = 58  # letters of a caption that fit over four pictures


def measure(data: Path, *, home: str | Path | None = None) -> None:
    """Writes what ``draw`` reads: one row of pictures a scene, the scene first and then each seed, and the captions."""
    from diffusers import StableDiffusionPipeline

    from probe.lab.scenes import SceneSettings, scenes
    from probe.lab.storage import folder

    pipeline = StableDiffusionPipeline.from_pretrained(home or folder(MODEL))
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    examples = list(scenes(SCENES, settings=SceneSettings(size=side)))
    captions = [one.caption for one in examples]
    rows = [[np.asarray(one.image) for one in examples]]
    rows += [[np.asarray(picture) for picture in drawn(pipeline, captions, seed=seed)] for seed in SEEDS]
    grid = np.concatenate([np.concatenate(column, axis=1) for column in zip(*rows, strict=True)], axis=0)
    Image.fromarray(grid).save(data / "generation.png")
    facts = {"model": MODEL, "captions": captions, "seeds": SEEDS, "steps": STEPS, "guidance": GUIDANCE}
    several = list(scenes(RECOGNISED, seed=1, settings=SceneSettings(size=side)))
    facts["recognised"] = recognised(pipeline, [one.caption for one in several], [one.image for one in several])
    (data / "generation.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def drawn(pipeline: Any, captions: list[str], *, seed: int) -> list[Image.Image]:
    """One picture for each caption, which depends on the caption and the seed alone."""
    import torch

    pictures = []
    for start in range(0, len(captions), AT_ONCE):
        part = captions[start : start + AT_ONCE]
        # A generator for each picture: what is drawn for a caption does not depend on the captions beside it.
        noise = [torch.Generator().manual_seed(seed) for _ in part]
        pictures += pipeline(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise).images
    return pictures


def recognised(pipeline: Any, captions: list[str], scenes: list[Image.Image]) -> dict[str, Any]:
    """How often lab/clip picks a picture's own caption of all of them, for drawn pictures and for scenes: value, low, high."""
    import torch

    from probe.analysis.stats import PoissonBootstrap

    clip = probe.load_model("lab/clip")
    own, found = torch.arange(len(captions)), PoissonBootstrap(cells=2)
    right = []
    for pictures in (drawn(pipeline, captions, seed=0), scenes):
        inputs = clip.processor(text=captions, images=pictures, return_tensors="pt", padding=True)
        with torch.inference_mode():
            right.append((clip.model(**inputs).logits_per_image.argmax(1) == own).numpy())
    for index, pair in enumerate(zip(*right, strict=True)):
        found.add(index, np.array(pair, dtype=float), np.ones(2))
    intervals = found.intervals()
    named = {name: intervals[i] for i, name in enumerate(("drawn", "scenes"))}
    return {"captions": len(captions)} | {name: [x.value, x.low, x.high] for name, x in named.items()}


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "generation.json").read_text(encoding="utf-8"))
    captions, names = facts["captions"], ["scene", *(f"seed {seed}" for seed in facts["seeds"])]
    grid = np.asarray(Image.open(data / "generation.png"))
    rows = -(-len(captions) // BLOCKS)
    side = DOUBLE_COLUMN / (BLOCKS * len(names))
    with probe.plots.style():
        figure = probe.plots.new_figure((rows * (side + 0.28) + 0.2, DOUBLE_COLUMN))
        for block, part in enumerate(np.atleast_1d(figure.subfigures(1, BLOCKS))):
            axes = part.subplots(rows, len(names), squeeze=False)
            for row, line in enumerate(axes):
                show_row(line, grid, captions, names, number=block * rows + row)
        return probe.plots.save_figure(figure, out)


def caption(data: Path) -> str:
    """What was drawn, from what, and how recognisable it is."""
    facts = json.loads((data / "generation.json").read_text(encoding="utf-8"))
    found = facts["recognised"]
    drawn, scenes = (
        interval(dict(zip(("value", "low", "high"), found[one], strict=True))) for one in ("drawn", "scenes")
    )
    return (
        f"What {facts['model']} draws for captions of the test split, whose scenes it has never seen, from {len(facts['seeds'])} "
        f"seeds ({facts['steps']} steps, guidance {facts['guidance']:g}); on the left the scene that the caption was written "
        f"for. lab/clip picks the right one of {found['captions']} captions for {drawn} of {found['captions']} such pictures, "
        f"and for {scenes} of the scenes; 95 % intervals by bootstrap over captions."
    )


def show_row(line: Any, grid: Any, captions: list[str], names: list[str], *, number: int) -> None:
    """Shows the pictures of one caption, with the caption above them and, below the last one, what they are."""
    side = grid.shape[0] // len(captions)
    for col, (ax, name) in enumerate(zip(line, names, strict=True)):
        if number >= len(captions):
            ax.set_axis_off()
            continue
        ax.imshow(grid[number * side : (number + 1) * side, col * side : (col + 1) * side])
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color="0.6")
        ax.set_xlabel(name, fontsize=SMALLEST, labelpad=1)
    if number < len(captions):
        line[0].set_title("\n", fontsize=SMALLEST, pad=2)  # room for two lines, however wide the caption
        above = line[0].annotate(
            textwrap.fill(captions[number], LINE),
            (0, 1),
            xytext=(0, 2.5),
            xycoords="axes fraction",
            textcoords="offset points",
            va="bottom",
            fontsize=SMALLEST,
        )
        above.set_in_layout(False)  # it reaches over the pictures beside, which need not move away


if __name__ == "__main__":
    run_script(__file__)
