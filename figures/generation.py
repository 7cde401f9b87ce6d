"""Draws what lab/diffusion makes of captions, ``figures/generation.png`` and ``.pdf``, from saved pictures.

``python figures/generation.py`` draws and needs no model; with ``--generate`` it first lets lab/diffusion draw again.
Beside the pictures of three seeds stands the test scene that the caption was written for, which the model has never seen.
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
BLOCKS = 2  # scenes beside each other
WIDTH = 6.9  # inches: both columns of a paper
LINE = 62  # letters of a caption that fit over four pictures


def generate(data: Path = DATA, *, home: str | Path | None = None) -> None:
    """Writes what ``draw`` reads: one row of pictures a scene, the scene first and then each seed, and the captions."""
    import torch
    from diffusers import StableDiffusionPipeline

    from probe.lab.scenes import SceneSettings, scenes
    from probe.lab.storage import folder

    pipeline = StableDiffusionPipeline.from_pretrained(home or folder(MODEL))
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    examples = list(scenes(SCENES, settings=SceneSettings(size=side)))
    rows = [[np.asarray(one.image) for one in examples]]
    for seed in SEEDS:
        # A generator for each picture: what is drawn for a caption does not depend on the captions beside it.
        noise = [torch.Generator().manual_seed(seed) for _ in examples]
        captions = [one.caption for one in examples]
        drawn = pipeline(captions, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=noise).images
        rows.append([np.asarray(picture) for picture in drawn])
    data.mkdir(parents=True, exist_ok=True)
    grid = np.concatenate([np.concatenate(column, axis=1) for column in zip(*rows, strict=True)], axis=0)
    Image.fromarray(grid).save(data / "generation.png")
    facts = {"model": MODEL, "captions": captions, "seeds": SEEDS, "steps": STEPS, "guidance": GUIDANCE}
    (data / "generation.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


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
            "scenes of the test split, which the model has never seen",
            fontsize=6,
            color="0.4",
        )
        return probe.plots.save_figure(figure, out)


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
