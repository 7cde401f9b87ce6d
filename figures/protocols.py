"""Draws ``figures/protocols.png`` and ``.pdf``: recall by matching, and refiners of the same maps, under published protocols.

``python figures/protocols.py`` draws from the shipped table and needs no model; with ``--measure`` the evaluations are run
first (about a quarter of an hour on two quiet cores); one that was stopped goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.figure_scripts import run_script
from probe.plots.panels import SMALLEST, heading
from probe.plots.styles import DOUBLE_COLUMN

READS = ("protocols.csv",)
#: Where maps and masks are kept while they are measured.
WORK = Path("runs/protocols")
MODELS = {"lab/llava": "#0072B2", "lab/difflmm": "#009E73"}
MARKERS = dict(zip(MODELS, "os", strict=True))
REFINERS = ("threshold", "superpixels", "lab/sam")
SCENES = 300
MATCHINGS = ("recall, legacy", "recall, greedy", "recall, optimal")
#: Control -> its marker in a.
CONTROLS = {"shuffled": "x", "other phrase": "+", "centre box": "1", "oracle masks": "^", "oracle words": "v"}
#: Protocol -> the measure that refiners are compared by.
MEASURES = {"gcg": "recall, greedy", "res": "gIoU", "png": "average recall"}


def measure(data: Path, work: Path = WORK, *, scenes: int = SCENES) -> None:
    """Writes ``protocols.csv`` into ``data``: every measure and control of every model, protocol and refiner.

    Maps and masks are kept in ``work``, where a measurement that was stopped goes on.
    """
    from probe.protocols.evaluation import Evaluated, evaluate
    from probe.protocols.plans import EvaluationPlan, Protocol

    tables = []
    vary = [f"refiner={','.join(REFINERS)}"]
    for model in MODELS:
        for name in MEASURES:
            plan = EvaluationPlan(data="lab", model=model, limit=scenes)
            found = evaluate(Protocol(name), plan, work / f"{model.removeprefix('lab/')}-{name}", vary=vary)
            assert isinstance(found, Evaluated)
            for read, scores in found.scores.items():
                tables.append(scores.summary.assign(model=model, protocol=name, refiner=read.refiner))
            print(model, name, file=sys.stderr)
    table = pd.concat(tables, ignore_index=True).drop(columns="what")
    table.to_csv(data / "protocols.csv", index=False, lineterminator="\n", float_format="%.7g")


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table in ``data``."""
    table = read_table(data)
    with probe.plots.style():
        figure = probe.plots.new_figure((3.9, DOUBLE_COLUMN))
        above, below = figure.subfigures(2, 1)
        heading(above, "a  Recall of grounded phrases by matching, masks by lab/sam, with controls")
        for ax, model in zip(above.subplots(1, 2, sharey=True), MODELS, strict=True):
            draw_matchings(ax, table, model)
        heading(below, "b  Refiners on the same maps: grounded conversations, expressions, narratives")
        for ax, name in zip(below.subplots(1, 3, sharey=True), MEASURES, strict=True):
            draw_refiners(ax, table, name)
        return probe.plots.save_figure(figure, out)


def read_table(data: Path) -> pd.DataFrame:
    """The table of ``data``, with an empty control where a row is of the prediction itself."""
    table = pd.read_csv(data / "protocols.csv", keep_default_na=False, na_values=[""], dtype={"control": str})
    return table.assign(control=table["control"].fillna(""))


