"""How well each head and layer localises, over many images: ``score_heads`` and the table that it makes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import isnan, nan
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from probe.analysis.concentration import PEAKS
from probe.analysis.metrics import find_metric
from probe.analysis.scorer import Combine, ImageScorer, Reading, ScoreSettings
from probe.analysis.stats import Interval, Intervals, Pictures, PoissonBootstrap
from probe.analysis.structure import Cell, Structure
from probe.analysis.targets import Masks, in_step
from probe.attention import AttentionRecord
from probe.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HeadScores", "HeadTally", "score_heads"]

#: Kind of cell -> the row that reports the best of them, chosen on the even images, on the odd ones.
HELD_OUT: dict[str, str] = {"layer": "best_layer_held_out", "head": "best_head_held_out"}

COLUMNS = ("metric", "kind", "name", "layer", "timestep", "head", "value", "low", "high", "images", "phrases")


def score_heads(
    records: Iterable[AttentionRecord],
    masks: Iterable[Masks],
    *,
    pictures: Iterable[Hashable] | None = None,
    metric: str | Sequence[str] = "pointing",
    reading: Reading = "minus mean",
    combine: Combine = "mean",
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> HeadScores:
    """Scores of every head, layer, reading and control, with intervals over images: one pass, in memory for one image.

    >>> scores = score_heads(records, masks, metric=("pointing", "auroc"))
    >>> scores.reading("minus_mean"), scores.top(10, split="held-out")

    Parameters
    ----------
    records : one for each image, all from the same layers and heads; images and grids may differ, those of one record's layers
        too. May be a generator.
    masks : for each image, phrase -> (height, width) mask of the original image's size, or pairs of the two. A key is a phrase,
        (phrase, occurrence) or (start, end) characters of ``record.text``. May be a generator; both are read in step.
    pictures : for each record, what tells its picture from others, where several records can be of one picture: these are then
        drawn together by the bootstrap, stand on one side of the held-out split, and count as one image.
    metric : one name or several of ``probe.analysis.metrics.METRICS``.
    reading : what the rows of single heads read: each head's map "minus mean" (Eq. 3) or its "attention" as recorded.
    combine : how the maps of a phrase's tokens become one: "mean", "first" or "max".
    replicates, confidence, seed : of the Poisson bootstrap over images, see ``probe.analysis.stats``.

    Returns
    -------
    Rows ``mean_map`` (mean over layers and heads) and ``minus_mean`` (the same minus its mean over the answer) are always there;
    so are the layers (mean over heads, minus mean) and the controls, which use the ``minus_mean`` map; ``shuffled`` has no first
    image. Heads and layers are scored on their own grids; where these differ, means over layers are taken on the finest of them, to
    which the others are area-averaged. With several timesteps there is a row for each, and for each head at each; the other rows
    are of their mean. Class-token rows, one map for all phrases, have no mean to subtract: layers and controls then use the maps as
    recorded. Values are means over phrases; a phrase that a map cannot be scored on is left out of that row, and ``left_out``
    counts it. Beside every score of a map stands where that map peaks: see ``probe.analysis.concentration.PEAKS``.

    Raises
    ------
    InputError
        If there is no image, the two differ in length, records cannot stand in one table, a phrase is unknown or a mask has
        another size; the message names the image, counted from 0.

    References
    ----------
    Eq. 3: Cao, Gui, Wang, Emergent Visual Grounding in Large Multimodal Models Without Grounding Supervision, arXiv 2410.08209.
    """
    names = (metric,) if isinstance(metric, str) else tuple(dict.fromkeys(metric))
    if not names:
        raise InputError("No metric asked for; give at least one, for example metric='pointing'.")
    for name in names:
        find_metric(name)
    tally = HeadTally(ScoreSettings(names, reading, combine, replicates, confidence, seed))
    own = count() if pictures is None else iter(pictures)
    for index, record, of_image in in_step(records, masks):
        picture: Hashable = next(own, None)
        if picture is None:
            raise InputError(f"There are {index} pictures but more records; give one for each record, or none at all.")
        try:
            tally.add(picture, record, of_image)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
    return tally.result()


class HeadTally:
    """Running scores of every head, layer, reading and control, one image after the other: what ``score_heads`` sums up in."""

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings = settings
        self._scorer = ImageScorer(settings)
        self._structure: Structure | None = None
        self._pictures, self._phrases = Pictures(), 0

    def add(self, picture: Hashable, record: AttentionRecord, masks: Masks) -> None:
        """Adds a record of this picture.

        Raises
        ------
        InputError
            If the record cannot stand in one table with the first, or a phrase or mask does not fit it.
        """
        found = Structure.of(record)
        if self._structure is None:
            self._begin(found)
        found.require_like(self._structure or found)
        sums, counts, phrases = self._scorer.score(record, masks)
        number, new = self._pictures.number(picture), self._pictures.new(picture, counts)
        scored, peaked = np.split(np.stack([sums, counts, new]), [self._scored], axis=1)
        self._halves[number % 2].add(number, scored[0], scored[1], new=scored[2] > 0)
        self._peaked.add(number, peaked[0], peaked[1], new=peaked[2] > 0)
        self._phrases += phrases

    def _begin(self, structure: Structure) -> None:
        self._structure, self._cells = structure, structure.cells(self.settings.metrics)
        self._scored = sum(one.metric not in PEAKS for one in self._cells)  # they come first
        # Nothing is chosen by where maps peak, so that needs no halves.
        sizes = (self._scored, self._scored, len(self._cells) - self._scored)
        replicates, seed = self.settings.replicates, self.settings.seed
        *self._halves, self._peaked = (PoissonBootstrap(one, replicates=replicates, seed=seed) for one in sizes)

    def replicates(self, cell: Cell) -> tuple[Interval, NDArray[np.float64]]:
        """A cell's interval on the images of odd index, and its (replicate,) values there; those of two tallies are paired."""
        place, odd = self._cells.index(cell), self._halves[1]
        return odd.intervals(confidence=self.settings.confidence)[place], odd.replicated()[:, place]

    def result(self) -> HeadScores:
        """The scores of the images added so far.

        Raises
        ------
        InputError
            If there is none, or no phrase in any of them.
        """
        if self._structure is None:
            raise InputError("There is no image to score: records and masks are empty.")
        if not self._phrases:
            raise InputError(
                f"There is no phrase to score in {len(self._pictures)} images; give data whose texts have phrases with masks."
            )
        confidence = self.settings.confidence
        both = self._halves[0] + self._halves[1]
        return HeadScores(
            settings=self.settings,
            images=len(self._pictures),
            phrases=self._phrases,
            quantity=self._structure.quantity,
            layers=self._structure.layers,
            heads=self._structure.heads,
            timesteps=self._structure.timesteps,
            left_out=self._scorer.left_out,
            cells=self._cells[: self._scored],
            everything=both.intervals(confidence=confidence),
            halves=(self._halves[0].intervals(confidence=confidence), self._halves[1].intervals(confidence=confidence)),
            peak_cells=self._cells[self._scored :],
            peaks=self._peaked.intervals(confidence=confidence),
        )


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores by layer and head with intervals, beside readings and controls: what ``score_heads`` gives.

    Attributes
    ----------
    settings : what was asked for.
    images, phrases : how many were given; each row tells how many it rests on.
    quantity : what was scored: "attention", or the "contribution" of a patch to a similarity.
    layers, heads : module path of each layer, and the model's own numbers of its heads.
    timesteps : the scheduler's number of each timestep; (-1,) for a mean, and where a model has none.
    left_out : reason -> number of images or phrases that are missing from rows.
    cells : what each position of the intervals belongs to.
    everything : scores over all images.
    halves : scores over the images of even and of odd index, for choosing on one half and reporting on the other.
    peak_cells, peaks : where the scored maps peak, over all images; read it with ``peak`` or from the table.
    """

    settings: ScoreSettings
    images: int
    phrases: int
    quantity: str
    layers: tuple[str, ...]
    heads: tuple[tuple[int, ...], ...]
    timesteps: tuple[int, ...]
    left_out: dict[str, int]
    cells: tuple[Cell, ...]
    everything: Intervals
    halves: tuple[Intervals, Intervals]
    peak_cells: tuple[Cell, ...]
    peaks: Intervals

    @property
    def reading_name(self) -> str:
        """What the rows of single heads read, in words: "minus mean", or the quantity as it was recorded."""
        if self.settings.reading == "attention":
            return self.quantity
        return "minus mean" if self.quantity == "attention" else f"{self.quantity} minus mean"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics asked for; the first is what methods use unless told."""
        return self.settings.metrics

    def grid(self, metric: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Value, low and high of every head, each (layer, head), NaN where a layer has fewer heads.

        Columns are positions in ``heads``.
        """
        places = self._places(self._metric(metric), "head")
        shape = (len(self.layers), max(map(len, self.heads)))
        filled = np.arange(shape[1]) < np.array([len(one) for one in self.heads])[:, None]
        grids = []
        for source in (self.everything.value, self.everything.low, self.everything.high):
            one = np.full(shape, nan)
            one[filled] = source[places]
            grids.append(one)
        return grids[0], grids[1], grids[2]

    def reading(self, name: str, metric: str | None = None) -> Interval:
        """The interval of a reading, control or held-out row: "minus_mean", "chance", "best_head_held_out", ...

        Raises
        ------
        InputError
            If there is no such row.
        """
        metric = self._metric(metric)
        rows = {cell.name: interval for cell, interval in self._summary if cell.metric == metric}
        name = name if name in rows else name.replace(" ", "_")
        if name not in rows:
            raise InputError(f"No row {name!r} for {metric!r}; there are {', '.join(rows)}.{did_you_mean(name, rows)}")
        return rows[name]

    def peak(self, cell: Cell, name: str) -> Interval | None:
        """One of ``PEAKS`` for the map that a cell's score is of, over all images; None for what has no one map, as controls."""
        place = self._peak_places.get((name, *_map_of(cell)))
        return None if place is None else self.peaks[place]

    def to_frame(self) -> pd.DataFrame:
        """One row for each reading, held-out choice, control, layer, head and timestep under each metric.

        Columns: metric, kind ("reading", "held-out", "difference", "control", "layer" or "head"; with several timesteps also
        "timestep" and "head at timestep"), name, layer, timestep, head, value, low, high, images, phrases; then each of ``PEAKS``
        for the map that was scored, with _low and _high, missing where a row has no one map. ``layer`` is a position in
        ``layers``, ``timestep`` and ``head`` the model's own numbers; they are missing where they mean nothing, except that
        held-out rows tell which was chosen.
        """
        kinds = ("layer", "head", "timestep", "head at timestep")
        several = [(cell, self.everything[i]) for i, cell in enumerate(self.cells) if cell.kind in kinds]
        frame = self._frame([*self._summary, *several])
        # Kept in parquet files, so that a table still says what it is of.
        frame.attrs.update(quantity=self.quantity, reading=self.reading_name)
        return frame

    def top(self, n: int = 10, *, metric: str | None = None, split: Literal["all", "held-out"] = "all") -> pd.DataFrame:
        """The best n heads, best first, in the columns of ``to_frame``; of equal ones the earlier layer and head comes first.

        Parameters
        ----------
        split : "all" ranks and reports on all images, which flatters the best; "held-out" ranks on the images of even index (column
            ``chosen_by``) and reports the others.

        Raises
        ------
        InputError
            If ``split`` or the metric is unknown.
        """
        if split not in ("all", "held-out"):
            raise InputError(f"split must be 'all' or 'held-out', found {split!r}.")
        metric = self._metric(metric)
        ranked_on, shown = (self.everything, self.everything) if split == "all" else self.halves
        best = self._ranking(metric, "head", ranked_on)[: max(n, 0)]
        frame = self._frame([(self.cells[i], shown[i]) for i in best])
        if split == "held-out":
            frame.insert(COLUMNS.index("value"), "chosen_by", ranked_on.value[best])
        return frame

    def _metric(self, metric: str | None) -> str:
        known = dict.fromkeys(cell.metric for cell in self.cells)
        if metric is not None and metric not in known:
            raise InputError(f"No scores for {metric!r}; there are {', '.join(known)}.{did_you_mean(metric, known)}")
        return metric or self.metrics[0]

    def _places(self, metric: str, kind: str) -> list[int]:
        return [i for i, cell in enumerate(self.cells) if cell.metric == metric and cell.kind == kind]

    def _ranking(self, metric: str, kind: str, on: Intervals) -> list[int]:
        """Positions of the cells of a kind, best first, those without a value left out."""
        sign = -1 if find_metric(metric).higher_is_better else 1
        known = [i for i in self._places(metric, kind) if not isnan(on.value[i])]
        return sorted(known, key=lambda i: sign * on.value[i])

    @cached_property
    def _summary(self) -> list[tuple[Cell, Interval]]:
        """Readings, held-out choices and controls, by metric."""
        rows: list[tuple[Cell, Interval]] = []
        for metric in dict.fromkeys(cell.metric for cell in self.cells):
            for kind in ("reading", "held-out", "difference", "control"):
                rows += [(self.cells[i], self.everything[i]) for i in self._places(metric, kind)]
                if kind == "held-out" and metric in self.metrics:
                    rows += [self._held_out(metric, of) for of in HELD_OUT]
        return rows

    def _held_out(self, metric: str, kind: str) -> tuple[Cell, Interval]:
        """The best layer or head of the even images, and what it scores on the odd ones."""
        best = self._ranking(metric, kind, self.halves[0])
        if not best:
            return Cell(metric, "held-out", HELD_OUT[kind]), Interval(nan, nan, nan, 0, 0)
        chosen = self.cells[best[0]]
        return Cell(metric, "held-out", HELD_OUT[kind], chosen.layer, chosen.head), self.halves[1][best[0]]

    def __repr__(self) -> str:
        counts = sorted({len(one) for one in self.heads})
        heads = f"{len(self.layers)} layers x {' or '.join(map(str, counts))} heads"
        lines = [
            f"HeadScores({self.images} images, {self.phrases} phrases, {heads}, heads read as {self.reading_name!r})"
        ]
        for cell, interval in self._summary:
            where = [
                f"{key} {value}" for key, value in (("layer", cell.layer), ("head", cell.head)) if value is not None
            ]
            place = f" ({', '.join(where)})" if where else ""
            lines.append(f"  {cell.metric:18}{cell.name:21}{interval}{place}")
        lines += [f"  left out: {count} - {reason}" for reason, count in self.left_out.items()]
        return "\n".join(lines)

    @cached_property
    def _peak_places(self) -> dict[tuple[Any, ...], int]:
        return {(cell.metric, *_map_of(cell)): i for i, cell in enumerate(self.peak_cells)}

    def _frame(self, rows: Sequence[tuple[Cell, Interval]]) -> pd.DataFrame:
        import pandas as pd

        columns = {key: [getattr(cell if hasattr(cell, key) else one, key) for cell, one in rows] for key in COLUMNS}
        for name in PEAKS:
            found = [self.peak(cell, name) for cell, _ in rows]
            for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                columns[f"{name}{end}"] = [nan if one is None else getattr(one, key) for one in found]
        # Int64 is the integer that may be missing: a reading has no layer, and 3.0 is not a layer's number.
        return pd.DataFrame(columns).astype({"layer": "Int64", "timestep": "Int64", "head": "Int64"})


def _map_of(cell: Cell) -> tuple[str | None, int | None, int | None, int | None]:
    """The map that a cell's number is of: a layer, head or timestep by number, anything else by name."""
    numbered = cell.layer is not None or cell.timestep is not None
    return (None if numbered else cell.name), cell.layer, cell.head, cell.timestep
