"""Draws ``figures/encoders.png`` and ``.pdf``: one phrase seen by CLIP and by a diffusion model, and how well each points at it.

``python figures/encoders.py`` draws and needs no model; with ``--record`` it first measures lab/clip and lab/diffusion again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

import probe
from probe.plots.maps import mask_pixels, muted_pixels, phrase_map
from probe.plots.overlays import draw_map, map_limits, shared_bar

HERE = Path(__file__).parent
DATA = HERE / "data"
CLIP, DIFFUSION = "lab/clip", "lab/diffusion"
SCENES = 200
#: The test scene that is drawn, taken for its four shapes and colours, and which of its phrases.
SCENE, PHRASE = 4, 0
#: Numbers of the scheduler's 1,000, from hardly any noise to hardly any image; one draw, the same for every scene.
TIMESTEPS = (1, 100, 200, 300, 500, 700, 900)
SEED = 0
METRIC = "pointing"
WIDTH = 6.9  # inches: both columns of a paper
HEIGHTS = (3.75, 1.85, 3.0)  # of the three rows, in inches


def record(data: Path = DATA, *, scenes: int = SCENES) -> None:
    """Writes everything that ``draw`` reads: image, mask, both records, and the tables of scores."""
    from probe.evaluation.lab import read_lab
    from probe.kinds import examples_denoised
    from probe.reports import tracked
    from probe.runs import score_examples, threads_for

    data.mkdir(parents=True, exist_ok=True)
    clip, diffusion = probe.load_model(CLIP), probe.load_model(DIFFUSION)
    facts = record_scene(clip, diffusion, data)
    examples = list(read_lab(limit=scenes))
    write_table(score_examples(clip, examples, metric=METRIC).to_frame(), data / "encoders-clip.csv")

    found = examples_denoised(diffusion, tracked(examples, what="denoising", total=scenes), timesteps=TIMESTEPS, seed=SEED)
    with threads_for(diffusion.model):
        # Means over heads: all that is drawn, in a quarter of the memory.
        read = [(one.mean("head"), masks) for one, masks in found]
    records, masks = [one for one, _ in read], [one for _, one in read]
    over_time = probe.profile(records, masks, over="timestep", metric=METRIC).to_frame()
    write_table(over_time, data / "encoders-timesteps.csv")
    write_table(probe.score_heads(records, masks, metric=METRIC).to_frame(), data / "encoders-diffusion.csv")
    facts |= {"clip": CLIP, "diffusion": DIFFUSION, "seed": SEED, "timesteps": TIMESTEPS}
    (data / "encoders.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def record_scene(clip: probe.Subject, diffusion: probe.Subject, data: Path) -> dict[str, Any]:
    """What scene and phrase were recorded; writes the picture, the phrase's mask, and its part of both records."""
    from probe.capture.denoising import noise_and_record
    from probe.lab.scenes import scene

    example = scene(SCENE)
    phrase = example.phrases[PHRASE]
    spans = [(one.start, one.end) for one in example.phrases]
    found = {
        "clip": probe.contributions(clip, example.image, spans, text=example.caption),
        "diffusion": noise_and_record(diffusion, example.image, example.caption, timesteps=TIMESTEPS, seed=SEED).record,
    }
    for name, one in found.items():
        probe.save(one[phrase.text], data / f"encoders-{name}.safetensors")
    example.image.save(data / "encoders.png")
    Image.fromarray(255 * phrase.mask.astype(np.uint8)).save(data / "encoders-mask.png")
    return {"scene": SCENE, "caption": example.caption, "phrase": phrase.text, "phrases": len(spans)}


def write_table(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n")


def draw(data: Path = DATA, out: Path = HERE / "encoders") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "encoders.json").read_text(encoding="utf-8"))
    tables = {name: pd.read_csv(data / f"encoders-{name}.csv") for name in ("clip", "diffusion", "timesteps")}
    records = {name: probe.load(data / f"encoders-{name}.safetensors") for name in ("clip", "diffusion")}
    image = probe.read_image(data / "encoders.png")
    mask = np.asarray(Image.open(data / "encoders-mask.png")) > 0
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(HEIGHTS), WIDTH))
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=HEIGHTS)
        left, right = top.subfigures(1, 2, width_ratios=[1.12, 1])
        heading(left, f"a  CLIP: parts of its similarity with {facts['phrase']!r}")
        draw_heads(left, records["clip"], image, mask)
        heading(right, "b  How often each head points at its phrase")
        draw_grid(right.subplots(), head_table(tables["clip"]))
        heading(middle, f"c  U-Net: cross-attention of the words {facts['phrase']!r}, as noise is put on the image")
        strip = middle.subplots(1, len(facts["timesteps"]))
        probe.plots.filmstrip(
            records["diffusion"], facts["phrase"], image, over="timestep", mask=mask, axes=strip, smooth=False
        )
        left, right = bottom.subfigures(1, 2, width_ratios=[1.12, 1])
        heading(left, "d  How often the mean map points, by noise")
        draw_curve(left.subplots(), tables["timesteps"], oracle=row_of(tables["diffusion"], "oracle_patch"))
        heading(right, "e  Each layer (mean over its heads)")
        draw_layers(right.subplots(), tables["diffusion"])
        bottom.supxlabel(note(facts, tables), fontsize=6, color="0.4", parse_math=False)
        return probe.plots.save_figure(figure, out)


