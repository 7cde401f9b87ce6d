"""Draws ``figures/comparison.png`` and ``.pdf``: CLIP against diffusion, as encoders and as what one language model sees.

``python figures/comparison.py`` draws from the shipped tables and needs no model; with ``--measure`` the series over timesteps and
draws are measured again first (minutes). The tables of all seeds are those that ``probe lab train twins`` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.analysis.agreement import Agreement, agreements
from probe.figure_scripts import run_script
from probe.lab.storage import TWIN_TABLES, TWINS
from probe.plots.panels import SMALLEST, heading, shade_rows, true_minus
from probe.plots.styles import DOUBLE_COLUMN, trim
from probe.seeds import SeedComparison, read_shipped
from probe.series import TRAINING

ENCODERS = ("lab/clip", "lab/diffusion")
SYSTEMS = (*ENCODERS, *TWINS)
READS = (
    "comparison-timesteps.csv",
    "comparison-draws.csv",
    TWIN_TABLES / "comparison.csv",
    TWIN_TABLES / TRAINING,
)
METRICS = ("pointing", "auroc", "lift")
#: Seen through one colour each: what looks through CLIP, through a U-Net, and through both.
COLOURS = dict(zip(SYSTEMS, ("#56B4E9", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7"), strict=True))
MARKERS = dict(zip(SYSTEMS, "sDosDv", strict=True))
TIMESTEPS = (1, 100, 300, 600, 900)
DRAWS = 4
SCENES = 40  # every system reads them again at each timestep and draw
HEIGHTS = (1.45, 1.75, 1.9)  # of the rows, in inches


def measure(data: Path, *, scenes: int = SCENES, draws: int = DRAWS, timesteps: tuple[int, ...] = TIMESTEPS) -> None:
    """Writes ``comparison-timesteps.csv`` and ``comparison-draws.csv`` into ``data``."""
    from probe.evaluation.lab import read_lab, reword_scene
    from probe.series import noise_series

    subjects = [probe.load_model(one) for one in SYSTEMS]
    options: dict[str, Any] = {"reword": reword_scene, "metric": METRICS}
    examples = list(read_lab(limit=scenes))
    for over, values in (("timestep", timesteps), ("draw", tuple(range(draws)))):
        found = noise_series(subjects, examples, over=over, values=values, **options)  # type: ignore[arg-type]
        found.to_csv(data / f"comparison-{over}s.csv", index=False, lineterminator="\n", float_format="%.7g")


def draw(data: Path, out: Path, *, tables: Path = TWIN_TABLES) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data`` and the tables of all seeds."""
    seeds = read_shipped(SYSTEMS, tables)
    agreed = agreements({int(one.seed or 0): one.paired for one in seeds}, trained=tuple(TWINS))
    steps, draws = (pd.read_csv(data / f"comparison-{one}.csv") for one in ("timesteps", "draws"))
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(HEIGHTS), DOUBLE_COLUMN))
        rows = figure.subfigures(3, 1, height_ratios=HEIGHTS)
        heading(rows[0], "a  Each system's reading, one mark a seed, on one common grid")
        for ax, metric in zip(rows[0].subplots(1, 3, sharey=True), METRICS, strict=True):
            draw_readings(ax, seeds, metric)
        heading(
            rows[1],
            "b  Differences on the same phrases, one mark a seed; bar: 95 % over seeds; filled: all seeds agree",
        )
        for ax, metric in zip(rows[1].subplots(1, 3, sharey=True), METRICS, strict=True):
            draw_differences(ax, agreed, metric)
        left, middle, right = rows[2].subfigures(1, 3, width_ratios=[1.25, 1, 1])
        heading(left, "c  While they are trained")
        draw_training(left.subplots(), pd.read_csv(tables / TRAINING))
        heading(middle, "d  More noise")
        draw_series(middle.subplots(), steps, across="timestep")
        heading(right, "e  Another draw of noise")
        draw_series(right.subplots(), draws, across="draw")
        return probe.plots.save_figure(figure, out)


def draw_readings(ax: Axes, seeds: list[SeedComparison], metric: str) -> None:
    """Each system's reading: a mark for each seed, the interval over scenes of the first, and its controls as lines."""
    for place, name in enumerate(SYSTEMS):
        rows = [one.to_dict()["systems"][name][metric] for one in seeds if name in one.names]
        spread = np.linspace(-0.22, 0.22, len(rows)) if name in TWINS and len(rows) > 1 else [0.0]
        for offset, row in zip(spread, rows, strict=False):
            ax.plot([row["low"], row["high"]], [place + offset] * 2, color=COLOURS[name], linewidth=0.9, alpha=0.6)
            ax.plot(row["value"], place + offset, marker=MARKERS[name], color=COLOURS[name], markersize=2.8, mew=0)
        frame = seeds[0].frame
        controls = frame[(frame["kind"] == "control") & (frame["metric"] == metric) & (frame["system"] == name)]
        for label, dash in (("chance", (1, 1)), ("floor", (3, 1.5)), ("oracle_patch", (5, 0))):
            row = controls[controls["name"] == label]
            if len(row) and np.isfinite(row["value"].iloc[0]):
                ax.vlines(
                    row["value"],
                    place - 0.38,
                    place + 0.38,
                    color="0.35",
                    linewidth=0.7,
                    linestyles=[(0, dash)] if dash[1] else "solid",
                )
    shade_rows(ax, SYSTEMS)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(metric)


