"""What ``probe lab train twins`` does: every seed and arm in turn, measured on the same unseen scenes while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from probe.commands.arguments import at_least
from probe.reports import Report, make_table, progress, show_interval

__all__ = ["SHOWN", "train_all"]

#: What of ``probe.measurements.MEASURED`` a person sees of a training, and in which words.
SHOWN = {
    "caption_loss": "caption loss",
    "minus_mean": "minus mean",
    "floor": "paraphrase floor",
    "best_head_held_out": "best head held out",
}


def train_all(
    target: Path,
    steps: int | None,
    seeds: Sequence[int],
    measure: int,
    *,
    clip: str,
    diffusion: str,
) -> Report:
    """The last measurement of each run and the comparison of each seed, as tables; all of them as data."""
    from probe.analysis.agreement import agreements
    from probe.commands.comparing import seed_tables
    from probe.evaluation.lab import read_lab, reword_scene
    from probe.lab.arms import ARMS
    from probe.lab.storage import TWINS
    from probe.lab.towers import Towers
    from probe.lab.twins import STEPS, train_twins
    from probe.seeds import SeedComparison
    from probe.training_tables import TrainingTable
    from probe.twin_comparisons import SCENES, compare_twins, gather_training

    at_least("--measure", measure, 2)  # a best head is chosen on one half and reported on the other
    total, towers = STEPS if steps is None else steps, Towers(clip=clip, diffusion=diffusion)
    examples = list(read_lab(limit=measure))

    def table_of(run: Any) -> TrainingTable:
        return TrainingTable(run.folder / "training.csv", examples, reword=reword_scene)

    with progress("training", len(seeds) * len(ARMS) * total) as advance:
        follow = _Follower(advance, seeds, ARMS, total)
        runs = train_twins(
            target,
            seeds=seeds,
            steps=total,
            towers=towers,
            on_features=follow.features,
            on_snapshot=lambda run, step, model, processor, loss: follow.measured(
                run, step, table_of(run).add(step, model, processor)
            ),
            on_step=follow.step,
        )
    gather_training(target, runs)
    with progress("comparing", len(seeds)) as advance:
        compared = compare_twins(target, runs, towers=towers, scenes=SCENES, on_seed=advance)
    each = [SeedComparison(int(str(seed)), "measured", part) for seed, part in compared.groupby("seed", sort=True)]
    agreed = agreements({int(one.seed or 0): one.paired for one in each}, trained=tuple(TWINS))
    rows = [{"seed": run.seed, "arm": run.arm} | row for run in runs for row in table_of(run).rows()]
    title = f"twins after {total} steps, pointing on {measure} unseen scenes, 95 % intervals by bootstrap over scenes"
    table = make_table(title, "seed", "arm", *SHOWN.values())
    for row in rows:
        if row["step"] == total:
            table.add_row(str(row["seed"]), str(row["arm"]), *(show_interval(row, name) for name in SHOWN))
    lines = [
        "floor        other phrase's map + what a change of words alone does",
        *seed_tables(each, agreed),
        f"models       {target}",
    ]
    folders = [{"seed": run.seed, "arm": run.arm, "folder": str(run.folder)} for run in runs]
    data = {"out": str(target), "steps": total, "runs": folders, "rows": rows}
    return Report(data | {"seeds": [one.to_dict() for one in each]}, [table, *lines])


class _Follower:
    """One bar over all runs: those that are finished count as soon as a later one starts."""

    def __init__(self, advance: Callable[..., None], seeds: Sequence[int], arms: Sequence[str], steps: int) -> None:
        self.advance, self.steps = advance, steps
        self.places = {(seed, arm): place for place, (seed, arm) in enumerate((s, a) for s in seeds for a in arms)}
        self.done = 0

    def features(self, seed: int, scenes: int, total: int) -> None:
        self.advance(self.done, what=f"features of seed {seed}: {scenes} of {total} scenes")

    def measured(self, run: Any, step: int, row: dict[str, float]) -> None:
        shown = ", ".join(f"{words} {row[name]:.2f}" for name, words in SHOWN.items())
        self._to(run, step, f"{run.arm}, seed {run.seed} (at {step}: {shown})")

    def step(self, run: Any, step: int, loss: float) -> None:
        self._to(run, step, None)

    def _to(self, run: Any, step: int, what: str | None) -> None:
        self.done = self.places[run.seed, run.arm] * self.steps + step
        self.advance(self.done, what=what)
