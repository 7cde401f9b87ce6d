"""Draws ``figures/encoders.png`` and ``.pdf``: one phrase seen by CLIP and by a diffusion model, and how well each points at it.

``python figures/encoders.py`` draws and needs no model; with ``--measure`` it first measures lab/clip and lab/diffusion again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from PIL import Image

import probe
from probe.figure_scripts import run_script
from probe.plots.maps import mask_pixels, muted_pixels, phrase_map
from probe.plots.overlays import draw_map, map_limits, shared_bar
from probe.plots.panels import SMALLEST, heading, interval
from probe.plots.styles import DOUBLE_COLUMN

TABLES = ("clip", "diffusion", "timesteps")
READS = (
    *(f"encoders-{name}.csv" for name in TABLES),
    "encoders.json",
    "encoders.png",
    "encoders-mask.png",
    "encoders-clip.safetensors",
    "encoders-diffusion.safetensors",
)
CLIP, DIFFUSION = "lab/clip", "lab/diffusion"
SCENES = 200
#: The first test scene without purple and orange, which are the colours of contributions; and the last of its phrases.
SCENE, PHRASE = 1, -1
#: Numbers of the scheduler's 1,000, from hardly any noise to hardly any image; one draw, the same for every scene.
TIMESTEPS = (1, 100, 200, 300, 500, 700, 900)
SEED = 0
METRIC = "pointing"
#: What stands below the maps of single heads.
PARTS = "CLIP has no attention from text to patches: contributions minus their mean over the phrases"
HEIGHTS = (3.6, 2.0, 2.5)  # of the three rows, in inches


def measure(data: Path, *, scenes: int = SCENES) -> None:
    """Writes everything that ``draw`` reads: image, mask, both records, and the tables of scores."""
    from probe.evaluation.lab import read_lab
    from probe.kinds import examples_denoised
    from probe.reports import tracked
    from probe.runs import score_examples, threads_for

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


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    facts = json.loads((data / "encoders.json").read_text(encoding="utf-8"))
    tables = {name: pd.read_csv(data / f"encoders-{name}.csv") for name in TABLES}
    records = {name: probe.load(data / f"encoders-{name}.safetensors") for name in ("clip", "diffusion")}
    image = probe.read_image(data / "encoders.png")
    mask = np.asarray(Image.open(data / "encoders-mask.png")) > 0
    phrase, layers = facts["phrase"], by_timestep(tables["diffusion"])
    highest = max(table[table["kind"] == "head"]["value"].max() for table in (tables["clip"], layers))
    limits = (0.0, float(np.ceil(10 * highest) / 10))  # one scale for both grids
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(HEIGHTS), DOUBLE_COLUMN))
        top, middle, bottom = figure.subfigures(3, 1, height_ratios=HEIGHTS)
        left, right = top.subfigures(1, 2, width_ratios=[1.5, 1])
        heading(left, f"a  CLIP: parts of its similarity with {quoted(phrase)}")
        draw_parts(left, records["clip"], image, mask)
        heading(right, "b  CLIP: how often heads point right")
        draw_grid(right.subplots(), tables["clip"], limits=limits)
        heading(middle, f"c  U-Net: cross-attention to {quoted(phrase)}, the more noise the further right")
        strip = middle.subplots(1, len(facts["timesteps"]))
        probe.plots.filmstrip(records["diffusion"], phrase, image, over="timestep", mask=mask, axes=strip, smooth=False)
        left, right = bottom.subfigures(1, 2, width_ratios=[1, 1.12])
        heading(left, "d  U-Net: how often its mean map points right")
        draw_curve(left.subplots(), tables["timesteps"], oracle=row_of(tables["diffusion"], "oracle_patch"))
        heading(right, "e  U-Net: each layer, mean over heads")
        ax = right.subplots()
        draw_grid(ax, layers, limits=limits, across="timestep")
        ax.set_yticks(range(len(records["diffusion"].layers)), [described(one) for one in records["diffusion"].layers])
        ax.set_ylabel("")
        return probe.plots.save_figure(figure, out)


def quoted(words: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{words}\N{RIGHT DOUBLE QUOTATION MARK}"


def draw_parts(part: Any, record: probe.AttentionRecord, image: Image.Image, mask: np.ndarray) -> None:
    """Draws the image and the sum over all heads, and beside them each layer (row) and head (col), on one scale around 0."""
    heads = record.layers[0].heads
    shape = (len(record.layers), len(heads))
    each = [
        replace(phrase_map(record.select(layers=i, heads=j), reading="minus mean", view=None), label=PARTS, detail="")
        for i, j in np.ndindex(shape)
    ]
    total = replace(each[0], values=np.sum([one.values for one in each], axis=0), label="their sum")
    pixels, outline = muted_pixels(image, record.image_size), mask_pixels(mask, record.image_size)
    left, right = part.subfigures(1, 2, width_ratios=[1, 2.9])
    shown, summed = left.subplots(2, 1)
    shown.imshow(np.asarray(image), extent=(0, image.width, image.height, 0))
    shown.set(xticks=[], yticks=[], title="the image")
    shown.spines[:].set(visible=True, color="0.6")
    # A scale of its own: a sum of many parts would leave each of them pale.
    scale = map_limits(None, [total])
    draw_map(summed, total, pixels, outline, scale, smooth=False, title=f"all {len(each)} heads")
    shared_bar([summed], scale, [total], pixels, location="bottom")
    scale = map_limits(None, each)
    axes = right.subplots(*shape)
    for (i, j), one in zip(np.ndindex(shape), each, strict=True):
        draw_map(axes[i, j], one, pixels, outline, scale, smooth=False, title=f"head {heads[j]}" if i == 0 else "")
        axes[i, j].set_ylabel(f"layer {i}" if j == 0 else "")
    notes = ("one scale; outline: true mask",)
    shared_bar(list(axes.flat), scale, each, pixels, location="bottom", notes=notes)


def draw_grid(ax: Axes, table: pd.DataFrame, *, limits: tuple[float, float], across: str = "head") -> None:
    probe.plots.heads(table, metric=METRIC, ax=ax, limits=limits, intervals=False)
    ax.set(title="", xlabel=across)


def by_timestep(table: pd.DataFrame) -> pd.DataFrame:
    """The table of each layer at each timestep, with the timestep where the grid of heads has the head; and chance."""
    each = table[table["kind"] == "head at timestep"]
    chance = table[(table["metric"] == METRIC) & (table["name"] == "chance")]
    return pd.concat([each.assign(kind="head", head=each["timestep"]), chance], ignore_index=True)


def described(layer: probe.LayerAttention) -> str:
    """A U-Net's block, which attention in it, and its patches: "down 0.0 16x16", "mid 4x4"."""
    block, rest = layer.name.split("_block", 1)
    numbers = [one for one in rest.split(".") if one.isdigit()]
    name = block if block == "mid" else f"{block} {'.'.join(numbers[:2])}"
    return f"{name} {layer.grid.shape[0]}\N{MULTIPLICATION SIGN}{layer.grid.shape[1]}"


