"""Draws ``figures/ablation.png`` and ``.pdf``: what taking heads of lab/llava away costs, from a saved table.

``python figures/ablation.py`` draws and needs no model; with ``--measure`` it first measures lab/llava again: the best head is
chosen on scenes of one seed, and what its absence changes is measured on scenes of another.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.figure_scripts import run_script
from probe.plots.panels import SMALLEST, interval, true_minus
from probe.plots.styles import DOUBLE_COLUMN

READS = ("ablation.csv", "ablation.json")
MODEL, PROMPT, METRIC = "lab/llava", "Describe the image.", "pointing"
SCENES, REFERENCE = 500, 100
#: Seeds of the test scenes that the best head is chosen on, and of those that changes are measured on; of the random draw.
CHOSEN_ON, MEASURED_ON, DRAWN_BY = 1, 0, 0
#: How heads are taken away -> what the legend says.
LABELS = {"zero": "replaced by zero", "mean": "by their mean over {reference}", "uniform": "looking everywhere alike"}
PANELS = {"log-probability": "change in a phrase's log-probability (nats)", "pointing": "change in pointing accuracy"}
HEIGHT = 2.9  # inches


def measure(data: Path, *, scenes: int = SCENES) -> None:
    """Writes everything that ``draw`` reads: the changes under every way of taking away, and how the heads were chosen."""
    from probe.capture.ablation import mean_outputs
    from probe.effects import ablation_effects
    from probe.evaluation.lab import read_lab
    from probe.lab.scenes import scenes as lab_scenes

    subject = probe.load_model(MODEL)
    facts = chosen_heads(subject, scenes)
    best, other = tuple(facts["best"]), tuple(facts["random"])
    plan = {f"best head, {best}": [best], f"random head, {other}": [other]}
    plan |= {
        f"all heads of layer {layer}": [(layer, head) for head in range(count)]
        for layer, count in enumerate(facts["heads"])
    }
    seen = ((one.image, PROMPT, one.caption) for one in lab_scenes(REFERENCE, split="train"))
    reference = mean_outputs(subject, seen, name=f"{REFERENCE} train scenes")
    parts = []
    for how in LABELS:
        examples = read_lab(limit=scenes, seed=MEASURED_ON)
        given = reference if how == "mean" else None
        parts.append(ablation_effects(subject, examples, plan, how=how, reference=given, prompt=PROMPT))
    pd.concat(parts).to_csv(data / "ablation.csv", index=False, lineterminator="\n")
    facts |= {"model": MODEL, "measured_on_seed": MEASURED_ON, "reference": reference.name}
    (data / "ablation.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def chosen_heads(subject: Any, scenes: int) -> dict[str, Any]:
    """The best head on scenes of a seed of their own, with its score on those that did not choose it, and a random other one."""
    from probe.evaluation.lab import read_lab
    from probe.runs import score_examples

    scores = score_examples(subject, read_lab(limit=scenes, seed=CHOSEN_ON), prompt=PROMPT, metric=METRIC)
    row = scores.top(1, split="held-out").iloc[0]
    best = (int(row["layer"]), int(row["head"]))
    # Not of the last layer: nothing comes after it whose looking could change.
    others = [(layer, head) for layer, heads in enumerate(scores.heads[:-1]) for head in heads if (layer, head) != best]
    held_out = {key: float(row[key]) for key in ("value", "low", "high")}
    counts = {"chosen_on_scenes": scenes - int(row["images"]), "held_out_scenes": int(row["images"])}
    drawn = {"random": random.Random(DRAWN_BY).choice(others), "random_seed": DRAWN_BY}
    settings = {"metric": METRIC, "chosen_on_seed": CHOSEN_ON, "heads": [len(one) for one in scores.heads]}
    return {"best": best, "held_out": held_out} | counts | drawn | settings


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    rows = pd.read_csv(data / "ablation.csv")
    facts = json.loads((data / "ablation.json").read_text(encoding="utf-8"))
    with probe.plots.style():
        figure = probe.plots.new_figure((HEIGHT, DOUBLE_COLUMN))
        axes = figure.subplots(1, len(PANELS), sharey=True)
        for ax, effect, letter in zip(axes, PANELS, "ab", strict=True):
            panel(ax, rows[rows["effect"] == effect], last=len(facts["heads"]) - 1, reference=facts["reference"])
            ax.set_title(f"{letter}  {PANELS[effect]}", loc="left")
        axes[0].invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(LABELS))
        return probe.plots.save_figure(figure, out)


def panel(ax: Axes, rows: pd.DataFrame, *, last: int, reference: str) -> None:
    """Draws one effect: a point and an interval for each ablation and each way of taking away."""
    names = list(rows["ablation"].unique())
    for number, (how, marker) in enumerate(zip(LABELS, "osD", strict=True)):
        part = rows[rows["how"] == how].set_index("ablation").loc[names]
        place = [index + (number - 1) * 0.22 for index in range(len(names))]
        errors = [part["change"] - part["low"], part["high"] - part["change"]]
        ax.errorbar(
            part["change"], place, xerr=errors, fmt=marker, markersize=3, label=LABELS[how].format(reference=reference)
        )
    for index, name in enumerate(names):
        if index % 2:
            ax.axhspan(index - 0.5, index + 0.5, color="0.96", linewidth=0, zorder=-1)
        if rows["effect"].iloc[0] == "pointing" and name.endswith(f"layer {last}"):
            why = {"xytext": (-8, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
            ax.annotate("none possible: no layer follows", (0, index), fontsize=SMALLEST, color="0.4", **why)
    ax.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.5, len(names) - 0.5)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)
    ax.xaxis.set_major_formatter(true_minus)


def caption(data: Path) -> str:
    """Who, how many, how the heads were chosen, and what pointing is of."""
    rows = pd.read_csv(data / "ablation.csv")
    facts = json.loads((data / "ablation.json").read_text(encoding="utf-8"))
    one, before = rows.iloc[0], rows.groupby("effect")["before"].first()
    return (
        f"What taking heads of {facts['model']} away costs, in (a) the log-probability of a phrase and (b) pointing: "
        f"{one['phrases']:,} phrases of {one['images']:,} unseen scenes (seed {facts['measured_on_seed']}), each read with and "
        "without the heads; bars: 95 % intervals by bootstrap over scenes. As it is: log-probability "
        f"{before['log-probability']:.2f}, pointing {before['pointing']:.2f}. Pointing is of the map of all layers and heads "
        f"minus its mean, so that only layers after the silenced ones can change it. Best head: of highest {facts['metric']} on "
        f"{facts['chosen_on_scenes']} other scenes (seed {facts['chosen_on_seed']}), and {interval(facts['held_out'])} on "
        f"{facts['held_out_scenes']} held out. Random head: a draw from the others before the last layer."
    )


if __name__ == "__main__":
    run_script(__file__)
