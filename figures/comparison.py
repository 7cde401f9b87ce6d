"""Draws ``figures/comparison.png`` and ``.pdf``: CLIP against diffusion, as encoders and as what one language model sees.

``python figures/comparison.py`` draws from the shipped tables and needs no model; with ``--measure`` the scores of single heads,
and the series over timesteps and draws, are measured again first (minutes). The tables of all seeds are those that
``probe lab train twins`` writes.
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
from probe.analysis.agreement import Agreement, agreements
from probe.lab.storage import TWIN_TABLES, TWINS
from probe.plots.styles import trim
from probe.seeds import SeedComparison, read_shipped
from probe.series import TRAINING

HERE = Path(__file__).parent
DATA = HERE / "data"
ENCODERS = ("lab/clip", "lab/diffusion")
SYSTEMS = (*ENCODERS, *TWINS)
METRICS = ("pointing", "auroc", "lift")
#: Seen through one colour each: what looks through CLIP, through a U-Net, and through both.
COLOURS = dict(zip(SYSTEMS, ("#56B4E9", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7"), strict=True))
MARKERS = dict(zip(SYSTEMS, "sDosDv", strict=True))
TIMESTEPS = (1, 100, 300, 600, 900)
DRAWS = 4
#: For the series, which read every system again at each timestep and draw; and for single heads.
SCENES, HEAD_SCENES = 40, 150
WIDTH = 6.9  # inches: both columns of a paper
HEIGHTS = (1.45, 1.75, 1.75, 1.9, 1.95)  # of the rows, in inches
SMALL = 6


def measure(
    data: Path = DATA, *, scenes: int = SCENES, draws: int = DRAWS, timesteps: tuple[int, ...] = TIMESTEPS
) -> None:
    """Writes ``comparison-heads.csv``, ``comparison-timesteps.csv`` and ``comparison-draws.csv`` into ``data``."""
    from probe.evaluation.lab import read_lab, reword_scene
    from probe.reports import tracked
    from probe.runs import score_examples
    from probe.series import noise_series

    data.mkdir(parents=True, exist_ok=True)
    subjects = [probe.load_model(one) for one in SYSTEMS]
    tables = [
        score_examples(one, tracked(read_lab(limit=HEAD_SCENES), what=one.name, total=HEAD_SCENES), metric="pointing")
        .to_frame()
        .assign(system=one.name)
        for one in subjects
        if one.name in TWINS
    ]
    for one in tables:
        one.attrs.clear()
    _write(pd.concat(tables, ignore_index=True), data / "comparison-heads.csv")
    options: dict[str, Any] = {"reword": reword_scene, "metric": METRICS}
    examples = list(read_lab(limit=scenes))
    for over, values in (("timestep", timesteps), ("draw", tuple(range(draws)))):
        found = noise_series(subjects, examples, over=over, values=values, **options)  # type: ignore[arg-type]
        _write(found, data / f"comparison-{over}s.csv")


def _write(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n", float_format="%.7g")


def draw(data: Path = DATA, out: Path = HERE / "comparison", *, tables: Path = TWIN_TABLES) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data`` and the tables of all seeds."""
    seeds = read_shipped(SYSTEMS, tables)
    agreed = agreements({int(one.seed or 0): one.paired for one in seeds}, trained=tuple(TWINS))
    heads, steps, draws = (pd.read_csv(data / f"comparison-{one}.csv") for one in ("heads", "timesteps", "draws"))
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(HEIGHTS) + 0.75, WIDTH))
        rows = figure.subfigures(6, 1, height_ratios=[*HEIGHTS, 0.75])
        _heading(rows[0], "a  Each system's reading, one mark a seed, on one common grid")
        for ax, metric in zip(rows[0].subplots(1, 3, sharey=True), METRICS, strict=True):
            draw_readings(ax, seeds, metric)
        _heading(
            rows[1],
            "b  Differences on the same phrases, one mark a seed; bar: 95 % over seeds; filled: all seeds agree",
        )
        for ax, metric in zip(rows[1].subplots(1, 3, sharey=True), METRICS, strict=True):
            draw_differences(ax, agreed, metric)
        _heading(rows[2], "c  Pointing of single heads, minus their mean, on own grids (seed 0)")
        draw_heads(rows[2].subplots(1, len(TWINS)), heads)
        left, middle, right = rows[3].subfigures(1, 3, width_ratios=[1.25, 1, 1])
        _heading(left, "d  While they are trained")
        draw_training(left.subplots(), pd.read_csv(tables / TRAINING))
        _heading(middle, "e  More noise")
        draw_series(middle.subplots(), steps, across="timestep")
        _heading(right, "f  Another draw of noise")
        draw_series(right.subplots(), draws, across="draw")
        _heading(
            rows[4], "g  How a map is read: tokens combined, with Eq. 3 or without, all heads or the best, held out"
        )
        readouts = pd.read_csv(tables / "readouts.csv")
        for ax, name in zip(rows[4].subplots(1, len(TWINS), sharey=True), TWINS, strict=True):
            draw_readouts(ax, readouts[readouts["system"] == name], name)
        rows[5].text(0.005, 0.98, note(seeds, heads, steps), fontsize=SMALL, color="0.4", va="top", parse_math=False)
        return probe.plots.save_figure(figure, out)


