"""The twins of every seed against each other and against their encoders, on the same unseen scenes: the tables that ship."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from probe.analysis.readouts import score_readouts
from probe.comparing import compare_examples
from probe.evaluation.lab import read_lab, reword_scene
from probe.lab.storage import TWINS
from probe.models import load_model
from probe.runs import records_of, threads_for
from probe.seeds import SETTINGS, TABLE
from probe.series import TRAINING
from probe.writing import write_beside

if TYPE_CHECKING:
    import pandas as pd

    from probe.lab.towers import Towers
    from probe.lab.twins import TwinRun
    from probe.models import Subject

__all__ = ["METRICS", "READOUTS", "SCENES", "compare_twins", "gather_training"]

METRICS = ("pointing", "auroc", "lift")
SCENES = 300
#: In the folder of the twins: the twelve ways to read each of them, for each seed.
READOUTS = "readouts.csv"
#: The one that the ways to read are scored by.
READOUT_METRIC = "pointing"
#: More digits than an interval over scenes can mean anything in.
DIGITS = "%.7g"


def compare_twins(
    home: Path,
    runs: Sequence[TwinRun],
    *,
    towers: Towers,
    scenes: int = SCENES,
    on_seed: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """One row a number of ``Comparison.to_frame`` for each seed, also in ``comparison.csv``; beside it, how they were measured.

    ``readouts.csv`` holds the rows of ``score_readouts`` for each twin of each seed. Seeds that were compared before, on as many
    scenes, are read from the files in their folders.

    Parameters
    ----------
    home : the folder that the twins were trained in.
    runs : finished trainings, from ``train_twins``.
    on_seed : called with the number of seeds done, to show progress.
    """
    seeds = list(dict.fromkeys(one.seed for one in runs))
    for number, seed in enumerate(seeds, start=1):
        _measure(home / f"seed-{seed}", [one for one in runs if one.seed == seed], towers, scenes)
        if on_seed is not None:
            on_seed(number)
    tables = {name: _gathered(home, seeds, name) for name in (TABLE, READOUTS)}
    frozen = {one: towers.source(one) for one in ("clip", "diffusion")}
    settings = {"data": "lab", "scenes": scenes, "metrics": METRICS, "readouts": READOUT_METRIC, "frozen": frozen}
    text = json.dumps(settings, indent=2) + "\n"
    write_beside(home / SETTINGS, lambda beside: beside.write_text(text, encoding="utf-8"))
    return tables[TABLE]


def _measure(home: Path, runs: Sequence[TwinRun], towers: Towers, scenes: int) -> None:
    """Nothing; both tables of one seed are then in its folder."""
    import pandas as pd

    wanted = {TABLE: scenes, READOUTS: scenes // 2}  # heads are chosen on one half
    if all(
        (home / name).is_file() and int(pd.read_csv(home / name)["images"].max()) == count
        for name, count in wanted.items()
    ):
        return
    subjects = _subjects(runs, towers)
    found = compare_examples(subjects, read_lab(limit=scenes), reword=reword_scene, metric=METRICS)
    _write(home / TABLE, found.to_frame())
    readouts = [_readouts(one, scenes).assign(system=one.name) for one in subjects if one.name in TWINS]
    _write(home / READOUTS, pd.concat(readouts, ignore_index=True))


def _readouts(subject: Subject, scenes: int) -> pd.DataFrame:
    first, second = tee(records_of(subject, read_lab(limit=scenes)))
    with threads_for(subject.model):
        return score_readouts((one for one, _ in first), (two for _, two in second), metric=READOUT_METRIC)


def _gathered(home: Path, seeds: Sequence[int], name: str) -> pd.DataFrame:
    """The tables of that name in all seeds' folders as one, with a column for the seed."""
    import pandas as pd

    kinds = {"layer": "Int64", "head": "Int64"}
    table = pd.concat([pd.read_csv(home / f"seed-{seed}" / name, dtype=kinds).assign(seed=seed) for seed in seeds])
    first = ["seed", "system"]
    table = table[[*first, *(one for one in table.columns if one not in first)]]
    _write(home / name, table)
    return table


def gather_training(home: Path, runs: Sequence[TwinRun]) -> pd.DataFrame:
    """What all runs were measured to be while they trained, with columns for seed and arm; also in ``training.csv``."""
    import pandas as pd

    tables = [pd.read_csv(one.folder / TRAINING).assign(seed=one.seed, arm=one.arm) for one in runs]
    table = pd.concat(tables, ignore_index=True)
    table = table[["seed", "arm", *(one for one in table.columns if one not in ("seed", "arm"))]]
    _write(home / TRAINING, table)
    return table


def _subjects(runs: Sequence[TwinRun], towers: Towers) -> list[Subject]:
    """Both encoders and the twins of one seed, by the names that they ship under."""
    names = {arm: name for name, arm in TWINS.items()}
    encoders = [replace(load_model(towers.home(one)), name=f"lab/{one}") for one in ("clip", "diffusion")]
    return [*encoders, *(replace(load_model(one.folder, dtype="float32"), name=names[one.arm]) for one in runs)]


def _write(place: Path, table: pd.DataFrame) -> None:
    write_beside(place, lambda beside: table.to_csv(beside, index=False, lineterminator="\n", float_format=DIGITS))