def heading(part: Any, text: str) -> None:
    part.suptitle(text, x=0.005, ha="left", fontsize=8, fontweight="bold", parse_math=False)


def draw_heads(part: Any, record: probe.AttentionRecord, image: Image.Image, mask: np.ndarray) -> None:
    """Draws the phrase's map of every layer (row) and head (col), all on one scale with 0 in its middle."""
    heads = record.layers[0].heads
    axes = part.subplots(len(record.layers), len(heads))
    maps = [
        [phrase_map(record.select(layers=i, heads=j), reading="minus mean", view=None) for j in range(len(heads))]
        for i in range(len(record.layers))
    ]
    every = [one for row in maps for one in row]
    scale, pixels = map_limits(None, every), muted_pixels(image, record.image_size)
    outline = mask_pixels(mask, record.image_size)
    for (i, j), ax in np.ndenumerate(axes):
        draw_map(ax, maps[i][j], pixels, outline, scale, smooth=False, title=f"head {heads[j]}" if i == 0 else "")
        ax.set_ylabel(f"layer {i}" if j == 0 else "")
    shared_bar(list(axes.flat), scale, every, pixels, location="bottom", notes=("outline: true mask",))


def draw_grid(ax: Axes, table: pd.DataFrame) -> None:
    probe.plots.heads(table, metric=METRIC, ax=ax)
    ax.set_title("")


def head_table(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["metric"] == METRIC]


def draw_curve(ax: Axes, table: pd.DataFrame, *, oracle: pd.Series) -> None:
    ax.axhline(oracle["value"], color="0.6", linewidth=0.8, linestyle=(0, (5, 2)), label="oracle patch", zorder=0)
    probe.plots.emergence(table, ax=ax)
    ax.set_title("")
    ax.set_ylim(0, 1.04)


def draw_layers(ax: Axes, table: pd.DataFrame) -> None:
    """Draws each layer's pointing at each timestep, of the mean of its heads."""
    each = table[table["kind"] == "head at timestep"]
    # The grid of heads, with timesteps where heads would be.
    probe.plots.heads(pd.concat([each.assign(kind="head", head=each["timestep"]), chance_of(table)]), ax=ax)
    ax.set_title("")
    names = list(dict.fromkeys(each["name"]))
    ax.set_yticks(range(len(names)), [short_name(one) for one in names])
    ax.set(xlabel="timestep", ylabel="")


def chance_of(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["name"] == "chance") & (table["metric"] == METRIC)]


def short_name(path: str) -> str:
    """ "down 0", "mid" or "up 1.0": the block, and which attention in it."""
    block, *rest = path.split("_block", 1)
    numbers = [one for one in path.split(".") if one.isdigit()]
    return f"{block} {'.'.join(numbers[:2])}" if rest and numbers and block != "mid" else block


def row_of(table: pd.DataFrame, name: str) -> pd.Series:
    return table[(table["metric"] == METRIC) & (table["name"] == name)].iloc[0]


def interval(row: pd.Series) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def note(facts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> str:
    """What stands below the picture: who, how many, what was read, and what chance and an oracle reach."""
    clip, unet = tables["clip"], tables["diffusion"]
    lines = [
        f"CLIP has no attention from text to patches: contributions, minus their mean over the {facts['phrases']} phrases."
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"measure {CLIP} and {DIFFUSION} again first")
    if parser.parse_args().record:
        record()
    elif not (DATA / "encoders.json").exists():
        sys.exit(f"{DATA} holds no tables yet; run: python figures/encoders.py --record")
    matplotlib.use("Agg")
    for path in draw():
        print(path)


if __name__ == "__main__":
    main()
