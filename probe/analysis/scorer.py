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
from probe.analysis.grids import common_grid, onto_grid, patches_share, same_grid
from probe.analysis.metrics import METRICS, REASONS, degenerate_reason, score
from probe.analysis.structure import Structure
from probe.analysis.targets import Masks, Target, Targets, read_masks, resize_masks
from probe.attention import AttentionRecord, LayerAttention, is_whole
from probe.errors import InputError

__all__ = [
    "Combine",
    "ImageScorer",
    "Reading",
    "ScoreSettings",
    "is_one_map",
    "is_single_row",
    "mean_maps",
    "mean_word_map",
    "require_readable",
    "whole_phrases",
    "word_maps",
]

Reading = Literal["attention", "minus mean"]
Combine = Literal["mean", "first", "max"]

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
        targets = Targets(read, device=record.layers[0].values.device)
        target = targets.on(common_grid(record.layers))
        single, alone = is_single_row(record), is_one_map(record)
        require_readable(record, self.settings.reading)
        if alone and not single:
            self._leave_out("minus_mean: the answer has one token, and one map minus its own mean is zero (images)")
        # Zero but for rounding, and rounding must not be scored.
        averaged = self.settings.combine == "mean" and not alone
        whole = whole_phrases(record, tokens) if averaged else [alone] * len(tokens)
        heads, layers, mean_map, minus_mean = self._maps(record, tokens, targets, whole=whole)
        # What layers, timesteps and controls are read from.
        read_map = mean_map if single else minus_mean
        self._note(mean_map if alone else minus_mean, target)
        both = torch.stack([mean_map, minus_mean])
        readings = score(self._reading_metrics, both, target) | peaks(both, target.weight, mean_word_map(record))
        over_time = self._over_time(record, tokens, targets, whole=whole)
        parts = []
        for name in self.settings.metrics:
            beside = self._controls(name, read_map, target)
            parts += [readings[name], beside, layers[name], heads[name], *over_time[name]]
        parts += [readings[name] for name in self._reading_metrics if name not in self.settings.metrics]
        parts += [(readings[name][1] - readings[name][0])[None] for name in self.settings.metrics]
        parts += [part for name in PEAKS for part in (readings[name], layers[name], heads[name], *over_time[name])]
        scores = torch.cat(parts)  # (cell, phrase)
        known = ~scores.isnan()
        self._previous = read
        return scores.nansum(-1).cpu().numpy(), known.sum(-1).double().cpu().numpy(), len(tokens)

    @property
    def _reading_metrics(self) -> tuple[str, ...]:
        names = self.settings.metrics
        return (*names, "pointing_bicubic") if "pointing" in names and "pointing_bicubic" not in names else names

    def _maps(
        self, record: AttentionRecord, tokens: Sequence[tuple[int, ...]], targets: Targets, *, whole: list[bool]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
        """Metric, and each of ``PEAKS``, -> (head of any layer, phrase) and (layer, phrase) scores, each on its layer's own grid;
        and the (phrase, row, col) means over heads and layers on the finest grid, raw and minus mean."""
        names, single, words = self.settings.metrics, is_single_row(record), word_maps(record)
        wanted, mass = common_grid(record.layers), patches_share(record)
        heads, layers, means, done = [], [], [], 0
        for chunk in _chunks(record.layers, len(tokens)):
            each = [phrase_maps(one, tokens, self.settings.combine) for one in chunk]
            maps = torch.cat(each)
            minus = maps - torch.cat([one.token_mean.mean(0) for one in chunk])[:, None]
            minus[:, whole] = 0
            target, counts = targets.on(chunk[0].grid), [len(one) for one in each]
            looked = None if words is None else torch.stack(words[done : done + len(chunk)])[:, None]
            read = minus if self.settings.reading == "minus mean" else maps
            heads.append(score(names, read, target) | peaks(read, target.weight, _for_heads(looked, counts)))
            pair = [_mean_heads(one, counts) for one in (maps, minus)]  # (layer, phrase, row, col)
            read = pair[0] if single else pair[1]
            layers.append(score(names, read, target) | peaks(read, target.weight, looked))
            done += len(chunk)
            means.append(torch.stack([onto_grid(one, chunk[0].grid, wanted, mass=mass) for one in pair]))
        mean_map, minus_mean = torch.cat(means, dim=1).mean(1)
        every = (*names, *PEAKS)
        joined = [{name: torch.cat([one[name] for one in scored]) for name in every} for scored in (heads, layers)]
        return joined[0], joined[1], mean_map, minus_mean

    def _over_time(
        self, record: AttentionRecord, tokens: Sequence[tuple[int, ...]], targets: Targets, *, whole: list[bool]
    ) -> dict[str, list[Tensor]]:
        """The same names -> (timestep, phrase) scores of the mean map and (timestep and head, phrase) scores; nothing for one
        timestep."""
        steps, every = len(record.layers[0].timesteps), (*self.settings.metrics, *PEAKS)
        if steps == 1:
            return {name: [] for name in every}
        single = is_single_row(record)
        target = targets.on(common_grid(record.layers))
        means, heads = [], []
        for step in range(steps):
            part = record.select(timesteps=[step])
            found, _, mean_map, minus_mean = self._maps(part, tokens, targets, whole=whole)
            heads.append(found)
            read = mean_map if single else minus_mean
            scores = score(self.settings.metrics, read, target) | peaks(read, target.weight, mean_word_map(part))
            means.append(scores)
        return {
            name: [torch.stack([one[name] for one in means]), torch.cat([one[name] for one in heads])] for name in every
        }

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
    return len(record.tokens) == 1 and is_whole(record)


def whole_phrases(record: AttentionRecord, tokens: Sequence[tuple[int, ...]]) -> list[bool]:
    """For each phrase, whether its tokens are all that the record's mean was taken over, so that nothing but rounding is left of
    their mean minus it."""
    return [is_whole(record, one) for one in tokens]


def is_single_row(record: AttentionRecord) -> bool:
    """True if all there is to read is one row of attention, of an image encoder's class token or pooling query."""
    return record.quantity == "attention" and record.query_kind in ("class token", "pooling query")


def require_readable(record: AttentionRecord, reading: Reading) -> None:
    """Raises InputError if this reading of the record would be zero everywhere by its very nature."""
    if is_single_row(record) and reading == "minus mean":
        raise InputError(
            f"the record holds one row of attention, of its {record.query_kind}, for all phrases, so there is no mean over "
            "tokens to subtract; score it with reading='attention'."
        )


def word_maps(record: AttentionRecord) -> list[Tensor] | None:
    """For each layer, on its own grid, the (row, col) attention of the answer's average word, mean over timesteps and heads: what
    tells sinks.

    None where nothing tells them: values that are no attention, or an answer of one word, whose object would be a sink.
    """
    if record.quantity != "attention" or is_one_map(record):
        return None
    device = record.layers[0].values.device
    return [one.token_mean.mean((0, 1)).to(device) for one in record.layers]


def mean_word_map(record: AttentionRecord, count: int | None = None) -> Tensor | None:
    """(row, col) mean of the first ``count`` layers' ``word_maps`` (by default all) on the finest grid of all; None where there are
    none."""
    words = word_maps(record)
    if words is None:
        return None
    wanted, mass = common_grid(record.layers), patches_share(record)
    pairs = list(zip(words, record.layers, strict=True))[:count]
    return torch.stack([onto_grid(one, layer.grid, wanted, mass=mass) for one, layer in pairs]).mean(0)


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
    """(phrase, row, col) maps: each phrase's mean over its tokens, all heads of a layer, and all layers, on the finest grid.

    A phrase that is the whole answer minus its own mean is zero, and comes back as exactly that.
    """
    total = torch.zeros(())
    whole = whole_phrases(record, tokens) if reading == "minus mean" else []
    wanted, mass = common_grid(record.layers), patches_share(record)
    for layer in record.layers:
        maps = phrase_maps(layer, tokens, "mean").mean(0)
        if reading == "minus mean":
            maps = maps - layer.token_mean.mean((0, 1))
            maps[whole] = 0
        maps = onto_grid(maps, layer.grid, wanted, mass=mass)
        total = maps + total.to(maps.device)
    return total / len(record.layers)


def _mean_heads(maps: Tensor, counts: Sequence[int]) -> Tensor:
    """(layer, phrase, row, col) means of (head of any layer, phrase, row, col) maps, given the number of heads of each layer."""
    if len(set(counts)) == 1:
        return maps.unflatten(0, (len(counts), -1)).mean(1)
    return torch.stack([one.mean(0) for one in maps.split(list(counts))])


def _for_heads(words: Tensor | None, counts: Sequence[int]) -> Tensor | None:
    """(head of any layer, 1, row, col): each layer's map once for each of its heads."""
    return None if words is None else words.repeat_interleave(torch.tensor(counts, device=words.device), 0)


def _chunks(layers: Sequence[LayerAttention], phrases: int) -> Iterator[list[LayerAttention]]:
    """Consecutive layers on one grid, as many at a time as ``CHUNK`` numbers of maps allow, at least one."""
    chunk: list[LayerAttention] = []
    size = 0
    for one in layers:
        numbers = one.token_mean[0].numel() * phrases
        if chunk and (size + numbers > CHUNK or not same_grid(chunk[0].grid, one.grid)):
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += numbers
    yield chunk
