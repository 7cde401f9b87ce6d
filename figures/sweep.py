"""Draws ``figures/sweep.png`` and ``.pdf``: what every head is good for, beside how well it localises, from saved tables.

``python figures/sweep.py`` draws and needs no model; with ``--measure FOLDER`` every head of the models is swept first, and their
heads are taken away in several orders (a quarter of an hour on two cores; sweeps that were stopped go on).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

import probe
from probe.analysis.usage import HeadUse, compare_use, head_effects

HERE = Path(__file__).parent
DATA = HERE / "data"
MODELS = ("lab/llava-clip", "lab/difflmm")
PROMPT, EFFECT, HOW, METRIC = "Describe the image.", "log_probability", "mean", "pointing"
#: Scenes that every head is swept and scored on, and those of another seed that the curves are measured on.
SWEPT, REMOVED = 200, 100
SWEPT_SEED, REMOVED_SEED, TRAINED_ON = 0, 1, 100
RANDOM_ORDERS = 5
SIZE = (6.6, 6.9)  # (height, width) in inches


def measure(work: Path, data: Path = DATA, *, swept: int = SWEPT, removed: int = REMOVED) -> None:
    """Writes everything that ``draw`` reads into ``data``; the stores of the sweeps are kept in ``work``."""
    from probe.sweep.exports import export_table

    data.mkdir(parents=True, exist_ok=True)
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


def draw(data: Path = DATA, out: Path = HERE / "sweep") -> tuple[Path, Path]:
    """The paths of the PDF and PNG that were drawn from the files in ``data``."""
    effects, heads, agreement, curves = (
        pd.read_csv(data / f"sweep-{one}.csv") for one in ("effects", "heads", "agreement", "removal")
    )
    facts = json.loads((data / "sweep.json").read_text(encoding="utf-8"))
    with probe.plots.style():
        figure = probe.plots.new_figure(SIZE)
        axes = figure.subplots(3, len(MODELS))
        for column, model in enumerate(MODELS):
            some = {"model": model, "effect": EFFECT, "how": HOW}
            probe.plots.effects(chosen(effects, some), ax=axes[0, column])
            probe.plots.use(as_use(heads, agreement, some | {"metric": METRIC}), ax=axes[1, column])
            probe.plots.removal(curves[curves["model"] == model], ax=axes[2, column])
            axes[0, column].set_title(model)
        for row, (letter, what) in enumerate(zip("abc", HEADINGS, strict=True)):
            place = axes[row, 0]
            place.annotate(
                f"{letter}  {what}", (0, 1), xytext=(-26, 16), xycoords="axes fraction", textcoords="offset points",
                fontsize=8, fontweight="bold", annotation_clip=False,
            )  # fmt: skip
        figure.supxlabel(note(facts, agreement), fontsize=6, color="0.4", parse_math=False)
        return probe.plots.save_figure(figure, out)


HEADINGS = (
    "What a phrase loses without each head",
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


def note(facts: dict[str, Any], agreement: pd.DataFrame) -> str:
    """What stands below the picture: who, how many, how, and how well the one predicts the other."""
    said = []
    for model in MODELS:
        for how in ("mean", "zero"):
            row = chosen(
                agreement, {"model": model, "how": how, "metric": METRIC, "effect": EFFECT, "measure": "spearman"}
            )
            one = row.iloc[0]
            said.append(f"{model}, {how} {one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]")
    return (
        f"{facts['swept']} test scenes swept and scored, {facts['removed']} others for c; heads are replaced by their mean over "
        "training scenes (c) or the sweep's own (a, b).\nDots in a: the 95 % interval holds 0. Bars and bands: 95 % intervals by "
        f"bootstrap over images.\nRank correlation of pointing and loss: {'; '.join(said)}."
    )


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="run the sweeps first, and keep them there")
    parser.add_argument("--swept", type=int, default=SWEPT)
    parser.add_argument("--removed", type=int, default=REMOVED)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, swept=arguments.swept, removed=arguments.removed)
    for path in draw():
        print(path)