def draw_curve(ax: Axes, table: pd.DataFrame, *, oracle: pd.Series) -> None:
    probe.plots.emergence(table, ax=ax)
    ax.axhline(oracle["value"], color="0.6", linewidth=0.8, linestyle=(0, (5, 2)), label="oracle patch", zorder=0)
    ax.set(title="", ylim=(0, 1.04))
    # Below the curve is room.
    look: dict[str, Any] = {"fontsize": SMALLEST, "title_fontsize": SMALLEST, "alignment": "left"}
    ax.legend(loc="center left", bbox_to_anchor=(0.01, 0.33), title="filled: beats floor and chance", **look)


def row_of(table: pd.DataFrame, name: str) -> pd.Series:
    return table[(table["metric"] == METRIC) & (table["name"] == name)].iloc[0]


def caption(data: Path) -> str:
    """Who, how many, what was read, and what chance and an oracle reach."""
    facts = json.loads((data / "encoders.json").read_text(encoding="utf-8"))
    tables = {name: pd.read_csv(data / f"encoders-{name}.csv") for name in ("clip", "diffusion")}
    rows = {name: row_of(table, "minus_mean") for name, table in tables.items()}
    beside = {
        name: " and ".join(
            f"{one.split('_')[0]} {row_of(table, one)['value']:.2f}" for one in ("chance", "oracle_patch")
        )
        for name, table in tables.items()
    }
    heads = pd.concat([table[table["kind"].isin(["head", "head at timestep"])] for table in tables.values()])
    widest = max((heads["high"] - heads["value"]).max(), (heads["value"] - heads["low"]).max())
    return (
        f"One phrase, {quoted(facts['phrase'])} of {quoted(facts['caption'])} (scene {facts['scene']} of the test split), seen "
        f"by {facts['clip']} (a) and by {facts['diffusion']} (c), and how often they point right (b, d, e) on "
        f"{rows['clip']['images']:,} unseen scenes with {rows['clip']['phrases']:,} phrases. CLIP has no attention from text to "
        "patches: a and b are of contributions, signed parts of its own similarity, minus their mean over the caption's "
        "phrases; c to e are of attention minus its mean over the caption's words. Maps of all layers and heads point right "
        f"{interval(rows['clip'])} of the time (CLIP; {beside['clip']}) and {interval(rows['diffusion'])} (U-Net, mean of these "
        f"timesteps; {beside['diffusion']}); intervals of 95 % by bootstrap over scenes, in b and e no further than {widest:.2f} "
        f"either way. Timesteps are of 1,000, the last all noise; one draw of noise (seed {facts['seed']}), the same for every "
        "scene. A patch counts by its centre."
    )


if __name__ == "__main__":
    run_script(__file__)
