"""Draws ``figures/encoders.png`` and ``.pdf``: one phrase seen by CLIP and by a diffusion model, and how well each points at it.

``python figures/encoders.py`` draws and needs no model; with ``--record`` it first measures lab/clip and lab/diffusion again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
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
#: The test scene that is drawn, taken for its four shapes and colours, and which of its phrases, the only large one.
SCENE, PHRASE = 4, 3
#: Numbers of the scheduler's 1,000, from hardly any noise to hardly any image; one draw, the same for every scene.
TIMESTEPS = (1, 100, 200, 300, 500, 700, 900)
SEED = 0
METRIC = "pointing"
WIDTH = 6.9  # inches: both columns of a paper
HEIGHTS = (3.6, 1.85, 3.0)  # of the three rows, in inches


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

    found = examples_denoised(
        diffusion, tracked(examples, what="denoising", total=scenes), timesteps=TIMESTEPS, seed=SEED
    )
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
    phrase, layers = facts["phrase"], by_timestep(tables["diffusion"])
    highest = max(table[table["kind"] == "head"]["value"].max() for table in (tables["clip"], layers))
    limits = (0.0, float(np.ceil(10 * highest) / 10))  # one scale for both grids
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(HEIGHTS), WIDTH))
        rows = figure.subfigures(3, 1, height_ratios=HEIGHTS)
        left, right = rows[0].subfigures(1, 2, width_ratios=[1.4, 1])
        heading(
            left,
            f"a  CLIP: what patches add to its similarity with \N{LEFT DOUBLE QUOTATION MARK}{phrase}\N{RIGHT DOUBLE QUOTATION MARK}",
        )
        draw_parts(left, records["clip"], image, mask)
        heading(right, "b  CLIP: how often a head points right")
        draw_grid(right.subplots(), tables["clip"], limits=limits)
        heading(
            rows[1],
            f"c  U-Net: cross-attention to the words of \N{LEFT DOUBLE QUOTATION MARK}{phrase}\N{RIGHT DOUBLE QUOTATION MARK}, the more noise the further right",
        )
        strip = rows[1].subplots(1, len(facts["timesteps"]))
        probe.plots.filmstrip(records["diffusion"], phrase, image, over="timestep", mask=mask, axes=strip, smooth=False)
        left, right = rows[2].subfigures(1, 2, width_ratios=[1.2, 1])
        heading(left, "d  U-Net: how often its mean map points right")
        draw_curve(left.subplots(), tables["timesteps"], oracle=row_of(tables["diffusion"], "oracle_patch"))
        heading(right, "e  U-Net: each layer, mean over heads")
        draw_grid(right.subplots(), layers, limits=limits, across="timestep")
        figure.supxlabel(note(facts, tables), fontsize=6, color="0.4", parse_math=False)
        return probe.plots.save_figure(figure, out)


def heading(part: Any, text: str) -> None:
    part.suptitle(text, x=0.005, ha="left", fontsize=8, fontweight="bold", parse_math=False)


def draw_parts(part: Any, record: probe.AttentionRecord, image: Image.Image, mask: np.ndarray) -> None:
    """Draws the image, the sum over all heads, and each layer (row) and head (col), on one scale with 0 in its middle."""
    heads = record.layers[0].heads
    shape = (len(record.layers), len(heads))
    each = [
        replace(phrase_map(record.select(layers=i, heads=j), reading="minus mean", view=None), detail="")
        for i, j in np.ndindex(shape)
    ]
    # Parts of a sum: unlike a mean it lies on the scale of its parts.
    total = replace(each[0], values=sum(one.values for one in each))
    scale, pixels = map_limits(None, [total, *each]), muted_pixels(image, record.image_size)
    outline = mask_pixels(mask, record.image_size)
    half = shape[0] // 2
    grid = part.add_gridspec(shape[0], half + shape[1])
    shown = part.add_subplot(grid[:half, :half])
    shown.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
    shown.set(xticks=[], yticks=[], title="the image")
    shown.spines[:].set(visible=True, color="0.6")
    summed = part.add_subplot(grid[half:, :half])
    draw_map(summed, total, pixels, outline, scale, smooth=False, title=f"sum of all {len(each)} heads")
    drawn = [shown, summed]
    for (i, j), one in zip(np.ndindex(shape), each, strict=True):
        ax = part.add_subplot(grid[i, half + j])
        draw_map(ax, one, pixels, outline, scale, smooth=False, title=f"head {heads[j]}" if i == 0 else "")
        ax.set_ylabel(f"layer {i}" if j == 0 else "")
        drawn.append(ax)
    shared_bar(drawn, scale, [total, *each], pixels, location="bottom", notes=("one scale; outline: true mask",))


def draw_grid(ax: Axes, table: pd.DataFrame, *, limits: tuple[float, float], across: str = "head") -> None:
    probe.plots.heads(table, metric=METRIC, ax=ax, limits=limits)
    ax.set(title="", xlabel=across)
    names = list(dict.fromkeys(table[table["kind"] == "head"]["name"]))
    if across == "timestep":
        ax.set_yticks(range(len(names)), [short_name(one) for one in names])
        ax.set_ylabel("")


def by_timestep(table: pd.DataFrame) -> pd.DataFrame:
    """The table of each layer at each timestep, with the timestep where the grid of heads has the head; and chance."""
    each = table[table["kind"] == "head at timestep"]
    chance = table[(table["metric"] == METRIC) & (table["name"] == "chance")]
    return pd.concat([each.assign(kind="head", head=each["timestep"]), chance], ignore_index=True)


def short_name(path: str) -> str:
    """A U-Net's block, and which attention in it: "down 0.0", "mid" or "up 1.0"."""
    block, rest = path.split("_block", 1)
    numbers = [one for one in rest.split(".") if one.isdigit()]
    return block if block == "mid" else f"{block} {'.'.join(numbers[:2])}"


