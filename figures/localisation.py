"""Draws ``figures/localisation.png`` and ``.pdf``: how often every head of every small model points right.

``python figures/localisation.py`` draws from the saved table and needs no model; with ``--measure`` all models read the same scenes
again first (about ten minutes on one quiet core).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import probe
from probe.figure_scripts import run_script
from probe.plots.grids import text_colour
from probe.plots.panels import SMALLEST, interval
from probe.plots.styles import DOUBLE_COLUMN, literal

READS = ("localisation.csv",)
#: As the panels stand: what speaks about an image, and below it the rest.
SYSTEMS = (
    "lab/llava",
    "lab/llava-clip",
    "lab/difflmm",
    "lab/difflmm-clip",
    "lab/difflmm-diffusion",
    "lab/clip",
    "lab/diffusion",
)
METRIC, READING = "pointing", "minus mean"
SCENES = 200
COLUMNS = 4
HEIGHT = 3.7  # inches
#: Every grid on one scale, whose ends do not depend on what was measured.
LIMITS = (0.0, 1.0)


def measure(data: Path, *, scenes: int = SCENES) -> None:
    """Writes ``localisation.csv`` into ``data``: heads, readings and controls of every system on the same scenes."""
    from probe.evaluation.lab import read_lab
    from probe.reports import tracked
    from probe.runs import score_examples

    examples, parts = list(read_lab(limit=scenes)), []
    for name in SYSTEMS:
        seen = tracked(examples, what=name, total=scenes)
        scores = score_examples(probe.load_model(name), seen, metric=METRIC, reading=READING)  # type: ignore[arg-type]
        frame = scores.to_frame()
        parts.append(frame[frame["kind"].isin(["head", "reading", "held-out", "control"])].assign(system=name))
    for one in parts:
        one.attrs.clear()  # tables are only put together where these agree
    columns = ["system", "kind", "name", "layer", "head", "value", "low", "high", "images", "phrases"]
    table = pd.concat(parts, ignore_index=True)[columns]
    table.to_csv(data / "localisation.csv", index=False, lineterminator="\n", float_format="%.7g")


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table in ``data``."""
    table = pd.read_csv(data / "localisation.csv")
    with probe.plots.style():
        figure = probe.plots.new_figure((HEIGHT, DOUBLE_COLUMN))
        axes = list(figure.subplots(2, COLUMNS, height_ratios=[1, 1.35]).flat)
        for place, (ax, name) in enumerate(zip(axes, SYSTEMS, strict=False)):
            drawn = draw_grid(ax, table[(table["system"] == name) & (table["kind"] == "head")], name)
            ax.set_ylabel("layer" if place % COLUMNS == 0 else "")
        for spare in axes[len(SYSTEMS) :]:
            spare.set_axis_off()
        # Inside the place of an eighth grid, so that the bar takes room from none of them.
        bar = figure.colorbar(drawn, cax=axes[-1].inset_axes((0.1, 0.05, 0.12, 0.9)))
        bar.outline.set_linewidth(0.5)
        bar.set_label(f"{METRIC}, {READING}", fontsize=8)
        return probe.plots.save_figure(figure, out)


def draw_grid(ax: Axes, heads: pd.DataFrame, name: str) -> Any:
    """The image of one system's grid: a cell for each layer (row) and head (col), its value written in, the highest outlined."""
    grid = heads.pivot(index="layer", columns="head", values="value")
    drawn = ax.imshow(grid, vmin=LIMITS[0], vmax=LIMITS[1], aspect="auto")
    for (row, col), value in np.ndenumerate(grid.to_numpy()):
        colour = text_colour(drawn.cmap(drawn.norm(value)))
        ax.text(col, row, f"{value:.2f}".removeprefix("0"), fontsize=SMALLEST, color=colour, ha="center", va="center")
    row, col = np.unravel_index(np.nanargmax(grid), grid.shape)
    ax.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=2.4, clip_on=False))
    ax.add_patch(Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.0, clip_on=False))
    for axis, places in ((ax.xaxis, grid.columns), (ax.yaxis, grid.index)):
        axis.set_ticks(range(len(places)), [f"{one:.0f}" for one in places])
    ax.set_xlabel("head")
    literal(ax.set_title(name))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return drawn


def caption(data: Path) -> str:
    """Who, how many, what was read, and what the best head reaches where it was not chosen."""
    table = pd.read_csv(data / "localisation.csv")
    heads = table[table["kind"] == "head"]
    widest = max((heads["high"] - heads["value"]).max(), (heads["value"] - heads["low"]).max())
    held = table[(table["kind"] == "held-out") & table["name"].str.startswith("best_head")].set_index("system")
    controls = table[table["kind"] == "control"].groupby("name")["value"]
    low, high = controls.min()["oracle_patch"], controls.max()["oracle_patch"]
    best = "; ".join(f"{name} {interval(held.loc[name])}" for name in SYSTEMS)
    return (
        "How often each head of each small model points right, after its mean over the answer or caption is subtracted (Eq. 3): "
        f"{int(table['phrases'].max())} phrases of the same {int(table['images'].max())} unseen scenes for all, on each layer's "
        "own patches, one training of each model; the highest head is outlined. 95 % intervals by bootstrap over scenes reach "
        f"no further than {widest:.2f} either way. The best head, chosen on one half of the scenes and measured on the other: "
        f"{best}. Chance {controls.max()['chance']:.2f}; the best patch {low:.2f} to {high:.2f}. Of lab/clip, which has no "
        "attention from text to patches, these are contributions of patches to its similarity with the phrase; of lab/diffusion "
        "text cross-attention at timestep 100."
    )


if __name__ == "__main__":
    run_script(__file__)
