"""Draws what lab/diffusion makes of captions, ``figures/generation.png`` and ``.pdf``, from saved pictures.

``python figures/generation.py`` draws and needs no model; with ``--generate`` it first lets lab/diffusion draw again.
Beside the pictures of three seeds stands the test scene that the caption was written for, which the model has never seen. How
recognisable pictures are is measured too: how often lab/clip, whose image side had no part in drawing them, picks the right caption
of many.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

import probe

HERE = Path(__file__).parent
DATA = HERE / "data"
MODEL = "lab/diffusion"
SCENES = 12
SEEDS = (0, 1, 2)
STEPS, GUIDANCE = 50, 5.0
RECOGNISED, AT_ONCE = 128, 32  # captions among which lab/clip picks, and pictures drawn together
BLOCKS = 2  # scenes beside each other
WIDTH = 6.9  # inches: both columns of a paper
LINE = 62  # letters of a caption that fit over four pictures


def generate(data: Path = DATA, *, home: str | Path | None = None) -> None:
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
    data.mkdir(parents=True, exist_ok=True)
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


def draw(data: Path = DATA, out: Path = HERE / "generation") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "generation.json").read_text(encoding="utf-8"))
    captions, names = facts["captions"], ["scene", *(f"seed {seed}" for seed in facts["seeds"])]
    grid = np.asarray(Image.open(data / "generation.png"))
    rows = -(-len(captions) // BLOCKS)
    side = WIDTH / (BLOCKS * len(names))
    with probe.plots.style():
        figure = probe.plots.new_figure((rows * (side + 0.28) + 0.2, WIDTH))
        for block, part in enumerate(np.atleast_1d(figure.subfigures(1, BLOCKS))):
            axes = part.subplots(rows, len(names), squeeze=False)
            for row, line in enumerate(axes):
                show_row(line, grid, captions, names, number=block * rows + row)
        figure.supxlabel(
            f"{facts['model']}, {facts['steps']} steps, guidance {facts['guidance']:g}; "
            "scenes of the test split, which the model has never seen\n" + described(facts["recognised"]),
            fontsize=6,
            color="0.4",
        )
        return probe.plots.save_figure(figure, out)


def described(found: dict[str, Any]) -> str:
    """The sentence about how recognisable the pictures are."""
    several = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in (found["drawn"], found["scenes"])]
    return (
        f"lab/clip picks the right one of {found['captions']} captions for {several[0]} of {found['captions']} such pictures, "
        f"for {several[1]} of the scenes"
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
        ax.set_xlabel(name, fontsize=5, labelpad=1)
    if number < len(captions):
        line[0].set_title("\n", fontsize=5.5, pad=2)  # room for two lines, however wide the caption
        above = line[0].annotate(
            textwrap.fill(captions[number], LINE),
            (0, 1),
            xytext=(0, 2.5),
            xycoords="axes fraction",
            textcoords="offset points",
            va="bottom",
            fontsize=5.5,
        )
        above.set_in_layout(False)  # it reaches over the pictures beside, which need not move away


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generate", action="store_true", help=f"let {MODEL} draw again first")
    options = parser.parse_args()
    matplotlib.use("Agg")
    if options.generate:
        generate()
    elif not (DATA / "generation.json").exists():
        sys.exit(f"{DATA / 'generation.json'} is not there yet; run: python figures/generation.py --generate")
    for path in draw():
        print(path)


if __name__ == "__main__":
    main()
