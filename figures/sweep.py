"""Draws ``figures/sweep.png`` and ``.pdf``: what every head is good for, beside how well it localises, from saved tables.

``python figures/sweep.py`` draws and needs no model; with ``--measure`` every head of the models is swept first, and heads are
taken away in several orders (a quarter of an hour on two cores; sweeps that were stopped go on).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

import probe
from probe.analysis.usage import HeadUse, compare_use, head_effects
from probe.figure_scripts import run_script
from probe.plots.panels import heading, interval
from probe.plots.styles import DOUBLE_COLUMN, literal

PARTS = ("effects", "heads", "agreement", "removal")
READS = (*(f"sweep-{one}.csv" for one in PARTS), "sweep.json")
#: Where the stores of the sweeps are kept while they are made.
WORK = Path("runs/sweep-figure")
MODELS = ("lab/llava-clip", "lab/difflmm")
PROMPT, EFFECT, HOW, METRIC = "Describe the image.", "log_probability", "mean", "pointing"
#: Scenes that every head is swept and scored on, and those of another seed that the curves are measured on.
SWEPT, REMOVED = 200, 100
SWEPT_SEED, REMOVED_SEED, TRAINED_ON = 0, 1, 100
RANDOM_ORDERS = 5
HEIGHTS = (1.9, 1.9, 2.2)  # of the rows, in inches


def measure(data: Path, work: Path = WORK, *, swept: int = SWEPT, removed: int = REMOVED) -> None:
    """Writes everything that ``draw`` reads into ``data``; the stores of the sweeps are kept in ``work``."""
    from probe.sweep.exports import export_table

    effects, heads, agreement, curves = [], [], [], []
    for name in MODELS:
        plan = probe.SweepPlan(
            model=name, limit=swept, seed=SWEPT_SEED, prompt=PROMPT, how="zero, mean",
            effects="log_probability, caption_log_probability, exact_match, pointing, auroc",
        )  # fmt: skip
        folder = work / name.replace("/", "-")
        store = probe.run_sweep(plan, out=folder)
        export_table(store, folder / "sweep.parquet")
        table = pd.read_parquet(folder / "sweep.parquet")
        subject = probe.load_model(name)
        scenes = localised(subject, swept)
        for how in ("zero", "mean"):
            for effect in plan.names("effects"):
                effects.append(head_effects(table, effect=effect, how=how).assign(model=name))
            for effect in ("log_probability", "exact_match"):
                for metric in ("pointing", "auroc"):
                    found = compare_use(*scenes, table, metric=metric, effect=effect, how=how)
                    about = {"model": name, "metric": metric, "effect": effect, "how": how}
                    heads.append(found.heads.assign(**about))
                    agreement.append(found.agreement.assign(**about))
                    if (effect, metric, how) == (EFFECT, METRIC, HOW):
                        curves.append(removed_in_order(subject, found, removed).assign(model=name))
        print(name, file=sys.stderr)
    for part, rows in {"effects": effects, "heads": heads, "agreement": agreement, "removal": curves}.items():
        frame = pd.concat(rows, ignore_index=True)
        frame.to_csv(data / f"sweep-{part}.csv", index=False, lineterminator="\n", float_format="%.7g")
    facts = {"swept": swept, "removed": removed, "random_orders": RANDOM_ORDERS}
    (data / "sweep.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def localised(subject: Any, count: int) -> tuple[list[Any], list[Any], list[str]]:
    """Records, masks and names of the scenes that are swept."""
    from probe.evaluation.lab import read_lab

    examples = list(read_lab(limit=count, seed=SWEPT_SEED))
    records = [probe.run(subject, one.image, PROMPT, answer=one.text, verify="sample").record for one in examples]
    masks = [[((phrase.start, phrase.end), phrase.mask) for phrase in one.phrases] for one in examples]
    return records, masks, [one.name for one in examples]


def removed_in_order(subject: Any, found: HeadUse, count: int) -> pd.DataFrame:
    """What is left when heads go in several orders, on scenes that chose none of them."""
    from probe.capture.ablation import mean_outputs
    from probe.effects import removal_curves
    from probe.evaluation.lab import read_lab
    from probe.lab.scenes import scenes as lab_scenes

    best = found.order("localises")
    orders = {
        "best localising first": best,
        "worst localising first": best[::-1],
        "most used first": found.order("used"),
    }
    for number in range(RANDOM_ORDERS):
        orders[f"random {number}"] = random.Random(number).sample(best, len(best))
    steps = [one for one in (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32) if one <= len(best)]
    seen = ((one.image, PROMPT, one.caption) for one in lab_scenes(TRAINED_ON, split="train"))
    reference = mean_outputs(subject, seen, name=f"{TRAINED_ON} train scenes")
    examples = read_lab(limit=count, seed=REMOVED_SEED)
    return removal_curves(subject, examples, orders, counts=steps, how=HOW, reference=reference, prompt=PROMPT)


def draw(data: Path, out: Path) -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    effects, heads, agreement, curves = (pd.read_csv(data / f"sweep-{one}.csv") for one in PARTS)
    limit = float(chosen(effects, {"effect": EFFECT, "how": HOW})["change"].abs().max())  # one scale for all models
    with probe.plots.style():
        figure = probe.plots.new_figure((sum(HEIGHTS), DOUBLE_COLUMN))
        for part, row, text in zip(figure.subfigures(3, 1, height_ratios=HEIGHTS), "abc", HEADINGS, strict=True):
            heading(part, f"{row}  {text}")
            for column, (ax, model) in enumerate(zip(part.subplots(1, len(MODELS)), MODELS, strict=True)):
                some = {"model": model, "effect": EFFECT, "how": HOW}
                if row == "a":
                    draw_effects(ax, chosen(effects, some), limit=limit)
                elif row == "b":
                    draw_use(ax, as_use(heads, agreement, some | {"metric": METRIC}), legend=column == 0)
                else:
                    draw_removal(ax, curves[curves["model"] == model], part if column == 0 else None)
                literal(ax.set_title(model))
        return probe.plots.save_figure(figure, out)


def draw_effects(ax: Axes, table: pd.DataFrame, *, limit: float) -> None:
    """The grid of one model; what its colours are stands in the panel's heading."""
    probe.plots.effects(table, ax=ax, limit=limit)
    ax.images[0].colorbar.set_label("nats")


