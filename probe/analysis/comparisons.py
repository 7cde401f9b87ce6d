"""Which of several systems localises better on the same images and phrases, and how sure that is: ``compare_records``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import nan
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis import controls
from probe.analysis.differences import BESIDE, Comparison, PairedDifference, Refusal, SystemScores
from probe.analysis.grids import common_grid
from probe.analysis.heads import HeadTally
from probe.analysis.metrics import METRICS, REASONS, Metric, degenerate_reason, find_metric
from probe.analysis.permutations import SignFlips, holm
from probe.analysis.scorer import Reading, ScoreSettings
from probe.analysis.stats import PoissonBootstrap
from probe.analysis.systems import (
    SystemRecord,
    Traits,
    is_refused,
    reading_map,
    reading_name,
    seen_by_all,
    shared_grid,
    unfairness,
)
from probe.analysis.targets import Target, read_masks, resize_masks
from probe.errors import InputError

__all__ = ["compare_records"]


def compare_records(
    images: Iterable[Mapping[str, SystemRecord]],
    *,
    metric: str | Sequence[str] = ("pointing", "auroc", "lift"),
    reading: Reading = "minus mean",
    replicates: int = 1000,
    permutations: int = 9999,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Several systems compared on the same images and phrases: a ``Comparison``, in one pass and in memory for one image.

    >>> compare_records({"a": SystemRecord(one, masks), "b": SystemRecord(two, masks)} for one, two, masks in images)

    The reading of a system is the mean over its layers and heads, of which the mean over tokens is subtracted; it is compared as a
    whole, because heads of different models do not correspond. All readings of an image are area-averaged to one common grid (see
    ``probe.analysis.systems.shared_grid``) and scored on the patches that every system sees; a phrase that one of them cannot be
    scored on counts for none. Scores of layers and heads, and the head chosen on the even images and reported on the odd ones,
    stay on the system's own grid.

    Differences are of the same phrases, so that what makes an image hard falls out. Their intervals are of the Poisson bootstrap
    over images, whose replicates draw the same images for every system; p-values are by flipping signs of whole images
    (``probe.analysis.permutations.SignFlips``), Holm-corrected over all pairs and metrics that are compared.

    Parameters
    ----------
    images : for each image, name -> what that system gave; the same names each time. May be a generator.
    metric : one name or several of ``probe.analysis.metrics.METRICS``.
    reading : "minus mean" (Eq. 3), or "attention": the maps as recorded.
    replicates, confidence, seed : of the bootstrap; the seed also draws the signs.
    permutations : random flips of the test.

    Raises
    ------
    InputError
        If there is no image or fewer than two systems, systems differ in images or masks, no pair may be compared under any metric,
        or as ``score_heads`` does; the message names the image, counted from 0.
    """
    names = (metric,) if isinstance(metric, str) else tuple(dict.fromkeys(metric))
    if not names:
        raise InputError("No metric asked for; give at least one, for example metric='pointing'.")
    for name in names:
        find_metric(name)
    settings = ScoreSettings(names, reading, "mean", replicates, confidence, seed)
    tally: _Tally | None = None
    for index, systems in enumerate(images):
        try:
            tally = tally or _Tally(systems, settings, permutations=permutations)
            tally.add(index, systems)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
    if tally is None:
        raise InputError("There is no image to compare systems on.")
    return tally.result()


