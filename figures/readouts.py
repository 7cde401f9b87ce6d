"""Draws ``figures/readouts.png`` and ``.pdf``: twelve ways to read a map of the same models, with and without Eq. 3.

``python figures/readouts.py`` draws from the shipped table, which ``probe lab train twins`` writes, and needs no model.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.figure_scripts import run_script
from probe.lab.storage import TWIN_TABLES, TWINS
from probe.plots.panels import heading, shade_rows
from probe.plots.styles import DOUBLE_COLUMN, literal

READS = (TWIN_TABLES / "readouts.csv",)
METRIC = "pointing"
#: What is subtracted, which heads are averaged, and how the tokens of a phrase are combined: the rows of every panel.
WAYS = tuple(product(("attention", "minus mean"), ("all", "best"), ("mean", "first", "max")))
#: Reading -> its colour and whether its marks are filled.
LOOKS = {"attention": ("#D55E00", False), "minus mean": ("#0072B2", True)}
HEIGHT = 2.6  # inches


def draw(data: Path, out: Path, *, tables: Path = TWIN_TABLES) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the table of all seeds."""
    table = pd.read_csv(tables / "readouts.csv")
    with probe.plots.style():
        figure = probe.plots.new_figure((HEIGHT, DOUBLE_COLUMN))
        heading(figure, "How a map is read: with Eq. 3 (filled) or without, all heads or the best, tokens combined")
        for ax, name in zip(figure.subplots(1, len(TWINS), sharey=True), TWINS, strict=True):
            draw_readouts(ax, table[(table["system"] == name) & (table["metric"] == METRIC)], name)
        return probe.plots.save_figure(figure, out)


def draw_readouts(ax: Axes, table: pd.DataFrame, name: str) -> None:
    """The twelve ways to read one system: a row for each, and in it a mark and an interval for each seed."""
    shade_rows(ax, [label(*way) for way in WAYS])
    for place, (reading, heads, combine) in enumerate(WAYS):
        part = table[(table["reading"] == reading) & (table["heads"] == heads) & (table["combine"] == combine)]
        spread = np.linspace(-0.27, 0.27, len(part)) if len(part) > 1 else np.zeros(1)
        colour, filled = LOOKS[reading]
        for offset, (_, row) in zip(spread, part.iterrows(), strict=True):
            ax.plot([row["low"], row["high"]], [place + offset] * 2, color=colour, linewidth=0.6, alpha=0.6)
        face = colour if filled else "white"
        ax.plot(part["value"], place + spread, "o", color=colour, markersize=2.4, mew=0.6, mfc=face)
    literal(ax.set_title(name))
    ax.set_xlabel(METRIC)
    ax.locator_params(axis="x", nbins=5)


def label(reading: str, heads: str, combine: str) -> str:
    """A row's name, such as "Eq. 3, best head, max"."""
    return f"{'Eq. 3' if reading == 'minus mean' else 'no Eq. 3'}, {heads} head{'s' * (heads == 'all')}, {combine}"


def caption(data: Path, *, tables: Path = TWIN_TABLES) -> str:
    """Who, how many, and what each row is."""
    table = pd.read_csv(tables / "readouts.csv")
    seeds = table["seed"].nunique()
    return (
        "Twelve ways to read the same attention: minus its mean over the answer (Eq. 3, filled) or as it is (empty); averaged "
        "over all heads or of the best one; tokens of a phrase averaged, the first alone, or their maximum. The paper's reading "
        f"is Eq. 3, all heads, mean. One mark for each of {seeds} seeds of weights and scenes, and its 95 % interval by "
        f"bootstrap over scenes; {int(table['images'].max())} unseen scenes a seed ({int(table['phrases'].max())} phrases), of "
        "which the odd ones are read here and the even ones chose the best heads. Panels have scales of their own."
    )


if __name__ == "__main__":
    run_script(__file__)
