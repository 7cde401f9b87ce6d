"""Draws ``figures/remedies.png`` and ``.pdf``: what answers to attention sinks gain on the same maps, and gradients beside them.

``python figures/remedies.py`` draws from the saved table and needs no model; with ``--measure`` lab/llava reads the scenes again
first (about four minutes on one quiet core).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.figure_scripts import run_script
from probe.plots.panels import shade_rows
from probe.plots.styles import DOUBLE_COLUMN

READS = ("remedies.csv",)
MODEL, PROMPT = "lab/llava", "Describe the image."
METRICS = {"pointing": "pointing", "auroc": "AUROC", "lift": "lift"}
SCENES, SEED = 250, 7
HEIGHT = 2.2  # inches
#: Remedy or gradient baseline -> what is written beside its row.
LABELS = {
    "none": "attention as it is",
    "minus mean": "minus mean (Eq. 3)",
    "generic prompt": "divided by a generic prompt's",
    "redistribution": "redistributed (VAR)",
    "dropped sinks": "sinks dropped",
    "chefer": "Chefer",
    "chefer, minus mean": "Chefer, minus mean",
    "legrad": "LeGrad",
    "legrad, minus mean": "LeGrad, minus mean",
}
GRADIENTS = {
    "chefer": "mean_map",
    "chefer, minus mean": "minus_mean",
    "legrad": "mean_map",
    "legrad, minus mean": "minus_mean",
}


def measure(data: Path, *, scenes: int = SCENES) -> None:
    """Writes ``remedies.csv`` into ``data``: every remedy and gradient baseline under every metric, on the same phrases."""
    from probe.analysis.remedies import score_remedies
    from probe.evaluation.lab import read_lab
    from probe.reports import tracked
    from probe.runs import records_of

    subject = probe.load_model(MODEL)
    examples = list(read_lab("lab", limit=scenes, seed=SEED))
    records, masks = zip(*records_of(subject, tracked(examples, what="attention", total=scenes)), strict=True)
    generic = (last_of_prompt(subject, one.image) for one in tracked(examples, what="generic prompt", total=scenes))
    tables = [score_remedies(records, masks, generic=generic, metric=tuple(METRICS))]
    sinks = tables[0].attrs["sinks"]
    for method in ("chefer", "legrad"):
        found = [
            probe.relevance(
                subject, one.image, one.text, [(part.start, part.end) for part in one.phrases], method=method
            )
            for one in tracked(examples, what=method, total=scenes)
        ]
        scores = probe.score_heads(found, masks, metric=tuple(METRICS), reading="attention")
        tables.append(pd.DataFrame(gradient_rows(scores, method)))
    table = pd.concat(tables, ignore_index=True).assign(model=MODEL, seed=SEED, sinks=sinks)
    table.to_csv(data / "remedies.csv", index=False, lineterminator="\n", float_format="%.7g")


def last_of_prompt(subject: Any, image: Any) -> probe.AttentionRecord:
    """Attention of the last row of a prompt that asks for nothing in particular."""
    record = probe.run(subject, image, PROMPT, queries="prompt").record
    return record.select(tokens=[len(record.tokens) - 1])


def gradient_rows(scores: probe.HeadScores, method: str) -> list[dict[str, Any]]:
    """Rows of the table for one gradient baseline, as it is and minus its mean over the phrases."""
    frame, rows = scores.to_frame(), []
    for metric, (name, reading) in product(METRICS, GRADIENTS.items()):
        if not name.startswith(method):
            continue
        row = frame[(frame["metric"] == metric) & (frame["name"] == reading)].iloc[0]
        rows.append({"metric": metric, "remedy": name} | row[["value", "low", "high", "images", "phrases"]].to_dict())
    return rows


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table in ``data``."""
    table = pd.read_csv(data / "remedies.csv")
    with probe.plots.style():
        figure = probe.plots.new_figure((HEIGHT, DOUBLE_COLUMN))
        for ax, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS, strict=True):
            draw_panel(ax, table[table["metric"] == metric], metric)
        return probe.plots.save_figure(figure, out)


def draw_panel(ax: Axes, table: pd.DataFrame, metric: str) -> None:
    """One metric: a row with mark, interval and number for each remedy, and for each gradient baseline below the line."""
    shade_rows(ax, list(LABELS.values()))
    rows = table.set_index("remedy")
    for place, name in enumerate(LABELS):
        row, gradient = rows.loc[name], name in GRADIENTS
        colour = "#D55E00" if gradient else "#0072B2"
        unfair = metric == "lift" and name.endswith("minus mean")  # lift changes with any subtraction
        ax.plot([row["low"], row["high"]], [place] * 2, color=colour, linewidth=1.4)
        ax.plot(
            row["value"], place, "^" if gradient else "o", color=colour, markersize=4, mfc="white" if unfair else colour
        )
    ax.axvline(rows["chance"].iloc[0], color="0.4", linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=0)
    ax.axvline(rows.loc["none", "value"], color="0.7", linewidth=0.8, zorder=0)
    ax.axhline(len(LABELS) - len(GRADIENTS) - 0.5, color="0.4", linewidth=0.5)
    ax.set_xlabel(METRICS[metric])
    ax.locator_params(axis="x", nbins=5)


def caption(data: Path) -> str:
    """Who, how many, how they differ, and why two remedies do nothing here."""
    table = pd.read_csv(data / "remedies.csv")
    rows = table.set_index(["metric", "remedy"])
    first = table.iloc[0]
    found = [
        f"{LABELS[name]} {signed(rows.loc[('pointing', name)])} (p {rows.loc[('pointing', name), 'p_corrected']:.2g})"
        for name in LABELS
        if name not in ("none", *GRADIENTS)
    ]
    return (
        f"What answers to attention sinks gain on the same maps of {first['model']}, and two gradient baselines on the same "
        f"phrases, below the line: {int(first['phrases'])} phrases of {int(first['images'])} unseen scenes (seed "
        f"{first['seed']}), which read the true captions; bars: 95 % intervals by bootstrap over scenes; dotted: chance; grey: "
        "attention as it is. Paired differences of pointing to attention as it is, Holm-corrected over all remedies and "
        f"metrics: {'; '.join(found)}. This model has {first['sinks']:g} sinks in an image on average, so that dropping them "
        "changes nothing, and redistribution only what the first token of the sequence holds. Empty marks: lift changes with "
        "the offset of a map, so that subtracting a mean raises it whatever the map is worth. Gradients are of a phrase's "
        "logits, minus mean: over the phrases of the scene; where nothing is left of a map, lift is of fewer phrases "
        f"({int(table['phrases'].min())} at the least)."
    )


def signed(row: Any) -> str:
    """ "+0.03 [0.02, 0.05]", of a row with a difference."""
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['difference']:+.3f} [{low:.3f}, {high:.3f}]".replace("-", "\N{MINUS SIGN}")


if __name__ == "__main__":
    run_script(__file__)
