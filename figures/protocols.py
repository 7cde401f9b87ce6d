"""Draws ``figures/protocols.png`` and ``.pdf``: recall by matching, and refiners of the same maps, under published protocols.

``python figures/protocols.py`` draws from the shipped table and needs no model; with ``--measure FOLDER`` the evaluations are run
first (about a quarter of an hour on two quiet cores).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import probe

HERE = Path(__file__).parent
DATA = HERE / "data"
MODELS = {"lab/llava": "#0072B2", "lab/difflmm": "#009E73"}
REFINERS = ("threshold", "superpixels", "lab/sam")
SCENES = 300
MATCHINGS = ("recall, legacy", "recall, greedy", "recall, optimal")
#: Control -> its marker in a.
CONTROLS = {"shuffled": "x", "other phrase": "+", "centre box": "1", "oracle masks": "^", "oracle words": "v"}
#: Protocol -> the measure that refiners are compared by.
MEASURES = {"gcg": "recall, greedy", "res": "gIoU", "png": "average recall"}
WIDTH = 6.9  # inches: both columns of a paper
SMALL = 6


def measure(work: Path, data: Path = DATA, *, scenes: int = SCENES) -> None:
    """Writes ``protocols.csv`` into ``data``: every measure and control of every model, protocol and refiner.

    Maps and masks are kept in ``work``, where a measurement that was stopped goes on.
    """
    from probe.protocols.evaluation import Evaluated, evaluate
    from probe.protocols.plans import EvaluationPlan, Protocol

    data.mkdir(parents=True, exist_ok=True)
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


def draw(data: Path = DATA, out: Path = HERE / "protocols") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table in ``data``."""
    table = pd.read_csv(data / "protocols.csv", keep_default_na=False, na_values=[""], dtype={"control": str})
    table["control"] = table["control"].fillna("")
    with probe.plots.style():
        figure = probe.plots.new_figure((4.6, WIDTH))
        above, below, foot = figure.subfigures(3, 1, height_ratios=[1.9, 1.9, 0.65])
        _heading(above, "a  Recall of grounded phrases by matching, masks by lab/sam, with controls")
        for ax, model in zip(above.subplots(1, 2, sharey=True), MODELS, strict=True):
            draw_matchings(ax, table, model)
        _heading(below, "b  Refiners on the same maps: grounded conversations, expressions, narratives")
        for ax, name in zip(below.subplots(1, 3, sharey=True), MEASURES, strict=True):
            draw_refiners(ax, table, name)
        foot.text(0.005, 0.98, note(table), fontsize=SMALL, color="0.4", va="top", parse_math=False)
        return probe.plots.save_figure(figure, out)


def _heading(part: Any, text: str) -> None:
    part.suptitle(text, x=0.005, ha="left", fontsize=8, fontweight="bold", parse_math=False)


def draw_matchings(ax: Axes, table: pd.DataFrame, model: str) -> None:
    """Recall by each matching with its interval, and its controls as marks."""
    part = table[(table["model"] == model) & (table["protocol"] == "gcg") & (table["refiner"] == "lab/sam")]
    for place, measure_name in enumerate(MATCHINGS):
        rows = part[part["measure"] == measure_name].set_index("control")
        own = rows.loc[""]
        ax.plot(
            [own["low"], own["high"]], [place] * 2, color=MODELS[model], linewidth=3, alpha=0.35, solid_capstyle="butt"
        )
        ax.plot(own["value"], place, "o", color=MODELS[model], markersize=4)
        ax.annotate(
            f"{own['value']:.2f}", (own["value"], place - 0.3), ha="center", fontsize=SMALL, color=MODELS[model]
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
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.34, -0.02), fontsize=SMALL, ncols=1)


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
            ax.plot(own["value"], at, "o", color=colour, markersize=3.5, label=model if place == 0 else None)
            ax.plot([chance["low"], chance["high"]], [at] * 2, color="0.5", linewidth=0.8)
            ax.plot(chance["value"], at, "x", color="0.3", markersize=3, mew=0.9)
    ax.set_yticks(range(len(REFINERS)), list(REFINERS))
    ax.set(ylim=(len(REFINERS) - 0.5, -0.5), xlim=(-0.03, 1.0), xlabel=f"{protocol}: {name}")
    ax.tick_params(axis="y", length=0)
    if protocol == "png":
        ax.legend(loc="upper left", bbox_to_anchor=(0.1, 1.0), fontsize=SMALL)


def note(table: pd.DataFrame) -> str:
    """What stands below the picture: who, how many, how, and what it does not say."""
    gcg = table[(table["protocol"] == "gcg") & (table["control"] == "")]
    images = int(np.nanmax(gcg["images"]))
    phrases = int(gcg[gcg["measure"] == "recall, greedy"]["phrases"].max())
    parts = [
        f"{images} scenes with {phrases} phrases that neither model has seen, one training of each; bars: 95 % intervals "
        "by bootstrap over scenes. Similarity: shared words, not the published BERT. Published matching stops at the first "
        "pair that does not pass, and loses what greedy matching finds after it.",
        "Controls: shuffled, another scene's masks and words; other phrase, its mask; centre box, of the mask's area; "
        "oracle masks and words, what is lost to words and to masks alone.",
        "Crosses in b: shuffled. How expressions are read (res) was chosen on 30 of these scenes.",
    ]
    return textwrap.fill(" ".join(parts), 150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--measure", metavar="FOLDER", help="run the evaluations first, with maps and masks kept in FOLDER"
    )
    if folder := parser.parse_args().measure:
        measure(Path(folder))
    elif not (DATA / "protocols.csv").exists():
        sys.exit(f"{DATA} holds no table yet; run: python figures/protocols.py --measure")
    matplotlib.use("Agg")
    for path in draw():
        print(path)


if __name__ == "__main__":
    main()
