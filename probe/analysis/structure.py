"""What a table of scores has rows for: the layers, heads and timesteps that every record of it must share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probe.analysis import controls
from probe.analysis.concentration import PEAKS
from probe.attention import AttentionRecord
from probe.errors import InputError

__all__ = ["DIFFERENCE", "READINGS", "Cell", "Structure"]

Kind = Literal["reading", "layer", "timestep", "head", "head at timestep", "held-out", "control", "difference"]

READINGS = ("mean_map", "minus_mean")
DIFFERENCE = "minus_mean - mean_map"


@dataclass(frozen=True)
class Cell:
    """What one number of the table belongs to; ``layer`` is a position in the record, ``head`` and ``timestep`` are the model's own
    numbers."""

    metric: str
    kind: Kind
    name: str
    layer: int | None = None
    head: int | None = None
    timestep: int | None = None


@dataclass(frozen=True)
class Structure:
    """What every record of one table must share."""

    layers: tuple[str, ...]
    heads: tuple[tuple[int, ...], ...]
    timesteps: tuple[int, ...]
    quantity: str
    query_kind: str
    softmax_over: str | None
    query_row: str | None
    ablation: str

    @classmethod
    def of(cls, record: AttentionRecord) -> Structure:
        """The record's structure.

        Raises
        ------
        InputError
            If its layers differ in view or timesteps, or its mean was subtracted already.
        """
        if "minus mean" in record.history:
            raise InputError(
                "the record's mean map is subtracted already; give the record as recorded, and reading=..."
            )
        first = record.layers[0]
        for one in record.layers[1:]:
            if one.view != first.view:
                raise InputError(
                    f"layer {first.name!r} sees {first.view!r} but {one.name!r} sees {one.view!r}; score one view at a time: "
                    "record.select(view=...)."
                )
            if one.timesteps != first.timesteps:
                raise InputError(
                    f"layer {first.name!r} has timesteps {first.timesteps} but {one.name!r} has {one.timesteps}; take their mean, "
                    'record.mean("timestep"), or score them apart.'
                )
        return cls(
            tuple(one.name for one in record.layers),
            tuple(one.heads for one in record.layers),
            first.timesteps,
            record.quantity,
            record.query_kind,
            record.softmax_over,
            record.query_row,
            record.source.ablation,
        )

    def require_like(self, first: Structure) -> None:
        """Raises InputError, naming what differs, unless this record can stand in one table with the first."""
        if (self.layers, self.heads) != (first.layers, first.heads):
            described = [f"{len(one.layers)} layers with {[len(h) for h in one.heads]} heads" for one in (self, first)]
            odd = [(a, b) for a, b in zip(self.layers, first.layers, strict=False) if a != b]
            named = f" (layer {odd[0][0]!r} instead of {odd[0][1]!r})" if odd else ""
            raise InputError(
                f"the record has {described[0]} but image 0 has {described[1]}{named}; all records of one table must come "
                "from the same layers and heads of one model: select() the same in each."
            )
        for name in ("quantity", "query_kind", "softmax_over", "query_row", "timesteps", "ablation"):
            here, there = getattr(self, name), getattr(first, name)
            if here != there:
                raise InputError(
                    f"the record's {name} is {here!r} but image 0 has {there!r}; these values are not comparable, so score "
                    "them in separate tables."
                )

    def cells(self, metrics: Sequence[str]) -> tuple[Cell, ...]:
        """Every number that one image gives, in the order of ``ImageScorer.score``."""
        cells = []
        for metric in metrics:
            readings, several = self._map_cells(metric)
            cells += [*readings, *(Cell(metric, "control", name) for name in controls.CONTROLS), *several]
        if "pointing" in metrics and "pointing_bicubic" not in metrics:
            cells += [Cell("pointing_bicubic", "reading", name) for name in READINGS]
        # Both maps are scored on the same phrases, so their difference is paired: its interval is not that of two intervals.
        cells += [Cell(metric, "difference", DIFFERENCE) for metric in metrics]
        for name in PEAKS:
            cells += [one for part in self._map_cells(name) for one in part]
        return tuple(cells)

    def _map_cells(self, metric: str) -> tuple[list[Cell], list[Cell]]:
        """The readings, and all layers, heads and timesteps."""
        layers = [Cell(metric, "layer", name, layer) for layer, name in enumerate(self.layers)]
        heads = [
            Cell(metric, "head", self.layers[layer], layer, head)
            for layer, heads in enumerate(self.heads)
            for head in heads
        ]
        return [Cell(metric, "reading", name) for name in READINGS], [*layers, *heads, *self._cells_over_time(metric)]

    def _cells_over_time(self, metric: str) -> list[Cell]:
        """The mean map and every head at each timestep, where there are several."""
        if len(self.timesteps) == 1:
            return []
        cells = [Cell(metric, "timestep", f"timestep {step}", timestep=step) for step in self.timesteps]
        return cells + [
            Cell(metric, "head at timestep", self.layers[layer], layer, head, step)
            for step in self.timesteps
            for layer, heads in enumerate(self.heads)
            for head in heads
        ]
