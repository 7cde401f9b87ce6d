"""COCO's average precision of masks, one picture at a time, with pycocotools' own matching and accumulation."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from probe.analysis.stats import Interval, Pictures, poisson_weights
from probe.errors import InputError
from probe.evaluation.run_lengths import RunLengths, area

__all__ = ["AveragePrecision", "Masked", "all_numbers"]

#: COCO looks at the surest hundred masks of a category in a picture.
MOST = 100
#: Replicates that are computed at once: with 20,000 masks they take some 15 MB.
CHUNK = 100


@dataclass(frozen=True, eq=False)
class Masked:
    """A mask with its category; the score says how sure a predicted one is."""

    category: str
    mask: RunLengths
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class _Matched:
    """One category of one picture: (threshold, predicted) whether it was matched, its scores, and how many true masks."""

    picture: int
    name: str
    hits: NDArray[np.bool_]
    scores: NDArray[np.float64]
    truths: int


class AveragePrecision:
    """COCO's average precision over pictures that are added one by one and forgotten but for what was matched.

    >>> precision = AveragePrecision()
    >>> precision.add("000000000139", predicted, true)
    >>> precision.intervals()                            # [AP, AP50]

    Pictures count in the order of their names (see ``all_numbers``), as in COCOeval: among masks of one score it is their order
    that decides. Matches are pycocotools' own, of all sizes and at most a hundred masks of a category.
    """

    def __init__(self, *, replicates: int = 1000, seed: int = 0) -> None:
        self.replicates, self.seed = replicates, seed
        self.matcher = COCOeval(iouType="segm")
        self.matcher.params.areaRng = [self.matcher.params.areaRng[0]]  # all sizes
        self.matcher.params.maxDets = [MOST]
        self._matched: defaultdict[str, list[_Matched]] = defaultdict(list)
        self._names: list[str] = []
        self._drawn: list[int] = []  # the number of the picture that each example shows
        self._pictures = Pictures()

    def add(
        self, name: str, predicted: Sequence[Masked], true: Sequence[Masked], *, picture: str | None = None
    ) -> None:
        """Adds the example of this name: its predicted and its true masks; those that share a picture are drawn together."""
        number = len(self._names)
        self._names.append(name)
        self._drawn.append(self._pictures.number(name if picture is None else picture))
        for category in {one.category for one in (*predicted, *true)}:
            found = self._match(category, predicted, true)
            scores = np.array(found["dtScores"], dtype=np.float64)
            hits = np.asarray(found["dtMatches"]) > 0
            self._matched[category].append(_Matched(number, name, hits, scores, len(found["gtIds"])))

    def _match(self, category: str, predicted: Sequence[Masked], true: Sequence[Masked]) -> dict[str, list[int]]:
        """What COCOeval says of one picture and category."""
        matcher, key = self.matcher, (0, 0)
        # Numbers from 1: a match is kept as the number of its partner, and 0 is none.
        matcher._gts = defaultdict(list, {key: _annotations(true, category)})
        matcher._dts = defaultdict(list, {key: _annotations(predicted, category)})
        matcher.ious = {key: matcher.computeIoU(*key)}
        found: dict[str, list[int]] = matcher.evaluateImg(*key, matcher.params.areaRng[0], MOST)
        return found

    def values(self) -> tuple[float, float]:
        """AP over IoU thresholds 0.5 to 0.95, and AP50; NaN without a true mask.

        Masks of the same score count in the order of their pictures' names.
        """
        categories = sorted(self._matched)
        pictures = self._order()
        evaluator = COCOeval(iouType="segm")
        evaluator.params = self.matcher.params
        evaluator.params.catIds = list(range(len(categories)))
        evaluator.params.imgIds = list(range(len(pictures)))
        evaluator._paramsEval = evaluator.params
        evaluator.evalImgs = []
        for category in categories:
            row: list[dict[str, object] | None] = [None] * len(pictures)
            for one in self._matched[category]:
                row[pictures[one.picture]] = _as_evaluated(one)
            evaluator.evalImgs += row
        if not evaluator.evalImgs:
            return nan, nan
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
            evaluator.accumulate()
        precision = evaluator.eval["precision"][..., 0, 0]  # (threshold, recall, category), -1 without a true mask
        return _mean_known(precision), _mean_known(precision[:1])

    def _order(self) -> list[int]:
        """The place of each picture among those of all names in order."""
        numbers = all_numbers(self._names)
        keys = [(int(one) if numbers else 0, one) for one in self._names]
        places = [0] * len(keys)
        for place, picture in enumerate(sorted(range(len(keys)), key=keys.__getitem__)):
            places[picture] = place
        return places

    def intervals(self, *, confidence: float = 0.95) -> tuple[Interval, Interval]:
        """AP and AP50, each with its percentile interval by bootstrap over pictures, and the number of true masks.

        Raises
        ------
        InputError
            If ``confidence`` is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise InputError(f"confidence must lie between 0 and 1, for example 0.95; found {confidence}.")
        true = sum(one.truths for category in self._matched.values() for one in category)
        tail = (1 - confidence) / 2
        replicated = self.replicated()
        found = []
        for value, drawn in zip(self.values(), replicated.T, strict=True):
            drawn = drawn[~np.isnan(drawn)]
            enough = len(self._pictures) > 1 and len(drawn) > 0
            low, high = np.quantile(drawn, (tail, 1 - tail)) if enough else (nan, nan)
            found.append(Interval(value, float(low), float(high), len(self._pictures), true))
        return found[0], found[1]

    def replicated(self) -> NDArray[np.float64]:
        """(replicate, 2) AP and AP50 of pictures drawn with replacement: those that ``PoissonBootstrap`` draws of this seed."""
        drawn = [
            poisson_weights(one, replicates=self.replicates, seed=self.seed).astype(np.uint8) for one in self._drawn
        ]
        # Small numbers, a byte each: there is one for each replicate and example.
        weights = np.stack(drawn, 1) if drawn else np.zeros((self.replicates, 0), dtype=np.uint8)
        sums, known = np.zeros((2, self.replicates, 2))
        places = self._order()
        for category in self._matched.values():
            ordered = sorted(category, key=lambda one: places[one.picture])
            for start in range(0, self.replicates, CHUNK):
                part = slice(start, start + CHUNK)
                found = _weighted(ordered, weights[part])
                sums[part] += np.nan_to_num(found)
                known[part] += ~np.isnan(found)
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / known)


