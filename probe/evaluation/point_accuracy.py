"""Point accuracy: the share of predicted points that lie in what their phrases name; beside it COCO's average precision.

References: Cao, Gui, Wang, arXiv 2410.08209 (PAcc); Lin et al. 2014, arXiv 1405.0312 (AP).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from probe.evaluation.average_precision import AveragePrecision, Masked
from probe.evaluation.categories import CategoryRule, named_category
from probe.evaluation.predictions import PredictedPhrase, Prediction
from probe.evaluation.run_lengths import RunLengths, area, centre_box, covers, union
from probe.evaluation.tallies import Measure, OtherPicture, Scores, Tally, phrase_score
from probe.evaluation.truths import Truth

__all__ = ["PointAccuracy"]

WHAT = {
    "PAcc": "share of the points inside the union of their category's masks",
    "PAcc, silence a miss": "the same, an image in which no phrase counts being one miss",
    "AP": "average precision of the masks, mean over categories, IoU 0.5 to 0.95",
    "AP50": "average precision of the masks at IoU 0.5, mean over categories",
}
VARIANTS = ("", "shuffled", "centre box")
CONTROLS = ("shuffled", "other phrase", "centre", "uniform")
Counted = list[tuple[str, PredictedPhrase]]


class PointAccuracy:
    """The scorer of point accuracy, for truths whose phrases have a category.

    A rule says which phrases count, and for which category; the others are left out of everything, and their number stands in the
    picture's row. Of those that count

    - one whose point lies in a mask of its category is a hit, one without a point or whose category is not in the picture a miss;
    - the masks enter COCO's AP with their category and score (1 where the model gave none), the mean over categories that the
      truths have.

    A picture in which no phrase counts has no point to be right or wrong, so that PAcc as published says nothing of it; it is one
    miss of "PAcc, silence a miss", and its true masks count against AP. How many of a picture's categories were named at all
    stands in its row as ``named``.

    Parameters
    ----------
    rule : ``named_category()``, ``similar_category(encoder)``, or a function of a phrase and the picture's categories.
    name : what the settings call the rule.
    confidence, seed : of the intervals.
    """

    def __init__(
        self, rule: CategoryRule | None = None, *, name: str = "", confidence: float = 0.95, seed: int = 0
    ) -> None:
        self.rule = rule or named_category()
        self.name = name or ("its last words name the category" if rule is None else "given by the caller")
        self.confidence = confidence
        names = [(measure, control) for measure in ("PAcc", "PAcc, silence a miss") for control in ("", *CONTROLS)]
        measures = {name: WHAT[name[0]] for name in names}
        self._tally = Tally(measures, confidence=confidence, seed=seed)
        self._precision = {one: AveragePrecision(seed=seed) for one in VARIANTS}
        self._other = OtherPicture()

    def add(self, truth: Truth, prediction: Prediction | None) -> None:
        """Scores one picture."""
        prediction = self._tally.begin(truth, prediction)
        masks: defaultdict[str, list[RunLengths]] = defaultdict(list)
        for one in truth.phrases:
            if one.category:
                masks[one.category].append(one.mask)
        regions = {name: union(each) for name, each in masks.items()}
        counted: Counted = [
            (category, one) for one in prediction.phrases if (category := self.rule(one, list(regions))) is not None
        ]
        hits = [_hit(regions, category, one.point) for category, one in counted]
        points = {"": hits, **self._controls(truth, counted, regions)}
        values: dict[Measure, list[float]] = {("PAcc", control): each for control, each in points.items()}
        # The published number is silent about pictures in which nothing was named, which rewards saying little.
        silent = [0.0] if regions and not counted else []
        values |= {("PAcc, silence a miss", control): each or silent for control, each in points.items()}
        self._tally.add(truth, values)
        named = len({category for category, _ in counted} & set(regions))
        self._tally.row(
            truth, prediction, counted=len(counted), hits=int(sum(hits)), categories=len(regions), named=named
        )
        self._add_masks(truth, counted)
        self._other.keep(truth, prediction)

    def _add_masks(self, truth: Truth, counted: Counted) -> None:
        true = [Masked(one.category, one.mask) for one in truth.phrases if one.category]
        found = [Masked(category, one.mask, phrase_score(one)) for category, one in counted]
        boxes = [Masked(one.category, centre_box(area(one.mask), truth.size), one.score) for one in found]
        self._precision[""].add(truth.name, found, true, picture=truth.picture)
        self._precision["centre box"].add(truth.name, boxes, true, picture=truth.picture)
        if masks := self._other.masks(truth):
            # The phrases keep their categories: what is lost is where they look.
            elsewhere = [Masked(one.category, masks[i % len(masks)], one.score) for i, one in enumerate(found)]
            self._precision["shuffled"].add(truth.name, elsewhere, true, picture=truth.picture)

    def _controls(self, truth: Truth, counted: Counted, regions: dict[str, RunLengths]) -> dict[str, list[float]]:
        height, width = truth.size
        values = {
            "centre": [_hit(regions, name, (height // 2, width // 2)) for name, _ in counted],
            "uniform": [area(regions[name]) / (height * width) if name in regions else 0.0 for name, _ in counted],
        }
        if len({name for name, _ in counted}) > 1:
            values["other phrase"] = [
                float(np.mean([_hit(regions, name, one.point) for other, one in counted if other != name]))
                for name, _ in counted
            ]
        if other := self._other.prediction(truth):
            points = [_moved(one.point, other.size, truth.size) for one in other.phrases]
            values["shuffled"] = [float(np.mean([_hit(regions, name, one) for one in points])) for name, _ in counted]
        return values

    def result(self) -> Scores:
        """The tables."""
        precise = {one: part.intervals(confidence=self.confidence) for one, part in self._precision.items()}
        more = {
            (measure, one): (WHAT[measure], found[place])
            for place, measure in enumerate(("AP", "AP50"))
            for one, found in precise.items()
        }
        images = self._tally.images()
        notes = list(self._tally.notes())
        silent = int((images["counted"] == 0).sum())
        if silent:
            notes.append(
                f"{silent} images have no phrase that counts for a category, so that PAcc says nothing of them"
            )
        return Scores(
            "pacc", self._tally.summary(more), images, {"a phrase counts if": self.name}, tuple(notes)
        )  # fmt: skip


def _hit(regions: dict[str, RunLengths], category: str, point: tuple[int, int] | None) -> float:
    return float(point is not None and category in regions and covers(regions[category], point))


def _moved(point: tuple[int, int] | None, old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int] | None:
    """The pixel at the same share of another picture's height and width."""
    if point is None:
        return None
    row, col = (int((at + 0.5) * to / of) for at, of, to in zip(point, old, new, strict=True))
    return row, col