def draw_differences(ax: Axes, agreed: tuple[Agreement, ...], metric: str) -> None:
    """Each pair's difference: a mark for each seed, and the mean with its interval over seeds."""
    pairs = [one for one in agreed if one.metric == metric and len({one.first, one.second} & {*ENCODERS}) != 1]
    for place, one in enumerate(pairs):
        values = list(one.differences.values()) if max(one.trainings) > 1 else [one.mean]
        spread = np.linspace(-0.24, 0.24, len(values)) if len(values) > 1 else [0.0]
        colour = "0.1" if one.claims else "0.55"
        if np.isfinite([one.low, one.high]).all():
            ax.plot([one.low, one.high], [place, place], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
        face = colour if one.claims else "white"
        ax.plot(values, place + np.asarray(spread), "o", color=colour, markersize=2.6, mfc=face, mew=0.7)
    ax.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    shade_rows(ax, [f"{_short(one.first)} \N{MINUS SIGN} {_short(one.second)}" for one in pairs])
    ax.set_xlabel(f"difference in {metric}")
    ax.locator_params(axis="x", nbins=5)
    ax.xaxis.set_major_formatter(true_minus)


def _short(name: str) -> str:
    return name.removeprefix("lab/")


def draw_training(ax: Axes, table: pd.DataFrame) -> None:
    """Pointing of each twin over the steps of its training: thin a seed, thick their mean."""
    for name, arm in TWINS.items():
        runs = table[table["arm"] == arm].pivot(index="step", columns="seed", values="minus_mean")
        for seed in runs:
            one = runs[seed].dropna()
            ax.plot(one.index, one, color=COLOURS[name], linewidth=0.5, alpha=0.6)
        mean = runs.dropna().mean(axis=1)  # at the steps that were measured for every seed
        ax.plot(mean.index, mean, color=COLOURS[name], marker=MARKERS[name], markersize=2.5, label=_short(name))
    ax.axhline(table["chance"].mean(), color="0.4", linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
    ax.axhline(table["oracle_patch"].mean(), color="0.6", linewidth=0.8, linestyle=(0, (5, 2)), zorder=0)
    ax.set(xlabel="step", ylabel="pointing, minus mean", ylim=(0, 1.04))
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.2), fontsize=SMALLEST)
    trim(ax)


def draw_series(ax: Axes, table: pd.DataFrame, *, across: str) -> None:
    """Pointing of each system at each timestep or draw, with intervals over scenes."""
    rows = table[(table["kind"] == "reading") & (table["metric"] == "pointing")]
    for number, name in enumerate(SYSTEMS):
        part = rows[rows["system"] == name].sort_values("at")
        ax.plot(part["at"], part["value"], color=COLOURS[name], marker=MARKERS[name], markersize=2.2, linewidth=0.9)
        if across == "timestep":
            ax.fill_between(
                part["at"], part["low"], part["high"], color=COLOURS[name], alpha=0.12, linewidth=0, zorder=-number
            )
    ax.set(xlabel=across, ylim=(0, 1.04))
    if across == "draw":
        ax.set_xticks(sorted(rows["at"].unique()))
        handles = [
            ax.plot([], [], color=COLOURS[one], marker=MARKERS[one], markersize=2.5, label=_short(one))[0]
            for one in SYSTEMS
        ]
        ax.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(0.0, 0.45),
            fontsize=SMALLEST,
            ncols=2,
            columnspacing=0.8,
            handlelength=1.2,
        )
    trim(ax)


def caption(data: Path, *, tables: Path = TWIN_TABLES) -> str:
    """Who, how many, how, and what it does not say."""
    seeds, steps = read_shipped(SYSTEMS, tables), pd.read_csv(data / "comparison-timesteps.csv")
    reading = seeds[0].frame[seeds[0].frame["kind"] == "reading"]
    training = pd.read_csv(tables / TRAINING)
    return (
        "CLIP against diffusion. One language model in front of frozen features: a LLaVA on CLIP, a DiffLMM on CLIP and a "
        f"U-Net, and that DiffLMM blind to CLIP or to the U-Net ({', '.join(_short(one) for one in TWINS)}), {len(seeds)} seeds "
        "of weights and scenes each; and the two encoders themselves, of which there is one training each: nothing here is "
        f"about other trainings of them. a, b: {int(reading['phrases'].max()):,} phrases of {int(reading['images'].max()):,} "
        "unseen scenes, maps minus their mean (Eq. 3); thin bars: 95 % intervals by bootstrap over scenes; thick bars in b: "
        "over seeds (Student's t). Lines in a: dotted chance, dashed floor (another phrase's map, plus what other words "
        f"change), solid the best that patches allow. c: {int(training['images'].max())} scenes, thin a seed, thick their mean. "
        f"d, e: {int(steps['images'].max())} scenes, seed 0, bands 95 % over scenes; the twins met t = 100 alone in training."
    )


if __name__ == "__main__":
    run_script(__file__)
