"""Where grounding appears inside one model: a score over layers, timesteps or the words around a phrase, its floor beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis import controls
from probe.analysis.concentration import PEAKS, peaks
from probe.analysis.grids import common_grid, onto_grid, patches_share
from probe.analysis.metrics import Metric, find_metric
from probe.analysis.scorer import (
    Reading,
    ScoreSettings,
    is_one_map,
    mean_maps,
    mean_word_map,
    phrase_maps,
    require_readable,
    whole_phrases,
    word_maps,
)
from probe.analysis.stats import Interval, PoissonBootstrap
from probe.analysis.structure import Structure
from probe.analysis.targets import Masks, Target, Targets, in_step, read_masks
from probe.attention import AttentionRecord
from probe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Over", "Position", "Profile", "profile"]

Over = Literal["layer", "token", "timestep"]

#: Tokens told apart before and after a phrase, and within it; further ones of a long phrase count in "last token" alone.
AROUND, WITHIN = 3, 6

#: What is measured at every position, in the order of the bootstrap's cells.
QUANTITIES = ("score", "floor", "margin", *PEAKS)


@dataclass(frozen=True)
class Position:
    """What was found at one layer, timestep or token.

    Attributes
    ----------
    kind : "layer" (that layer alone), "up to layer" (mean of it and all before); "timestep"; or "before", "phrase", "last" and
        "after".
    number : the layer's place in the record; the scheduler's timestep; or tokens before (-3 ... -1), within (0, 1, ...) or after
        (1, 2, 3) the phrase.
    label : the same in words.
    score : of the map against the phrase's mask.
    floor : of the same map against the masks of the image's other phrases: what looking at any object gives.
    margin : score - floor, phrase by phrase.
    top1_share, border_share, sink_share : where the map peaks, see ``probe.analysis.concentration.PEAKS``.
    chance : the score of a uniform map.
    """

    kind: str
    number: int
    label: str
    score: Interval
    floor: Interval
    margin: Interval
    top1_share: Interval
    border_share: Interval
    sink_share: Interval
    chance: float

    @property
    def beats_floor(self) -> bool:
        """True if the whole intervals of the margin and the score lie above 0 and chance. One image beats nothing.

        Both are asked: a map that avoids every named object scores nothing on the others' masks and has a floor below chance.
        """
        return self.margin.low > 0 and self.score.low > self.chance


@dataclass(frozen=True, eq=False)
class Profile:
    """A score over layers, timesteps or tokens: what ``profile`` gives.

    Attributes
    ----------
    over : "layer", "timestep" or "token".
    metric, reading : what was scored.
    images, phrases : how many were given; each position tells how many it rests on.
    chance : the score of a uniform map.
    positions : in order; positions that no phrase has are left out.
    left_out : reason -> number of images.
    """

    over: Over
    metric: str
    reading: Reading
    images: int
    phrases: int
    chance: Interval
    positions: tuple[Position, ...]
    left_out: dict[str, int]

    def to_frame(self) -> pd.DataFrame:
        """One row for each position: over, metric, kind, number, label; value, low, high; the same of floor, margin and the
        concentration; chance, beats_floor, images and phrases."""
        import pandas as pd

        rows = []
        for one in self.positions:
            row: dict[str, Any] = {"over": self.over, "metric": self.metric, "kind": one.kind, "number": one.number}
            row |= {"label": one.label, "value": one.score.value, "low": one.score.low, "high": one.score.high}
            for name in QUANTITIES[1:]:
                found: Interval = getattr(one, name)
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            row |= {"chance": self.chance.value, "beats_floor": one.beats_floor}
            rows.append(row | {"images": one.score.images, "phrases": one.score.phrases})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        lines = [f"Profile over {self.over}: {self.metric} of {self.reading!r}, {self.images} images"]
        lines += [f"  {one.label:18}{one.score}; floor {one.floor.value:.3f}" for one in self.positions]
        return "\n".join([*lines, f"  {'chance':18}{self.chance.value:.3f}"])


def profile(
    records: Iterable[AttentionRecord],
    masks: Iterable[Masks],
    *,
    over: Over = "layer",
    metric: str = "pointing",
    reading: Reading = "minus mean",
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Profile:
    """A score over layers, timesteps or the tokens around a phrase, with intervals over images: a ``Profile``, in memory for one
    image.

    >>> profile(records, masks, over="layer").to_frame()

    Over layers, the map of a phrase is the mean over its tokens and the layer's heads ("layer"), and the mean of that over this
    layer and all before it ("up to layer"; the last of these is ``score_heads``'s ``minus_mean``), on the finest grid where grids
    differ. Over timesteps, it is the mean over tokens, heads and layers at one step of a diffusion model. Over tokens, it is one
    token's mean over all layers and heads, scored against the mask of the phrase that it stands before, in or after; tokens of
    other phrases are left out before and after. Grounding often shows on an attribute rather than on the noun (PixFoundation,
    2025): do not assume which token to read, look.

    Parameters
    ----------
    records, masks : as for ``score_heads``; both may be generators.
    metric : a name in ``probe.analysis.metrics.METRICS``.
    reading : "minus mean" subtracts each head's mean over the whole answer (Eq. 3); "attention" does not.
    replicates, confidence, seed : of the Poisson bootstrap over images.

    Raises
    ------
    InputError
        As ``score_heads``, or if ``over`` is neither.
    """
    if over not in ("layer", "timestep", "token"):
        raise InputError(
            f"over must be 'layer', 'timestep' or 'token', found {over!r}; training has probe.emergence(...)."
        )
    settings = ScoreSettings((find_metric(metric).name,), reading, "mean", replicates, confidence, seed)
    structure, images, phrases, left_out = None, 0, 0, dict[str, int]()
    for index, record, of_image in in_step(records, masks):
        try:
            found = Structure.of(record)
            if structure is None:
                structure = found
                places = _places(over, found)
                sampled = PoissonBootstrap(len(places) * len(QUANTITIES) + 1, replicates=replicates, seed=seed)
            found.require_like(structure)
            tokens, read = read_masks(record, of_image)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
        images, phrases = index + 1, phrases + len(tokens)
        reason = _unusable(record, tokens, reading)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        targets = Targets(read, device=record.layers[0].values.device)
        sampled.add(index, *_measured(record, tokens, targets, over=over, settings=settings))
    if structure is None:
        raise InputError("There is no image to score: records and masks are empty.")
    intervals = sampled.intervals(confidence=confidence)
    width = len(QUANTITIES)
    each = [[intervals[i * width + j] for j in range(width)] for i in range(len(places))]
    chance = intervals[len(places) * width]
    positions = [
        Position(*place, score, floor, margin, top, border, sink, chance=chance.value)
        for place, (score, floor, margin, top, border, sink) in zip(places, each, strict=True)
        if score.phrases
    ]
    return Profile(over, metric, reading, images, phrases, chance, tuple(positions), left_out)


def _unusable(record: AttentionRecord, tokens: Sequence[Any], reading: Reading) -> str:
    """Why an image has nothing to add, or ""."""
    require_readable(record, reading)
    if not tokens:
        return "no phrase (images)"
    if reading == "minus mean" and is_one_map(record):
        return "the answer has one token, and one map minus its own mean is zero (images)"
    return ""


def _places(over: Over, structure: Structure) -> list[tuple[str, int, str]]:
    if over == "layer":
        return _layer_places(len(structure.layers))
    if over == "token":
        return _token_places()
    if -1 in structure.timesteps:
        raise InputError(
            "the record has no timesteps of their own (it is a mean over them, or of a model without any); record with "
            'timesteps="all", or several of them.'
        )
    return [("timestep", step, f"timestep {step}") for step in structure.timesteps]


def _layer_places(layers: int) -> list[tuple[str, int, str]]:
    each = [("layer", i, f"layer {i}") for i in range(layers)]
    return each + [("up to layer", i, f"up to layer {i}") for i in range(layers)]


def _token_places() -> list[tuple[str, int, str]]:
    before = [("before", -i, f"{i} before") for i in range(AROUND, 0, -1)]
    within = [("phrase", i, f"token {i + 1}") for i in range(WITHIN)]
    after = [("after", i, f"{i} after") for i in range(1, AROUND + 1)]
    return [*before, *within, ("last", WITHIN, "last token"), *after]


def _measured(
    record: AttentionRecord,
    tokens: Sequence[tuple[int, ...]],
    targets: Targets,
    *,
    over: Over,
    settings: ScoreSettings,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(cell,) sums over phrases and how many phrases were summed, NaN scores left out of both."""
    [name] = settings.metrics
    metric = find_metric(name)
    measure = {"layer": _over_layers, "timestep": _over_timesteps, "token": _over_tokens}[over]
    found = measure(record, tokens, targets, metric, settings.reading)
    target = targets.on(common_grid(record.layers))
    chance = controls.chance(metric, target)
    cells = torch.cat([found.flatten(0, 1), chance[None]])  # (cell, phrase)
    return cells.nansum(-1).cpu().numpy(), (~cells.isnan()).sum(-1).double().cpu().numpy()


def _over_layers(
    record: AttentionRecord, tokens: Sequence[tuple[int, ...]], targets: Targets, metric: Metric, reading: Reading
) -> Tensor:
    """(position, quantity, phrase), one layer at a time: a layer's heads are never held beside another's."""
    alone, so_far, total = [], [], torch.zeros((), dtype=torch.float32)
    wanted, mass, words = common_grid(record.layers), patches_share(record), word_maps(record)
    whole = whole_phrases(record, tokens) if reading == "minus mean" else []
    for number, layer in enumerate(record.layers, start=1):
        maps = phrase_maps(layer, tokens, "mean").mean(0)
        if reading == "minus mean":
            maps = maps - layer.token_mean.mean((0, 1))
            maps[whole] = 0  # but for rounding, which must not be scored
        total = onto_grid(maps, layer.grid, wanted, mass=mass) + total.to(maps.device)
        here = None if words is None else words[number - 1]
        alone.append(_quantities(maps[:, None], targets.on(layer.grid), metric, here))
        until = mean_word_map(record, number)
        so_far.append(_quantities((total / number)[:, None], targets.on(wanted), metric, until))
    return torch.stack([*alone, *so_far])


def _over_timesteps(
    record: AttentionRecord, tokens: Sequence[tuple[int, ...]], targets: Targets, metric: Metric, reading: Reading
) -> Tensor:
    """(position, quantity, phrase), one timestep at a time."""
    target = targets.on(common_grid(record.layers))
    each = [record.select(timesteps=[i]) for i in range(len(record.layers[0].timesteps))]
    return torch.stack(
        [_quantities(mean_maps(one, tokens, reading)[:, None], target, metric, mean_word_map(one)) for one in each]
    )


def _over_tokens(
    record: AttentionRecord, tokens: Sequence[tuple[int, ...]], targets: Targets, metric: Metric, reading: Reading
) -> Tensor:
    """(position, quantity, phrase), NaN where a phrase has no such token."""
    every = [(i,) for i in range(len(record.tokens))]
    maps, target = mean_maps(record, every, reading), targets.on(common_grid(record.layers))  # (token, row, col)
    words = mean_word_map(record)
    taken = {place for one in tokens for place in one}
    columns = []
    for number, phrase in enumerate(tokens):
        chosen = _places_around(phrase, taken, len(record.tokens))
        known = [i for i in chosen if i is not None]
        found = _quantities(maps[known][:, None], target, metric, words, own=number)  # (quantity, known)
        column = found.new_full((len(chosen), len(QUANTITIES)), torch.nan)
        column[[i for i, one in enumerate(chosen) if one is not None]] = found.T
        columns.append(column)
    return torch.stack(columns, dim=-1)


def _places_around(phrase: tuple[int, ...], taken: set[int], count: int) -> list[int | None]:
    """The token at each of ``_token_places``, None where there is none, or where it belongs to another phrase."""
    before = [min(phrase) - i for i in range(AROUND, 0, -1)]
    after = [max(phrase) + i for i in range(1, AROUND + 1)]
    outside = [i if 0 <= i < count and i not in taken else None for i in (*before, *after)]
    within = [phrase[i] if i < len(phrase) else None for i in range(WITHIN)]
    return [*outside[:AROUND], *within, phrase[-1], *outside[AROUND:]]


def _quantities(
    maps: Tensor, target: Target, metric: Metric, words: Tensor | None, *, own: int | None = None
) -> Tensor:
    """(quantity, map) of (map, 1, row, col) maps; map i belongs to phrase i, or all belong to phrase ``own``.

    ``words`` is the (row, col) attention of the answer's average word.
    """
    scores = metric(maps, target)  # (map, mask)
    numbers = torch.arange(len(maps), device=scores.device)
    belongs = numbers if own is None else torch.full_like(numbers, own)
    score = scores[numbers, belongs]
    content = [mask.tobytes() for mask in target.masks]
    same = torch.tensor([[one == two for two in content] for one in content], device=scores.device)
    floor = scores.masked_fill(same[belongs], torch.nan).nanmean(-1)
    return torch.stack([score, floor, score - floor, *peaks(maps[:, 0], target.weight, words).values()])