def draw_use(ax: Axes, use: HeadUse, *, legend: bool) -> None:
    """Every head of one model; layers have the same colours in both, so that one legend is enough."""
    probe.plots.use(use, ax=ax)
    ax.set_ylabel("used: nats lost")
    if not legend:
        ax.get_legend().remove()


def draw_removal(ax: Axes, curves: pd.DataFrame, part: Any) -> None:
    """The curves of one model, with a legend below the part of the figure where one is given."""
    probe.plots.removal(curves, ax=ax)
    ax.set_ylabel("log-probability (nats)")
    ax.get_legend().remove()
    if part is not None:
        handles, labels = ax.get_legend_handles_labels()
        part.legend(handles, labels, loc="outside lower center", ncols=len(labels))


HEADINGS = (
    "Change in a phrase's log-probability without each head",
    "Localises against used",
    "Heads taken away together, on other scenes",
)


def chosen(table: pd.DataFrame, some: dict[str, str]) -> pd.DataFrame:
    """The rows with these values."""
    for name, value in some.items():
        table = table[table[name] == value]
    return table


def as_use(heads: pd.DataFrame, agreement: pd.DataFrame, some: dict[str, str]) -> HeadUse:
    """The saved tables as what ``compare_use`` gave."""
    return HeadUse(chosen(heads, some), chosen(agreement, some), some["metric"], some["effect"], some["how"], 10)


def caption(data: Path) -> str:
    """Who, how many, how, and how well the one predicts the other."""
    facts = json.loads((data / "sweep.json").read_text(encoding="utf-8"))
    agreement = pd.read_csv(data / "sweep-agreement.csv")
    said = []
    for model in MODELS:
        for how in ("mean", "zero"):
            some = {"model": model, "how": how, "metric": METRIC, "effect": EFFECT, "measure": "spearman"}
            said.append(f"{model}, {how} {interval(chosen(agreement, some).iloc[0])}")
    return (
        f"What every head is good for, beside how well it localises: {' and '.join(MODELS)}, {facts['swept']} unseen scenes "
        f"swept and scored, {facts['removed']} others for c. (a) The change in a phrase's log-probability without each head; (b) "
        "the same against pointing; (c) what is left when heads are taken away together, in several orders. Heads are replaced "
        f"by their mean over {TRAINED_ON} training scenes (c) or the sweep's own (a, b). Dots in a: the interval holds 0. Bars "
        f"and bands: 95 % intervals by bootstrap over images. Rank correlation of pointing and loss: {'; '.join(said)}."
    )


if __name__ == "__main__":
    run_script(__file__)
