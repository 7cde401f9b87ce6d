"""The scores of one image: every head, layer, reading and control under every metric, as one row of sums and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis import controls
from probe.analysis.concentration import PEAKS, peaks
from probe.analysis.metrics import METRICS, REASONS, degenerate_reason, score
from probe.analysis.targets import Masks, Target, read_masks, resize_masks
from probe.attention import AttentionRecord, LayerAttention
from probe.errors import InputError

__all__ = ["Cell", "Combine", "ImageScorer", "Reading", "ScoreSettings", "Structure", "mean_maps", "word_maps"]

Reading = Literal["attention", "minus mean"]
Combine = Literal["mean", "first", "max"]
Kind = Literal["reading", "layer", "head", "held-out", "control", "difference"]

READINGS = ("mean_map", "minus_mean")
DIFFERENCE = "minus_mean - mean_map"

#: Numbers of the maps scored at once (16 MB of float32): few calls, and a bound on memory however many layers there are.
CHUNK = 2**22


@dataclass(frozen=True)
class ScoreSettings:
    """What ``score_heads`` was asked for.

    Attributes
    ----------
    metrics : names in ``probe.analysis.metrics.METRICS``.
    reading : what the rows of single heads read: "minus mean" (Eq. 3) or "attention" as recorded.
    combine : how the maps of a phrase's tokens become one: their "mean", the "first", or the "max" in each patch.
    replicates, confidence, seed : of the bootstrap over images.
    """

    metrics: tuple[str, ...]
    reading: Reading = "minus mean"
    combine: Combine = "mean"
    replicates: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("reading", self.reading, ("attention", "minus mean")),
            ("combine", self.combine, ("mean", "first", "max")),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(map(repr, known))}; found {value!r}.")


@dataclass(frozen=True)
class Cell:
    """What one number of the table belongs to; ``layer`` is a position in the record, ``head`` the model's own number."""

    metric: str
    kind: Kind
    name: str
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Structure:
    """What every record of one table must share."""

    layers: tuple[str, ...]
    heads: tuple[tuple[int, ...], ...]
    quantity: str
    softmax_over: str | None
    query_row: str | None

    @classmethod
    def of(cls, record: AttentionRecord) -> Structure:
        """The record's structure.

        Raises
        ------
        InputError
            If its layers differ in view or grid, or its mean was subtracted already.
        """
        if "minus mean" in record.history:
            raise InputError(
                "the record's mean map is subtracted already; give the record as recorded, and reading=..."
            )
        first = record.layers[0]
        for one in record.layers[1:]:
            edges = [(layer.view, layer.grid.row_edges, layer.grid.col_edges) for layer in (first, one)]
            if edges[0] != edges[1]:
                raise InputError(
                    f"layer {first.name!r} sees {first.view!r} on a grid of {first.grid.shape} but {one.name!r} sees "
                    f"{one.view!r} on {one.grid.shape}; score one view and grid at a time: record.select(layers=..., view=...)."
                )
        return cls(
            tuple(one.name for one in record.layers),
            tuple(one.heads for one in record.layers),
            record.quantity,
            record.softmax_over,
            record.query_row,
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
        for name in ("quantity", "softmax_over", "query_row"):
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
        """The readings, and all layers and heads."""
        layers = [Cell(metric, "layer", name, layer) for layer, name in enumerate(self.layers)]
        heads = [
            Cell(metric, "head", self.layers[layer], layer, head)
            for layer, heads in enumerate(self.heads)
            for head in heads
        ]
        return [Cell(metric, "reading", name) for name in READINGS], [*layers, *heads]


class ImageScorer:
    """Scores one image after the other, and tells where its maps peak.

    Keeps nothing of them but the last masks (for ``shuffled``) and what was left out.
    """

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings = settings
        self.left_out: dict[str, int] = {}
        self._previous: NDArray[np.bool_] | None = None

    def score(self, record: AttentionRecord, masks: Masks) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """Sums and counts of its phrases' scores, both (cell,), NaN scores left out of both; and the number of phrases."""
        tokens, read = read_masks(record, masks)
        if not tokens:
            self._leave_out("no phrase (images)")
            cells = len(Structure.of(record).cells(self.settings.metrics))
            return np.zeros(cells), np.zeros(cells), 0
        target = Target.from_masks(record.layers[0].grid, read, device=record.layers[0].values.device)
        alone = is_one_map(record)
        if alone:
            self._leave_out("minus_mean: the answer has one token, and one map minus its own mean is zero (images)")
        words = word_maps(record)
        head_scores, layer_maps, layer_minus = self._heads(record, tokens, target, words, alone=alone)
        mean_map, minus_mean = layer_maps.mean(0), layer_minus.mean(0)
        self._note(mean_map if alone else minus_mean, target)
        both = torch.stack([mean_map, minus_mean])
        readings = score(self._reading_metrics, both, target)
        readings |= peaks(both, target.weight, None if words is None else words.mean(0))
        layers = score(self.settings.metrics, layer_minus, target)
        layers |= peaks(layer_minus, target.weight, None if words is None else words[:, None])
        parts = []
        for name in self.settings.metrics:
            beside = self._controls(name, minus_mean, target)
            parts += [readings[name], beside, layers[name], head_scores[name]]
        parts += [readings[name] for name in self._reading_metrics if name not in self.settings.metrics]
        parts += [(readings[name][1] - readings[name][0])[None] for name in self.settings.metrics]
        parts += [one[name] for name in PEAKS for one in (readings, layers, head_scores)]
        scores = torch.cat(parts)  # (cell, phrase)
        known = ~scores.isnan()
        self._previous = read
        return scores.nansum(-1).cpu().numpy(), known.sum(-1).double().cpu().numpy(), len(tokens)

    @property
    def _reading_metrics(self) -> tuple[str, ...]:
        names = self.settings.metrics
        return (*names, "pointing_bicubic") if "pointing" in names and "pointing_bicubic" not in names else names

    def _heads(
        self,
        record: AttentionRecord,
        tokens: Sequence[tuple[int, ...]],
        target: Target,
        words: Tensor | None,
        *,
        alone: bool,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Metric -> (head of any layer, phrase) scores; and the (layer, phrase, row, col) means over heads, raw and minus mean."""
        scored, layer_maps, layer_minus, done = [], [], [], 0
        for chunk in _chunks(record.layers, len(tokens)):
            each = [phrase_maps(one, tokens, self.settings.combine) for one in chunk]
            counts = [len(one) for one in each]
            maps = torch.cat(each)
            minus = maps - torch.cat([one.token_mean.mean(0) for one in chunk])[:, None]
            if alone:  # zero but for rounding, and rounding must not be scored
                minus = torch.zeros_like(maps)
            here = None if words is None else words[done : done + len(chunk), None]
            here = None if here is None else here.repeat_interleave(torch.tensor(counts, device=here.device), 0)
            read = minus if self.settings.reading == "minus mean" else maps
            scored.append(score(self.settings.metrics, read, target) | peaks(read, target.weight, here))
            layer_maps.append(_mean_heads(maps, counts))
            layer_minus.append(_mean_heads(minus, counts))
            done += len(chunk)
        joined = {name: torch.cat([one[name] for one in scored]) for name in (*self.settings.metrics, *PEAKS)}
        return joined, torch.cat(layer_maps), torch.cat(layer_minus)

    def _controls(self, name: str, maps: Tensor, target: Target) -> Tensor:
        """(control, phrase) scores, in the order of ``controls.CONTROLS``."""
        metric = METRICS[name]
        centre = controls.centre_prior(target.grid).to(maps.device)
        nothing = torch.full((maps.shape[0],), torch.nan, dtype=torch.float64, device=maps.device)
        other = nothing
        if self._previous is not None:
            masks = resize_masks(self._previous, target.grid.image_size)
            other = controls.shuffled(metric, maps, Target.from_masks(target.grid, masks, device=maps.device))
        rows = {
            "chance": controls.chance(metric, target),
            "centre_prior": metric(centre, target),
            "object_size_prior": metric(controls.object_size_prior(target), target),
            "shuffled": other,
            "other_phrase": controls.other_phrase(metric, maps, target),
            "oracle_patch": controls.oracle_patch(metric, target),
        }
        return torch.stack([rows[control].expand_as(nothing) for control in controls.CONTROLS])

    def _note(self, maps: Tensor, target: Target) -> None:
        """Counts the phrases that a reading cannot be scored on, by metric and reason."""
        for name in self._reading_metrics:
            for reason in degenerate_reason(name, maps, target):
                if reason:
                    self._leave_out(f"{name}: {REASONS[str(reason)]} (phrases)")

    def _leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def is_one_map(record: AttentionRecord) -> bool:
    """True if the record holds one token and it is the whole answer, so that there is no mean to subtract."""
    return len(record.tokens) == 1 and all(bool((one.values[:, :, 0] == one.token_mean).all()) for one in record.layers)


def word_maps(record: AttentionRecord) -> Tensor | None:
    """(layer, row, col) attention of the average word of the answer, mean over timesteps and heads: what tells sinks.

    None where nothing tells them: values that are no attention, or an answer of one word, whose object would be a sink.
    """
    if record.quantity != "attention" or is_one_map(record):
        return None
    device = record.layers[0].values.device
    return torch.stack([one.token_mean.mean((0, 1)).to(device) for one in record.layers])


def phrase_maps(layer: LayerAttention, tokens: Sequence[tuple[int, ...]], combine: Combine) -> Tensor:
    """(head, phrase, row, col) maps: each phrase's tokens combined, after the mean over timesteps.

    Parameters
    ----------
    tokens : positions of the tokens of each phrase.
    """
    chosen = [one[:1] if combine == "first" else one for one in tokens]
    groups = {len(one): [i for i, two in enumerate(chosen) if len(two) == len(one)] for one in chosen}
    maps = layer.values.new_empty((layer.values.shape[1], len(tokens), *layer.grid.shape))
    for phrases in groups.values():
        picked = layer.values[:, :, [chosen[i] for i in phrases]]  # (timestep, head, phrase, token, row, col)
        picked = picked[0] if len(picked) == 1 else picked.mean(0)
        reduced = picked.amax(2) if combine == "max" else picked.mean(2)
        if len(groups) == 1:
            return reduced
        maps[:, phrases] = reduced
    return maps


def mean_maps(record: AttentionRecord, tokens: Sequence[tuple[int, ...]], reading: Reading = "minus mean") -> Tensor:
    """(phrase, row, col) maps: each phrase's mean over its tokens, all heads of a layer, and all layers.

    An answer of one token minus its own mean is zero, and comes back as exactly that.
    """
    total = torch.zeros(())
    for layer in record.layers:
        maps = phrase_maps(layer, tokens, "mean").mean(0)
        if reading == "minus mean":
            maps = torch.zeros_like(maps) if is_one_map(record) else maps - layer.token_mean.mean((0, 1))
        total = maps + total.to(maps.device)
    return total / len(record.layers)


def _mean_heads(maps: Tensor, counts: Sequence[int]) -> Tensor:
    """(layer, phrase, row, col) means of (head of any layer, phrase, row, col) maps, given the number of heads of each layer."""
    if len(set(counts)) == 1:
        return maps.unflatten(0, (len(counts), -1)).mean(1)
    return torch.stack([one.mean(0) for one in maps.split(list(counts))])


def _chunks(layers: Sequence[LayerAttention], phrases: int) -> Iterator[list[LayerAttention]]:
    """Consecutive layers, as many at a time as ``CHUNK`` numbers of maps allow, at least one."""
    chunk: list[LayerAttention] = []
    size = 0
    for one in layers:
        numbers = one.token_mean[0].numel() * phrases
        if chunk and size + numbers > CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += numbers
    yield chunk
