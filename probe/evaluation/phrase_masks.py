"""Protocols that ask for given phrases: each true phrase has one predicted mask, and the two are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import nan

import numpy as np

from probe.analysis.stats import Interval, Pictures, PoissonBootstrap
from probe.errors import InputError
from probe.evaluation.predictions import PredictedPhrase, Prediction
from probe.evaluation.run_lengths import RunLengths, area, bounding_box, centre_box, ious, overlap
from probe.evaluation.tallies import Measure, OtherPicture, Scores, Tally
from probe.evaluation.truths import TruePhrase, Truth

__all__ = ["PanopticNarratives", "ReferringExpressions"]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
CONTROLS = ("shuffled", "other phrase", "centre box", "oracle box")
#: Of cIoU: a sum over other phrases is not to be had where there are none.
WHOLE = ("", "shuffled", "centre box", "oracle box")


class _PhraseMasks(ABC):
    """What both protocols share: IoU of each asked phrase, and of its controls, one picture after the other.

    A phrase that was not predicted has IoU 0. A true phrase without a pixel cannot be found and is left out; the notes count it.
    """

    protocol = ""

    def __init__(self, what: Mapping[str, str], *, confidence: float, seed: int) -> None:
        self.confidence, self.seed = confidence, seed
        self._tally = Tally(
            {(measure, control): text for measure, text in what.items() for control in ("", *CONTROLS)},
            confidence=confidence,
            seed=seed,
        )
        self._other = OtherPicture()
        #: The truth and prediction before this one, while they are about the same picture.
        self._neighbour: tuple[str, list[RunLengths], list[RunLengths]] | None = None
        self._empty = 0

    def add(self, truth: Truth, prediction: Prediction | None) -> None:
        """Scores one picture.

        Raises
        ------
        InputError
            If the prediction's phrases are not those that were asked for.
        """
        prediction = self._tally.begin(truth, prediction)
        asked = self._asked(truth, prediction)
        kept = [(one, found) for one, found in asked if area(one.mask)]
        self._empty += len(asked) - len(kept)
        masks: dict[str, list[list[RunLengths]]] = {
            "": [[found.mask] if found else [] for _, found in kept],
            "centre box": [[centre_box(area(found.mask), truth.size)] if found else [] for _, found in kept],
            "oracle box": [[bounding_box(one.mask)] for one, _ in kept],
            "other phrase": self._of_others(truth, kept),
        }
        if elsewhere := self._other.masks(truth):
            masks["shuffled"] = [elsewhere] * len(kept)
        values: dict[Measure, list[float]] = {}
        for control, each in masks.items():
            overlaps = [_mean_iou(found, one.mask) for (one, _), found in zip(kept, each, strict=True)]
            if control in ("", "centre box"):
                overlaps = [0.0 if not found else iou for found, iou in zip(each, overlaps, strict=True)]
            values |= {(name, control): part for name, part in self._measured(kept, overlaps).items()}
        self._tally.add(truth, values)
        self._keep(truth, prediction, kept, masks)

    @abstractmethod
    def _asked(self, truth: Truth, prediction: Prediction) -> list[tuple[TruePhrase, PredictedPhrase | None]]:
        """The true phrases that the protocol asks for, each with what was predicted for it."""

    @abstractmethod
    def _measured(
        self, kept: Sequence[tuple[TruePhrase, PredictedPhrase | None]], overlaps: list[float]
    ) -> dict[str, list[float]]:
        """The protocol's measures of these overlaps, each a list over phrases."""

    def _of_others(
        self, truth: Truth, kept: Sequence[tuple[TruePhrase, PredictedPhrase | None]]
    ) -> list[list[RunLengths]]:
        """For each phrase the masks of others that name something else in the same picture."""
        pairs = [(one.mask, found.mask) for one, found in kept if found]
        if self._neighbour is not None and self._neighbour[0] == truth.picture:
            pairs += zip(*self._neighbour[1:], strict=True)
        return [[mask for true, mask in pairs if true != one.mask] for one, _ in kept]

    def _keep(
        self,
        truth: Truth,
        prediction: Prediction,
        kept: Sequence[tuple[TruePhrase, PredictedPhrase | None]],
        masks: Mapping[str, Sequence[Sequence[RunLengths]]],
    ) -> None:
        own = [
            float(ious(found, [one.mask])[0, 0]) if found else 0.0
            for (one, _), found in zip(kept, masks[""], strict=True)
        ]
        self._tally.row(truth, prediction, iou=float(np.mean(own)) if own else nan)
        found = [(one.mask, part.mask) for one, part in kept if part]
        self._neighbour = (truth.picture, [one for one, _ in found], [one for _, one in found])
        self._other.keep(truth, prediction)

    def _notes(self) -> tuple[str, ...]:
        empty = f"{self._empty} true phrases have no pixel, so that they cannot be found and are left out"
        return self._tally.notes() + ((empty,) if self._empty else ())

    def result(self) -> Scores:
        """The tables."""
        return Scores(self.protocol, self._tally.summary(), self._tally.images(), notes=self._notes())


def _mean_iou(found: Sequence[RunLengths], true: RunLengths) -> float:
    return float(ious(found, [true]).mean()) if found else nan