def draw_matchings(ax: Axes, table: pd.DataFrame, model: str) -> None:
    """Recall by each matching with its interval, and its controls as marks."""
    part = table[(table["model"] == model) & (table["protocol"] == "gcg") & (table["refiner"] == "lab/sam")]
    for place, measure_name in enumerate(MATCHINGS):
        rows = part[part["measure"] == measure_name].set_index("control")
        own = rows.loc[""]
        ax.plot(
            [own["low"], own["high"]], [place] * 2, color=MODELS[model], linewidth=3, alpha=0.35, solid_capstyle="butt"
        )
        ax.plot(own["value"], place, MARKERS[model], color=MODELS[model], markersize=4)
        ax.annotate(
            f"{own['value']:.2f}", (own["value"], place - 0.3), ha="center", fontsize=SMALLEST, color=MODELS[model]
        )
        for control, marker in CONTROLS.items():
            row = rows.loc[control]
            ax.plot([row["low"], row["high"]], [place] * 2, color="0.5", linewidth=0.8)
            ax.plot(row["value"], place, marker, color="0.3", markersize=3.5, mew=0.9)
    ax.set_yticks(range(len(MATCHINGS)), [one.removeprefix("recall, ") for one in MATCHINGS])
    ax.set(ylim=(len(MATCHINGS) - 0.5, -0.6), xlim=(-0.03, 1.05), xlabel="mask recall")
    ax.tick_params(axis="y", length=0)
    ax.set_title(model, color=MODELS[model])
    if model == next(iter(MODELS)):
        handles = [
            ax.plot([], [], marker, color="0.3", markersize=3.5, mew=0.9, label=control)[0]
            for control, marker in CONTROLS.items()
        ]
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.34, -0.02), fontsize=SMALLEST, ncols=1)


def draw_refiners(ax: Axes, table: pd.DataFrame, protocol: str) -> None:
    """The protocol's measure for each refiner and model, and the same with another picture's masks."""
    name = MEASURES[protocol]
    part = table[(table["protocol"] == protocol) & (table["measure"] == name)]
    for number, (model, colour) in enumerate(MODELS.items()):
        for place, refiner in enumerate(REFINERS):
            rows = part[(part["model"] == model) & (part["refiner"] == refiner)].set_index("control")
            at = place + 0.3 * number - 0.15
            own, chance = rows.loc[""], rows.loc["shuffled"]
            ax.plot([own["low"], own["high"]], [at] * 2, color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
            ax.plot(own["value"], at, MARKERS[model], color=colour, markersize=3.5, label=model if place == 0 else None)
            ax.plot([chance["low"], chance["high"]], [at] * 2, color="0.5", linewidth=0.8)
            ax.plot(chance["value"], at, "x", color="0.3", markersize=3, mew=0.9)
    ax.set_yticks(range(len(REFINERS)), list(REFINERS))
    ax.set(ylim=(len(REFINERS) - 0.5, -0.5), xlim=(-0.03, 1.0), xlabel=f"{protocol}: {name}")
    ax.tick_params(axis="y", length=0)
    if protocol == "png":
        ax.legend(loc="upper left", bbox_to_anchor=(0.1, 1.0), fontsize=SMALLEST)


def caption(data: Path) -> str:
    """Who, how many, how, and what it does not say."""
    table = read_table(data)
    gcg = table[(table["protocol"] == "gcg") & (table["control"] == "")]
    images = int(np.nanmax(gcg["images"]))
    phrases = int(gcg[gcg["measure"] == "recall, greedy"]["phrases"].max())
    return (
        "Published protocols on small models: (a) recall of grounded conversations by three ways to match predictions with "
        "truths, masks by lab/sam, and (b) refiners on the same maps, for grounded conversations (gcg), referring expressions "
        f"(res) and panoptic narratives (png). {images} scenes with {phrases} phrases that neither model has seen, one training "
        "of each; bars: 95 % intervals by bootstrap over scenes. Similarity: shared words, not the published BERT. Published "
        "(legacy) matching stops at the first pair that does not pass, and loses what greedy matching finds after it. Controls: "
        "shuffled, another scene's masks and words; other phrase, its mask; centre box, of the mask's area; oracle masks and "
        "words, what is lost to words and to masks alone. Crosses in b: shuffled. How expressions are read (res) was chosen on "
        "30 of these scenes."
    )


if __name__ == "__main__":
    run_script(__file__)