class _Tally:
    """Running sums of a comparison, one image after the other."""

    def __init__(self, systems: Mapping[str, SystemRecord], settings: ScoreSettings, *, permutations: int) -> None:
        if len(systems) < 2:
            raise InputError(f"a comparison needs two systems or more, found {', '.join(systems) or 'none'}.")
        self.settings, self.names = settings, tuple(systems)
        records = {name: one.record for name, one in systems.items()}
        self.traits = {name: Traits.of(one, settings.reading) for name, one in records.items()}
        self.readings = {name: reading_name(one, settings.reading) for name, one in records.items()}
        self.heads = {
            name: HeadTally(replace(settings, reading=self.traits[name].reading)) for name in self.names
        }  # fmt: skip
        self._sort_pairs()
        self._places = {key: i for i, key in enumerate(self._keys())}
        self._bootstrap = PoissonBootstrap(len(self._places), replicates=settings.replicates, seed=settings.seed)
        self._flips = SignFlips(len(self.pairs), permutations=permutations, seed=settings.seed)
        self._previous: NDArray[np.bool_] | None = None
        self._images = self._phrases = 0
        self._grids: set[tuple[int, int]] = set()
        self._own: dict[str, set[tuple[int, int]]] = {name: set() for name in self.names}
        self._left_out: dict[str, int] = {}
        self._failed: Counter[tuple[str, str]] = Counter()

    def _sort_pairs(self) -> None:
        every = [(metric, *pair) for metric in self.settings.metrics for pair in combinations(self.names, 2)]
        traits = self.traits
        bad = [one for one in every if is_refused(one[0], traits[one[1]], traits[one[2]])]
        self.refused = tuple(Refusal(*one, unfairness(one[0], traits[one[1]], traits[one[2]])) for one in bad)
        self.pairs = [one for one in every if one not in bad]
        if not self.pairs:
            fair = [name for name, one in METRICS.items() if one.scale_invariant and one.offset_invariant]
            raise InputError(f"nothing can be compared: {self.refused[0].reason}; use one of {', '.join(fair)}.")

    def _keys(self) -> list[tuple[str, ...]]:
        """What each cell of the bootstrap is of: (metric, system, row), and then the pairs."""
        rows = ("reading", *BESIDE)
        cells: list[tuple[str, ...]] = [
            (metric, name, row) for metric in self.settings.metrics for name in self.names for row in rows
        ]
        return [*cells, *(("difference", *pair) for pair in self.pairs)]

    def add(self, index: int, systems: Mapping[str, SystemRecord]) -> None:
        if set(systems) != set(self.names):
            raise InputError(f"the systems are {', '.join(systems)}, but of image 0 {', '.join(self.names)}.")
        for name in self.names:
            try:
                self.heads[name].add(index, systems[name].record, systems[name].masks)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        tokens, masks = self._phrases_of({name: (one.record, one.masks) for name, one in systems.items()})
        self._images += 1
        self._phrases += len(masks)
        sums, counts = np.zeros(len(self._places)), np.zeros(len(self._places))
        if len(masks):
            for key, row in self._rows(systems, tokens, masks).items():
                sums[self._places[key]] = float(row.nansum())
                counts[self._places[key]] = float((~row.isnan()).sum())
            self._previous = masks
        else:
            self._leave_out("no phrase (images)", 1)
        self._bootstrap.add(index, sums, counts)
        self._flips.add(index, sums[len(sums) - len(self.pairs) :])

    def _phrases_of(
        self, given: Mapping[str, tuple[Any, Any]]
    ) -> tuple[dict[str, list[tuple[int, ...]]], NDArray[np.bool_]]:
        """Name -> tokens of each phrase, and the masks, which must be the same for all."""
        read = {name: read_masks(*given[name]) for name in self.names if name in given}
        first = next(iter(read))
        masks = read[first][1]
        for name, (_, other) in read.items():
            if other.shape != masks.shape or not bool((other == masks).all()):
                raise InputError(
                    f"{name} has {_sizes(other)} and {first} has {_sizes(masks)}, or their masks differ; all systems must be "
                    "read on the same image and the same phrases, in the same order."
                )
        return {name: tokens for name, (tokens, _) in read.items()}, masks

    def _rows(
        self, systems: Mapping[str, SystemRecord], tokens: Mapping[str, Any], masks: NDArray[np.bool_]
    ) -> dict[tuple[str, ...], Tensor]:
        """What a cell is of -> (phrase,) scores of one image."""
        own = {name: common_grid(systems[name].record.layers) for name in self.names}
        wanted = shared_grid(list(own.values()))
        self._grids.add(wanted.shape)
        for name, grid in own.items():
            self._own[name].add(grid.shape)

        def on_wanted(some: NDArray[np.bool_]) -> Target:
            return seen_by_all(list(own.values()), Target.from_masks(wanted, some))

        target = on_wanted(masks)
        before = None if self._previous is None else on_wanted(resize_masks(self._previous, wanted.image_size))
        maps = {name: self._map(name, systems[name].record, tokens[name], wanted) for name in self.names}
        again = self._maps_reworded(systems, masks, wanted)
        rows: dict[tuple[str, ...], Tensor] = {}
        for metric in map(find_metric, self.settings.metrics):
            scores = {name: metric(one, target) for name, one in maps.items()}
            known = torch.stack([~one.isnan() for one in scores.values()]).all(0)
            self._note(metric.name, maps, target, known)
            for name in self.names:
                found = {"reading": scores[name]} | _beside(metric, maps[name], again.get(name), target, before)
                rows |= {(metric.name, name, row): torch.where(known, one, nan) for row, one in found.items()}
        for pair in self.pairs:
            metric_name, first, second = pair
            one, two = rows[metric_name, first, "reading"], rows[metric_name, second, "reading"]
            rows["difference", *pair] = one - two
        return rows

    def _map(self, name: str, record: Any, tokens: Any, wanted: Any) -> Tensor:
        return reading_map(record, tokens, wanted, reading=self.traits[name].reading)

    def _maps_reworded(
        self, systems: Mapping[str, SystemRecord], masks: NDArray[np.bool_], wanted: Any
    ) -> dict[str, Tensor]:
        """Name -> maps of the same phrases in other words, of the systems that have any."""
        given = {name: (one.reworded, one.reworded_masks) for name, one in systems.items() if one.reworded is not None}
        if not given:
            return {}
        tokens, other = self._phrases_of(given)
        if other.shape != masks.shape or not bool((other == masks).all()):
            raise InputError("the reworded text has other phrases; only the words around them may change.")
        return {name: self._map(name, given[name][0], tokens[name], wanted) for name in tokens}

    def _note(self, metric: str, maps: Mapping[str, Tensor], target: Target, known: Tensor) -> None:
        """Counts the phrases that no system is scored on under a metric, by the first system that is to blame."""
        reasons = {name: degenerate_reason(metric, one, target) for name, one in maps.items()}
        for phrase in np.flatnonzero(~known.numpy()):
            name, reason = next((name, str(one[phrase])) for name, one in reasons.items() if one[phrase])
            self._leave_out(f"{metric}: {name}: {REASONS[reason]} (phrases)", 1)
            failed = [name for name, one in reasons.items() if one[phrase]]
            if len(failed) < len(self.names):  # else the mask is to blame
                self._failed.update((metric, name) for name in failed)

    def _leave_out(self, reason: str, count: int) -> None:
        self._left_out[reason] = self._left_out.get(reason, 0) + count

    def result(self) -> Comparison:
        found = self._bootstrap.intervals(confidence=self.settings.confidence)
        # A test on fewer than two images says nothing, and must not make the others stricter.
        places = [self._places["difference", *pair] for pair in self.pairs]
        p_values = np.where(found.images[places] > 1, self._flips.p_values(), nan)
        paired = tuple(
            PairedDifference(*pair, found[place], float(p), float(corrected), self._care(pair))
            for pair, place, p, corrected in zip(self.pairs, places, p_values, holm(p_values), strict=True)
        )
        metrics = self.settings.metrics
        systems = {
            name: SystemScores(
                reading=self.readings[name],
                traits=self.traits[name],
                grids=tuple(sorted(self._own[name])),
                scores={metric: found[self._places[metric, name, "reading"]] for metric in metrics},
                controls={
                    metric: {row: found[self._places[metric, name, row]] for row in BESIDE} for metric in metrics
                },
                heads=self.heads[name].result(),
            )
            for name in self.names
        }
        grids = tuple(sorted(self._grids))
        return Comparison(self._images, self._phrases, grids, systems, paired, self.refused, self._left_out)

    def _care(self, pair: tuple[str, str, str]) -> str:
        """Why to read a difference with care: values of other kinds, or phrases that only one system could be scored on."""
        metric, first, second = pair
        reasons = [unfairness(metric, self.traits[first], self.traits[second])]
        for name in self.names:
            if count := self._failed[metric, name]:
                # A system that fails on hard phrases would look better without them.
                reasons.append(
                    f"{count} of {self._phrases} phrases count for no system, because {name} gives no {metric} there"
                )
        return "; ".join(one for one in reasons if one)


def _beside(
    metric: Metric, maps: Tensor, again: Tensor | None, target: Target, before: Target | None
) -> dict[str, Tensor]:
    """Each of ``BESIDE`` -> (phrase,) scores; NaN where there is no image before, or no other wording."""
    nothing = torch.full((maps.shape[0],), nan, dtype=torch.float64)
    floor = nothing if again is None else controls.paraphrase_floor(metric, maps, again, target)
    rows = {
        "chance": controls.chance(metric, target),
        "centre_prior": metric(controls.centre_prior(target.grid), target),
        "object_size_prior": metric(controls.object_size_prior(target), target),
        "shuffled": nothing if before is None else controls.shuffled(metric, maps, before),
        "other_phrase": controls.other_phrase(metric, maps, target),
        "oracle_patch": controls.oracle_patch(metric, target),
        "paraphrase": nothing if again is None else controls.paraphrase(metric, maps, again, target),
        "floor": floor,
        "margin": metric(maps, target) - floor,
    }
    return {name: rows[name].expand_as(nothing) for name in BESIDE}


def _sizes(masks: NDArray[np.bool_]) -> str:
    return f"{len(masks)} masks of {masks.shape[1]} x {masks.shape[2]}"
