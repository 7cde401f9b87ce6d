"""The same comparison from several seeds of training: what was measured now, what ships as a table, and what all of it supports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.analysis.agreement import Agreement, agreements
from probe.analysis.differences import PairedDifference
from probe.analysis.stats import Interval
from probe.errors import ModelError
from probe.lab.storage import MODELS, TWIN_TABLES, TWINS

if TYPE_CHECKING:
    import pandas as pd

    from probe.analysis.differences import Comparison

__all__ = ["SETTINGS", "TABLE", "SeedComparison", "compare_seeds", "read_shipped", "seed_of"]

#: In the folder of the twins: one row a number, with the seed that its models were trained from; and how they were measured.
TABLE, SETTINGS = "comparison.csv", "comparison.json"
BOUNDS = ("value", "low", "high", "images", "phrases")


@dataclass(frozen=True, eq=False)
class SeedComparison:
    """A comparison of systems that were trained from one seed.

    Attributes
    ----------
    seed : of the training; None where that is not known, or systems are of several.
    source : "measured" now, or "shipped" as a table.
    frame : rows as ``Comparison.to_frame`` gives them.
    """

    seed: int | None
    source: Literal["measured", "shipped"]
    frame: pd.DataFrame

    @property
    def names(self) -> tuple[str, ...]:
        """The systems."""
        return tuple(self._kind("reading")["system"].unique())

    @property
    def paired(self) -> tuple[PairedDifference, ...]:
        """The differences between them, first - second."""
        return tuple(
            PairedDifference(
                row["metric"], row["system"], row["second"], _interval(row), row["p_value"], row["p_holm"], row["note"]
            )
            for _, row in self._kind("difference").fillna({"note": ""}).iterrows()
        )

    def to_dict(self) -> dict[str, Any]:
        """Seed, source, and for each system its reading, its score under each metric, and its best head on held-out images."""
        systems: dict[str, Any] = {}
        for _, row in self._kind("reading").iterrows():
            one = systems.setdefault(row["system"], {"reading": row["name"], "best_head_held_out": {}})
            one[row["metric"]] = vars(_interval(row))
        for _, row in self._kind("best head").iterrows():
            place = {key: None if row[key] != row[key] else int(row[key]) for key in ("layer", "head")}
            systems[row["system"]]["best_head_held_out"][row["metric"]] = place | vars(_interval(row))
        differences = [
            {"metric": one.metric, "first": one.first, "second": one.second} | vars(one.difference)
            for one in self.paired
        ]
        return {"seed": self.seed, "source": self.source, "systems": systems, "paired": differences}

    def _kind(self, kind: str) -> pd.DataFrame:
        return self.frame[self.frame["kind"] == kind].astype({"layer": "object", "head": "object"})


def compare_seeds(
    found: Comparison, names: Sequence[str], *, comparable: bool
) -> tuple[list[SeedComparison], tuple[Agreement, ...]]:
    """What was found now, the shipped numbers of the same systems from other seeds, and on what all trainings agree.

    Parameters
    ----------
    names : of the models that were compared, as they were loaded.
    comparable : True if it was measured as the shipped numbers were: on plain lab scenes, with every option as it is by default.
    """
    trained = [name for name in names if name in TWINS]
    seeds = {seed_of(one) for one in trained or names}
    now = SeedComparison(seeds.pop() if len(seeds) == 1 else None, "measured", found.to_frame())
    shipped = read_shipped(names) if comparable and trained else []
    others = [one for one in shipped if one.seed != now.seed]
    # Other trainings were scored on all scenes that were measured for the table; on fewer, differences are of other images.
    same = [one for one in shipped if one.seed == now.seed and len(one.frame) and _images(one) != found.images]
    whole = {one.seed or 0: one.paired for one in (*(same or [now]), *others)}
    return [now, *others], agreements(whole, trained=trained)


def read_shipped(names: Sequence[str], home: Path = TWIN_TABLES) -> list[SeedComparison]:
    """The shipped comparison of these systems for each seed, less what it does not know.

    Raises
    ------
    ModelError
        If the table is missing or is none.
    """
    import pandas as pd

    try:
        table = pd.read_csv(home / TABLE, dtype={"layer": "Int64", "head": "Int64"})
        known = table[table["system"].isin(names) & (table["second"].isna() | table["second"].isin(names))]
        return [
            SeedComparison(int(str(seed)), "shipped", part.drop(columns="seed"))
            for seed, part in known.groupby("seed", sort=True)
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{home / TABLE} is not the table of all seeds ({error}); install the package again."
        ) from error


def seed_of(name: str) -> int | None:
    """The seed that a lab model was trained from, as its folder says; None for anything else."""
    home = MODELS.get(name, Path(name))
    try:
        return int(json.loads((home / "training.json").read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _images(one: SeedComparison) -> int:
    return int(one.frame["images"].max())


def _interval(row: Any) -> Interval:
    value, low, high, images, phrases = (row[key] for key in BOUNDS)
    return Interval(float(value), float(low), float(high), int(images), int(phrases))
