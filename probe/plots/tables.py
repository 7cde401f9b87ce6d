"""A table of scores, from ``HeadScores`` or from the file it was saved to, as the pictures read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = Any  # a HeadScores, or its to_frame() as it was or as it was read back

__all__ = ["Row", "ScoreTable", "layer_numbers", "score_table"]

COLUMNS = ("metric", "kind", "name", "layer", "head", "value", "low", "high", "images", "phrases")


@dataclass(frozen=True)
class Row:
    """One line of the table: a value and its interval, NaN where there is none."""

    kind: str
    name: str
    value: float
    low: float
    high: float
    images: int

    @property
    def text(self) -> str:
        """The numbers as they are written: "0.71 [0.66, 0.75]"."""
        if not np.isfinite(self.value):
            return "undefined"
        interval = f" [{self.low:.2f}, {self.high:.2f}]" if np.isfinite([self.low, self.high]).all() else ""
        return f"{self.value:.2f}{interval}"


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """One metric's part of a table of scores.

    Attributes
    ----------
    metric : its name.
    reading, quantity : what single heads were scored on, where the scores say it.
    images, phrases : how many were scored.
    layers : the number of each layer, or its place where the names hold no number of their own.
    heads : the model's own number of each head.
    value, low, high : (layer, head), NaN where a layer has fewer heads.
    rows : everything that is not a single head: readings, held-out choices, controls and layers, in the table's order.
    """

    metric: str
    reading: str | None
    quantity: str | None
    images: int
    phrases: int
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    rows: tuple[Row, ...]

    @property
    def chance(self) -> float | None:
        """What a map that says nothing reaches, if the table says it."""
        found = [row.value for row in self.rows if row.name == "chance"]
        return found[0] if found and np.isfinite(found[0]) else None

    @property
    def counts(self) -> str:
        return ", ".join(f"{count:,} {name}" for count, name in ((self.images, "images"), (self.phrases, "phrases")))


def score_table(scores: Scores, metric: str | None) -> ScoreTable:
    """The part of the scores with this metric, or with their first one.

    Raises
    ------
    InputError
        If the scores are no such table, or have no such metric.
    """
    frame = scores.to_frame() if hasattr(scores, "to_frame") else scores
    missing = [name for name in COLUMNS if name not in getattr(frame, "columns", ())]
    if missing:
        raise InputError(
            f"Scores must be a HeadScores or its table with columns {', '.join(COLUMNS)}; {type(scores).__name__} has no "
            f"{missing[0]!r}."
        )
    known = list(dict.fromkeys(frame["metric"]))
    metric = (known[0] if known else "none") if metric is None else metric
    if metric not in known:
        raise InputError(f"No metric {metric!r} in these scores, which have {known}.{did_you_mean(metric, known)}")
    part = frame[frame["metric"] == metric]
    single = part[part["kind"] == "head"]
    # Layers by their place, since names need not differ; heads by the model's own number.
    layers = dict(zip(single["layer"].astype(int), single["name"], strict=True))
    heads = sorted({int(one) for one in single["head"]})
    grid = np.full((3, len(layers), len(heads)), np.nan)
    for layer, head, *numbers in single[["layer", "head", "value", "low", "high"]].itertuples(index=False):
        grid[:, list(layers).index(int(layer)), heads.index(int(head))] = numbers
    others = part[~part["kind"].isin(["head", "head at timestep", "difference"])][
        ["kind", "name", "value", "low", "high", "images"]
    ]
    rows = tuple(
        Row(str(kind), str(name), float(value), float(low), float(high), int(images))
        for kind, name, value, low, high, images in others.itertuples(index=False)
    )
    value, low, high = grid
    return ScoreTable(
        metric=metric,
        reading=frame.attrs.get("reading"),
        quantity=frame.attrs.get("quantity"),
        images=int(part["images"].max()),
        phrases=int(part["phrases"].max()),
        layers=layer_numbers(tuple(layers.values())),
        heads=tuple(heads),
        value=value,
        low=low,
        high=high,
        rows=rows,
    )


def layer_numbers(names: tuple[str, ...]) -> tuple[int, ...]:
    """The one number in each module path ("model.layers.3.self_attn" is 3); places, if any path has none or several."""
    found = [re.findall(r"\d+", name) for name in names]
    numbers = [int(one[0]) for one in found if len(one) == 1]
    return tuple(numbers) if len(set(numbers)) == len(names) else tuple(range(len(names)))