def all_numbers(names: Sequence[str]) -> bool:
    """True if all names are whole numbers as one writes them, so that they are numbers in files and in order: 9 before 10."""
    return all(one.isascii() and one.isdecimal() and str(int(one)) == one for one in names)


def _annotations(masks: Sequence[Masked], category: str) -> list[dict[str, object]]:
    chosen = [one for one in masks if one.category == category]
    return [
        {"id": number, "segmentation": one.mask, "score": one.score, "area": area(one.mask), "iscrowd": 0, "ignore": 0}
        for number, one in enumerate(chosen, start=1)
    ]


def _as_evaluated(one: _Matched) -> dict[str, object]:
    """What COCOeval keeps of a picture and reads when it accumulates."""
    return {
        "dtScores": one.scores,
        "dtMatches": one.hits,
        "dtIgnore": np.zeros_like(one.hits),
        "gtIgnore": np.zeros(one.truths),
    }


def _mean_known(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(np.mean(known)) if len(known) else nan


def _weighted(pictures: Sequence[_Matched], weights: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(replicate, 2) AP and AP50 of one category where picture i counts weights[:, i] times; NaN without a true mask."""
    own = weights[:, [one.picture for one in pictures]].astype(np.float64)
    true = own @ np.array([one.truths for one in pictures], dtype=np.float64)
    each = np.repeat(np.arange(len(pictures)), [len(one.scores) for one in pictures])
    order = np.argsort(-np.concatenate([one.scores for one in pictures]), kind="stable")
    drawn = own[:, each[order]]
    hits = np.concatenate([one.hits for one in pictures], 1)[:, order]
    seen = drawn.cumsum(1)
    found = np.stack([_average(drawn, seen, row, true) for row in hits], 1)  # (replicate, threshold)
    found[true == 0] = nan
    return np.stack([found.mean(1), found[:, 0]], 1)


def _average(
    drawn: NDArray[np.float64], seen: NDArray[np.float64], hits: NDArray[np.bool_], true: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(replicate,) mean precision at COCO's 101 recalls."""
    wanted = np.linspace(0, 1, 101)
    found = np.zeros(len(drawn))
    # Recall rises at hits alone, and the precision there is the largest up to the next one.
    right = drawn[:, hits].cumsum(1)
    if not right.shape[1]:
        return found
    precision = right / np.maximum(seen[:, hits], 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for replicate, (reached, least) in enumerate(zip(right, np.maximum(true, 1), strict=True)):
        at = np.searchsorted(reached, wanted * least * (1 - 1e-12), side="left")
        found[replicate] = best[replicate, at[at < len(reached)]].sum() / len(wanted)
    return found
