"""The twins of every seed against each other and against their encoders, on the same unseen scenes: the tables that ship."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from probe.comparing import compare_examples
from probe.evaluation.lab import read_lab, reword_scene
from probe.files import write_beside
from probe.lab.storage import TWINS
from probe.models import load_model
from probe.seeds import SETTINGS, TABLE
from probe.series import TRAINING

if TYPE_CHECKING:
    import pandas as pd

    from probe.lab.towers import Towers
    from probe.lab.twins import TwinRun
    from probe.models import Subject

__all__ = ["METRICS", "SCENES", "compare_twins", "gather_training"]

METRICS = ("pointing", "auroc", "lift")
SCENES = 500
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

    Seeds that were compared before, on as many scenes, are read from the file in their folder.

    Parameters
    ----------
    home : the folder that the twins were trained in.
    runs : finished trainings, from ``train_twins``.
    on_seed : called with the number of seeds done, to show progress.
    """
    import pandas as pd

    tables = []
    for number, seed in enumerate(dict.fromkeys(one.seed for one in runs), start=1):
        place = home / f"seed-{seed}" / TABLE
        if not (place.is_file() and int(pd.read_csv(place)["images"].max()) == scenes):
            subjects = _subjects([one for one in runs if one.seed == seed], towers)
            found = compare_examples(subjects, read_lab(limit=scenes), reword=reword_scene, metric=METRICS).to_frame()
            _write(place, found)
        tables.append(pd.read_csv(place, dtype={"layer": "Int64", "head": "Int64"}).assign(seed=seed))
        if on_seed is not None:
            on_seed(number)
    table = pd.concat(tables, ignore_index=True)
    table = table[["seed", *(one for one in table.columns if one != "seed")]]
    _write(home / TABLE, table)
    settings = {
        "data": "lab",
        "scenes": scenes,
        "metrics": METRICS,
        "frozen": {k: towers.source(k) for k in ("clip", "diffusion")},
    }
    text = json.dumps(settings, indent=2) + "\n"
    write_beside(home / SETTINGS, lambda beside: beside.write_text(text, encoding="utf-8"))
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
