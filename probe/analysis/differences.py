"""What a comparison of several systems found: readings, controls, paired differences, and what was refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.analysis import controls
from probe.analysis.heads import HeadScores
from probe.analysis.stats import Interval
from probe.analysis.systems import Traits
from probe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BESIDE", "COLUMNS", "Comparison", "PairedDifference", "Refusal", "SystemScores"]

#: What stands beside a system's reading on the common grid, in the order of tables.
BESIDE = controls.CONTROLS | {
    "paraphrase": "how far the reading moves when only the words change",
    "floor": "other_phrase + paraphrase: what the reading must beat",
    "margin": "reading - floor, phrase by phrase",
}

#: Of ``Comparison.to_frame``.
COLUMNS = (
    "metric", "kind", "system", "second", "name", "layer", "head", "value", "low", "high", "images", "phrases", "p_value", "p_holm",
    "note",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SystemScores:
    """What was found of one system.

    Attributes
    ----------
    reading : what is read of it, in words.
    traits : what its values are; it decides what may be compared.
    grids : (rows, cols) of its own grids; of images of other shapes they may differ.
    scores : metric -> interval of the reading on the common grid.
    controls : metric -> name in ``BESIDE`` -> interval, of the same map on the same grid.
    heads : every layer and head on its own grid, and the reading there: beside, never mixed with the rest.
    """

    reading: str
    traits: Traits
    grids: tuple[tuple[int, int], ...]
    scores: dict[str, Interval]
    controls: dict[str, dict[str, Interval]]
    heads: HeadScores

    def native(self, metric: str) -> Interval:
        """The interval of the reading on the system's own grid."""
        return self.heads.reading("minus_mean" if self.traits.reading == "minus mean" else "mean_map", metric)

    def best_head(self, metric: str) -> dict[str, Any]:
        """The head chosen on the even images, with its interval on the odd ones: name, layer (its position), head, value, ..."""
        best = self.heads.top(1, metric=metric, split="held-out")
        place = {key: int(best[key].iloc[0]) if len(best) else None for key in ("layer", "head")}
        return {"name": "best_head_held_out"} | place | vars(self.heads.reading("best_head_held_out", metric))


@dataclass(frozen=True)
class PairedDifference:
    """How much better one system's reading scores than another's on the same phrases of the same images.

    Attributes
    ----------
    difference : first - second on the common grid, with its interval over images.
    p_value : two-sided, of "it does not matter which is which", by sign flips of whole images.
    p_holm : the same, corrected for all pairs and metrics of the comparison.
    note : why to read it with care, or "".
    """

    metric: str
    first: str
    second: str
    difference: Interval
    p_value: float
    p_holm: float
    note: str


@dataclass(frozen=True)
class Refusal:
    """Two systems that are not compared under a metric, and why."""

    metric: str
    first: str
    second: str
    reason: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several systems on the same images and phrases: what ``compare_records`` gives.

    Attributes
    ----------
    images, phrases : how many were given; each interval tells how many it rests on.
    grids : (rows, cols) of the common grids.
    systems : name -> what was found of it.
    paired : one for each metric and pair of systems that may be compared.
    refused : the others.
    left_out : reason -> number of phrases or images that count for no system.
    """

    images: int
    phrases: int
    grids: tuple[tuple[int, int], ...]
    systems: dict[str, SystemScores]
    paired: tuple[PairedDifference, ...]
    refused: tuple[Refusal, ...]
    left_out: dict[str, int]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics asked for."""
        return tuple(next(iter(self.systems.values())).scores)

    def difference(self, first: str, second: str, metric: str) -> PairedDifference:
        """The paired difference of two systems, in the order in which they were compared.

        Raises
        ------
        InputError
            If there is none, or it was refused; the message gives the reason.
        """
        for one in self.paired:
            if (one.metric, one.first, one.second) == (metric, first, second):
                return one
        for two in self.refused:
            if (two.metric, two.first, two.second) == (metric, first, second):
                raise InputError(f"{first!r} and {second!r} are not compared under {metric!r}: {two.reason}.")
        pairs = ", ".join(f"{one.first!r} and {one.second!r}" for one in self.paired if one.metric == self.metrics[0])
        raise InputError(f"No difference of {first!r} and {second!r} under {metric!r}; there are {pairs}.")

    def to_frame(self) -> pd.DataFrame:
        """One row for each reading, control and difference on the common grid, and each reading and best head on its own grid.

        Columns: metric, kind ("reading", "control", "own grid", "best head" or "difference"), system, second (of a difference),
        name, layer and head (of the best head, chosen on the even images and scored on the odd ones), value, low, high, images,
        phrases, p_value, p_holm, note.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for metric in self.metrics:
            for name, one in self.systems.items():
                found = [("reading", one.reading, one.scores[metric]), ("own grid", one.reading, one.native(metric))]
                found += [("control", label, interval) for label, interval in one.controls[metric].items()]
                rows += [
                    {"metric": metric, "kind": kind, "system": name, "name": label} | vars(two)
                    for kind, label, two in found
                ]
                rows.append({"metric": metric, "kind": "best head", "system": name} | one.best_head(metric))
            for pair in (one for one in self.paired if one.metric == metric):
                row = {"metric": metric, "kind": "difference", "system": pair.first, "second": pair.second}
                row |= {"name": f"{pair.first} - {pair.second}"} | vars(pair.difference)
                rows.append(row | {"p_value": pair.p_value, "p_holm": pair.p_holm, "note": pair.note})
        return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype({"layer": "Int64", "head": "Int64"})

    def __repr__(self) -> str:
        lines = [f"Comparison({self.images} images, {self.phrases} phrases, {len(self.systems)} systems)"]
        for name, one in self.systems.items():
            lines += [f"  {name}: {one.reading}"]
            lines += [f"    {metric:18}{interval}" for metric, interval in one.scores.items()]
        for pair in self.paired:
            value = f"{pair.difference.value:+.3f} [{pair.difference.low:+.3f}, {pair.difference.high:+.3f}]"
            lines.append(f"  {pair.metric:10}{pair.first} - {pair.second}: {value}, p (Holm) {pair.p_holm:.4f}")
        lines += [f"  refused: {one.metric} of {one.first} and {one.second}: {one.reason}" for one in self.refused]
        return "\n".join(lines)
