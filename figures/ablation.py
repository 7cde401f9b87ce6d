"""Draws ``figures/ablation.png`` and ``.pdf``: what taking heads of lab/llava away costs, from a saved table.

python figures/ablation.py              # draw; needs no model
python figures/ablation.py --record     # measure again with lab/llava, then draw
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

import probe

HERE = Path(__file__).parent
TABLE = HERE / "data" / "ablation.csv"
SCENES, REFERENCE = 150, 100
BEST, OTHER = (1, 4), (2, 5)
LABELS = {
    "zero": "replaced by zero",
    "mean": f"by its mean over {REFERENCE} train scenes",
    "uniform": "looking everywhere alike",
}


def measure(table: Path = TABLE) -> None:
    """Writes the table of changes, three ways of taking away, over unseen scenes."""
    from probe.capture.ablation import mean_outputs
    from probe.effects import ablation_effects
    from probe.evaluation.lab import read_lab
    from probe.lab.scenes import scenes

    subject, prompt = probe.load_model("lab/llava"), "Describe the image."
    plan = {f"best head held out, {BEST}": [BEST], f"another head, {OTHER}": [OTHER]}
    plan |= {f"all heads of layer {layer}": [(layer, head) for head in range(8)] for layer in range(4)}
    seen = ((one.image, prompt, one.caption) for one in scenes(REFERENCE, split="train"))
    reference = mean_outputs(subject, seen, name=f"{REFERENCE} train scenes")
    parts = []
    for how in LABELS:
        given = reference if how == "mean" else None
        parts.append(ablation_effects(subject, read_lab(limit=SCENES), plan, how=how, reference=given))
    table.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).to_csv(table, index=False, lineterminator="\n")


def draw(table: Path = TABLE, out: Path = HERE / "ablation") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table."""
    rows = pd.read_csv(table)
    with probe.plots.style():
        figure = probe.plots.new_figure((2.5, 6.9))
        left, right = figure.subplots(1, 2, sharey=True)
        panel(left, rows[rows["effect"] == "log-probability"], "change of a phrase's log-probability (nats)")
        panel(right, rows[rows["effect"] == "pointing"], "change of pointing, all heads minus mean")
        left.invert_yaxis()
        handles, labels = left.get_legend_handles_labels()
        count = rows.iloc[0]
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=3,
            frameon=False,
            title=f"lab/llava, {count['images']} unseen scenes, {count['phrases']} phrases; bars: 95 % intervals over scenes",
        )
        return probe.plots.save_figure(figure, out)


def panel(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    """Draws one effect: a point and an interval for each ablation and each way of taking away."""
    names = list(rows["ablation"].unique())
    for number, (how, marker) in enumerate(zip(LABELS, "osD", strict=True)):
        part = rows[rows["how"] == how].set_index("ablation").loc[names]
        place = [index + (number - 1) * 0.22 for index in range(len(names))]
        errors = [part["change"] - part["low"], part["high"] - part["change"]]
        ax.errorbar(part["change"], place, xerr=errors, fmt=marker, markersize=3.5, label=LABELS[how])
    ax.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel(title)
    ax.locator_params(axis="x", nbins=5)


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="measure again first")
    if parser.parse_args().record:
        measure()
    for path in draw():
        print(path)