def draw_curve(ax: Axes, table: pd.DataFrame, *, oracle: pd.Series) -> None:
    probe.plots.emergence(table, ax=ax)
    ax.axhline(oracle["value"], color="0.6", linewidth=0.8, linestyle=(0, (5, 2)), label="oracle patch", zorder=0)
    ax.set(title="", ylim=(0, 1.04))
    # Below the curve is room, and the legend's own place is the note's.
    ax.legend(
        loc="center left",
        bbox_to_anchor=(0.01, 0.33),
        fontsize=6.5,
        title="filled: beats floor and chance",
        title_fontsize=6.5,
    )


def row_of(table: pd.DataFrame, name: str) -> pd.Series:
    return table[(table["metric"] == METRIC) & (table["name"] == name)].iloc[0]


def interval(row: pd.Series) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def note(facts: dict[str, Any], tables: dict[str, pd.DataFrame]) -> str:
    """What stands below the picture: who, how many, what was read, and what chance and an oracle reach."""
    clip, unet = (row_of(tables[name], "minus_mean") for name in ("clip", "diffusion"))
    known = {
        name: f"chance {row_of(tables[name], 'chance')['value']:.2f}, oracle patch {row_of(tables[name], 'oracle_patch')['value']:.2f}"
        for name in ("clip", "diffusion")
    }
    return "\n".join(
        [
            f"a, c: scene {facts['scene']} of the test split, \N{LEFT DOUBLE QUOTATION MARK}{facts['caption']}\N{RIGHT DOUBLE QUOTATION MARK}. CLIP has no attention from text to "
            f"patches: these are contributions, signed parts of its similarity.",
            f"b, d, e: {facts['clip']} and {facts['diffusion']}, {clip['phrases']:,} phrases of {clip['images']:,} unseen scenes; 95 % intervals over "
            f"scenes (of e in its table); one draw of noise (seed {facts['seed']}), the same for all.",
            f"Mean over all layers and heads: CLIP {interval(clip)} ({known['clip']}), U-Net, all timesteps, {interval(unet)} ({known['diffusion']}).",
            "Every map minus its mean: over the caption's phrases (CLIP), over its words (U-Net). Timesteps are of 1,000, from no noise to nothing else.",
        ]
    )


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