def _heading(part: Any, text: str) -> None:
    part.suptitle(text, x=0.005, ha="left", fontsize=8, fontweight="bold", parse_math=False)


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
    _rows(ax, SYSTEMS)
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
    _rows(ax, [f"{_short(one.first)} \N{MINUS SIGN} {_short(one.second)}" for one in pairs])
    ax.set_xlabel(f"difference in {metric}")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))


def _rows(ax: Axes, names: Any) -> None:
    """One row a name, from the top, with every other one shaded."""
    ax.set_yticks(range(len(names)), names, fontsize=SMALL + 0.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    for place in range(1, len(names), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="0.96", linewidth=0, zorder=-2)
    ax.locator_params(axis="x", nbins=5)


def _short(name: str) -> str:
    return name.removeprefix("lab/")


def draw_heads(axes: Any, heads: pd.DataFrame) -> None:
    """A grid of layers and heads for each twin, on one scale."""
    single = heads[heads["kind"] == "head"]
    limits = (0.0, float(np.ceil(10 * single["value"].max()) / 10))
    for ax, name in zip(axes, TWINS, strict=True):
        part = heads[heads["system"] == name].drop(columns="system")
        probe.plots.heads(part, metric="pointing", ax=ax, limits=limits, intervals=False)
        ax.set_title(_short(name), color=COLOURS[name])


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
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.2), fontsize=SMALL)
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
            fontsize=SMALL - 0.5,
            ncols=2,
            columnspacing=0.8,
            handlelength=1.2,
        )
    trim(ax)


def draw_readouts(ax: Axes, table: pd.DataFrame, name: str) -> None:
    """The twelve ways to read one twin: a row for each, a mark for each seed, and the mean over seeds."""
    ways = [
        (reading, heads, combine)
        for reading in ("attention", "minus mean")
        for heads in ("all", "best")
        for combine in ("mean", "first", "max")
    ]
    labels = []
    for place, (reading, heads, combine) in enumerate(ways):
        part = table[(table["reading"] == reading) & (table["heads"] == heads) & (table["combine"] == combine)]
        spread = np.linspace(-0.25, 0.25, len(part)) if len(part) > 1 else np.zeros(1)
        full = reading == "minus mean"
        for offset, (_, row) in zip(spread, part.iterrows(), strict=True):
            ax.plot([row["low"], row["high"]], [place + offset] * 2, color=COLOURS[name], linewidth=0.6, alpha=0.5)
        ax.plot(
            part["value"],
            place + spread,
            MARKERS[name],
            color=COLOURS[name],
            markersize=2.4,
            mew=0.6,
            mfc=COLOURS[name] if full else "white",
        )
        labels.append(f"{'Eq. 3' if full else 'none'}, {heads} head{'s' if heads == 'all' else ''}, {combine}")
    _rows(ax, labels)
    ax.tick_params(axis="y", labelsize=SMALL - 0.5)
    ax.set_title(_short(name), color=COLOURS[name])
    ax.set_xlabel("pointing")


def note(seeds: list[SeedComparison], heads: pd.DataFrame, steps: pd.DataFrame) -> str:
    """What stands below the picture: who, how many, how, and what it does not say."""
    first = seeds[0].frame
    reading = first[first["kind"] == "reading"]
    images, phrases = int(reading["images"].max()), int(reading["phrases"].max())
    names = ", ".join(_short(one) for one in TWINS)
    read = int(steps["images"].max())
    parts = [
        "One language model in front of frozen features: a LLaVA on CLIP, a DiffLMM on CLIP and a U-Net, and that DiffLMM blind to "
        f"CLIP or to the U-Net ({names}), {len(seeds)} seeds of weights and scenes each; and the two encoders themselves, of "
        "which there is one training each: nothing here is about other trainings of them.",
        f"a, b: {phrases:,} phrases of {images:,} unseen scenes, maps minus their mean; thin bars: 95 % over scenes. Lines in a: "
        "dotted chance, dashed floor (another phrase's map, plus what other words change), solid the best that patches allow.",
        f"c: {int(heads['images'].max())} scenes. d: 200. e, f: {read}, bands 95 % over scenes; the twins met t = 100 alone. "
        "g: the odd scenes; best heads are chosen on the even ones; empty marks: without Eq. 3.",
    ]
    return textwrap.fill(" ".join(parts), 150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure heads and series again first")
    if parser.parse_args().measure:
        measure()
    elif not (DATA / "comparison-heads.csv").exists():
        sys.exit(f"{DATA} holds no tables yet; run: python figures/comparison.py --measure")
    matplotlib.use("Agg")
    for path in draw():
        print(path)


if __name__ == "__main__":
    main()