class ReferringExpressions(_PhraseMasks):
    """The scorer of referring expression segmentation: one mask for each expression of an example, in their order.

    - gIoU: mean IoU over expressions.
    - cIoU: intersections summed over expressions / unions summed: large objects count more.
    - Precision@t: share of the expressions with an IoU of at least t.

    An expression without a predicted phrase has IoU 0, and its true mask stands in the union.
    """

    protocol = "res"

    def __init__(self, *, confidence: float = 0.95, seed: int = 0) -> None:
        what = {"gIoU": "mean IoU over expressions"}
        what |= {f"Precision@{one}": f"share of the expressions with an IoU of at least {one}" for one in THRESHOLDS}
        super().__init__(what, confidence=confidence, seed=seed)
        self._whole = PoissonBootstrap(cells=len(WHOLE), seed=seed)
        self._pictures, self._expressions = Pictures(), 0

    def _asked(self, truth: Truth, prediction: Prediction) -> list[tuple[TruePhrase, PredictedPhrase | None]]:
        if len(prediction.phrases) > len(truth.phrases):
            raise InputError(
                f"prediction {prediction.name!r} has {len(prediction.phrases)} phrases for {len(truth.phrases)} expressions; give "
                "one for each expression at most, in their order"
            )
        found = [*prediction.phrases, *[None] * (len(truth.phrases) - len(prediction.phrases))]
        return list(zip(truth.phrases, found, strict=True))

    def _measured(
        self, kept: Sequence[tuple[TruePhrase, PredictedPhrase | None]], overlaps: list[float]
    ) -> dict[str, list[float]]:
        shares = {
            f"Precision@{least}": [nan if np.isnan(one) else float(one >= least) for one in overlaps]
            for least in THRESHOLDS
        }
        return {"gIoU": overlaps, **shares}

    def _keep(
        self,
        truth: Truth,
        prediction: Prediction,
        kept: Sequence[tuple[TruePhrase, PredictedPhrase | None]],
        masks: Mapping[str, Sequence[Sequence[RunLengths]]],
    ) -> None:
        both, either = np.zeros((2, len(WHOLE)))
        for place, control in enumerate(WHOLE):
            for (one, _), found in zip(kept, masks.get(control, ()), strict=False):
                pairs = [overlap(mask, one.mask) for mask in found] or [(0, area(one.mask))]
                both[place] += np.mean([one for one, _ in pairs])
                either[place] += np.mean([one for _, one in pairs])
        number, new = self._pictures.number(truth.picture), self._pictures.new(truth.picture, either)
        self._whole.add(number, both, either, new=new)
        self._expressions += len(kept)
        super()._keep(truth, prediction, kept, masks)

    def result(self) -> Scores:
        """The tables."""
        cells = self._whole.intervals(confidence=self.confidence)
        what = "summed intersections / summed unions"
        more: dict[Measure, tuple[str, Interval]] = {}
        for place, control in enumerate(WHOLE):
            one = cells[place]
            more["cIoU", control] = (what, Interval(one.value, one.low, one.high, one.images, self._expressions))
        return Scores(self.protocol, self._tally.summary(more), self._tally.images(), notes=self._notes())


#: Subset of a narrative's phrases -> whether a phrase belongs to it.
SUBSETS = {
    "average recall": lambda one: True,
    "average recall, things": lambda one: one.thing is True,
    "average recall, stuff": lambda one: one.thing is False,
    "average recall, singular": lambda one: one.plural is False,
    "average recall, plural": lambda one: one.plural is True,
}


class PanopticNarratives(_PhraseMasks):
    """The scorer of panoptic narrative grounding: the caption is given, and each of its phrases has one predicted mask.

    Average recall is the area under recall(t) = share of the phrases with an IoU of at least t, for t from 0 to 1. Each phrase
    adds its own IoU to that area, so it *is* the mean IoU over phrases; the published code sums over 99,999 thresholds
    0.00001 apart, each the left end of its step, which is at most 0.00001 away. Things, stuff, singular and plural are those
    that the examples declare; phrases that declare nothing count in the first row alone. The pictures' rows have the mean IoU of
    each.

    A predicted phrase belongs to the true phrase at the same characters; a true phrase that has none has IoU 0.

    References
    ----------
    González et al., Panoptic Narrative Grounding, ICCV 2021, arXiv 2109.04988.
    """

    protocol = "png"

    def __init__(self, *, confidence: float = 0.95, seed: int = 0) -> None:
        what = dict.fromkeys(SUBSETS, "area under recall over IoU thresholds from 0 to 1")
        what["recall at 0.5"] = "share of the phrases with an IoU of at least 0.5"
        super().__init__(what, confidence=confidence, seed=seed)

    def _asked(self, truth: Truth, prediction: Prediction) -> list[tuple[TruePhrase, PredictedPhrase | None]]:
        if prediction.phrases and prediction.text != truth.text:
            raise InputError(
                f"prediction {prediction.name!r} is of another text than its example: a narrative is given to the model and not "
                "said by it; read the example's own text with the model"
            )
        found = {(one.start, one.end): one for one in prediction.phrases}
        strange = set(found) - {(one.start, one.end) for one in truth.phrases}
        if strange or len(found) < len(prediction.phrases):
            start, end = min(strange, default=(0, 0))
            what = f"has none at characters {start} to {end}" if strange else "has each phrase once"
            raise InputError(
                f"prediction {prediction.name!r} has a phrase that nobody asked for: its example {what}; predict the phrases of "
                "the example"
            )
        return [(one, found.get((one.start, one.end))) for one in truth.phrases]

    def _measured(
        self, kept: Sequence[tuple[TruePhrase, PredictedPhrase | None]], overlaps: list[float]
    ) -> dict[str, list[float]]:
        values = {
            name: [iou for (one, _), iou in zip(kept, overlaps, strict=True) if belongs(one)]
            for name, belongs in SUBSETS.items()
        }
        return values | {"recall at 0.5": [nan if np.isnan(one) else float(one >= 0.5) for one in overlaps]}
