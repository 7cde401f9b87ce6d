"""Tables of results: one row for each picture, and one for each measure with its interval and its controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from probe.analysis.stats import Interval, Pictures, PoissonBootstrap
from probe.errors import InputError
from probe.evaluation.predictions import PredictedPhrase, Prediction
from probe.evaluation.run_lengths import RunLengths, resized
from probe.evaluation.truths import Missing, Truth, pair

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CONTROLS", "Measure", "OtherPicture", "Scorer", "Scores", "Tally", "score_predictions"]

#: Control -> what it is. A measure's own row has the control "".
CONTROLS = {
    "shuffled": "the predictions of the previous picture instead, at this one's size",
    "other phrase": "the mask or point of another phrase of this picture instead",
    "centre box": "a box in the picture's centre instead, as large as the predicted mask and shaped like the picture",
    "centre": "the pixel in the middle of the picture instead",
    "uniform": "a pixel drawn anywhere in the picture instead",
    "oracle masks": "what perfect masks would reach with these words",
    "oracle words": "what perfect words would reach with these masks",
    "oracle box": "what the boxes around the true masks reach",
}

#: A measure and a control, "" for none.
Measure = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a protocol says of a data set.

    Attributes
    ----------
    protocol : its name.
    summary : a row for each measure and control: measure, control, what, value, low, high, images, phrases. Percentile intervals
        by bootstrap over images; ``phrases`` is how many things the value is a mean over or a share of. Rows of controls also have
        "difference", "difference_low" and "difference_high": the measure minus this control on the same images, NaN where that is
        no mean over images.
    images : a row for each example, in order.
    settings : what the numbers depend on, by name, such as the similarity of words.
    notes : what a reader of the numbers has to know: pictures without truths, measures that could not be had and why.
    unavailable : measure -> why there is none.
    """

    protocol: str
    summary: pd.DataFrame
    images: pd.DataFrame
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)

    def value(self, measure: str, *, control: str = "") -> float:
        """The value of one row of the summary.

        Raises
        ------
        InputError
            If there is no such row.
        """
        rows = self.summary[(self.summary["measure"] == measure) & (self.summary["control"] == control)]
        if len(rows) != 1:
            known = ", ".join(dict.fromkeys(self.summary["measure"]))
            raise InputError(f"There is no measure {measure!r} with control {control!r}; there are {known}.")
        return float(rows["value"].iloc[0])


class Scorer(Protocol):
    """What scores a protocol, one picture after the other."""

    def add(self, truth: Truth, prediction: Prediction | None) -> None:
        """Scores one picture; None is a picture in which nothing was found."""

    def result(self) -> Scores:
        """The tables of all pictures added."""


def score_predictions(
    scorer: Scorer, truths: Iterable[Truth], predictions: Iterable[Prediction], *, missing: Missing = "refuse"
) -> Scores:
    """The tables of a data set, in memory for one picture and a row for each.

    >>> truths = map(encode_example, read_coco_folder("coco-mini"))
    >>> score_predictions(GroundedConversations(WordEncoder()), truths, read_predictions("predictions.jsonl"))

    Raises
    ------
    InputError
        If truths and predictions do not fit (see ``pair``), the protocol cannot score one of them, or there is none.
    """
    none = True
    for truth, prediction in pair(truths, predictions, missing=missing):
        scorer.add(truth, prediction)
        none = False
    if none:
        raise InputError("There is no picture to score; give at least one example and its prediction.")
    return scorer.result()


class Tally:
    """Running means of measures, with intervals; what a picture does not say of a measure leaves the picture out of it."""

    def __init__(self, measures: Mapping[Measure, str], *, confidence: float, seed: int) -> None:
        self.measures, self.confidence = dict(measures), confidence
        self._place = {name: place for place, name in enumerate(self.measures)}
        self._bootstrap = PoissonBootstrap(cells=len(self.measures), seed=seed)
        self.pictures = Pictures()
        self.rows: list[dict[str, object]] = []
        self.without_truths: list[str] = []
        self.missed: list[str] = []

    def add(self, truth: Truth, values: Mapping[Measure, Sequence[float]]) -> None:
        """Adds one example: the values of its phrases, or its one value, for each measure; NaN is left out.

        Examples that share a picture are drawn together.
        """
        sums, counts = np.zeros((2, len(self.measures)))
        for name, given in values.items():
            known = [one for one in given if not isnan(one)]
            sums[self._place[name]], counts[self._place[name]] = sum(known), len(known)
        number, new = self.pictures.number(truth.picture), self.pictures.new(truth.picture, counts)
        self._bootstrap.add(number, sums, counts, new=new)

    def begin(self, truth: Truth, prediction: Prediction | None) -> Prediction:
        """The prediction to score, one without phrases where there is none; notes what has to be said of the picture."""
        if not truth.phrases:
            self.without_truths.append(truth.name)
        if prediction is None:
            self.missed.append(truth.name)
        return prediction or Prediction(truth.name, truth.size, "")

    def row(self, truth: Truth, prediction: Prediction, **values: object) -> None:
        """Keeps the picture's row."""
        self.rows.append(
            {"name": truth.name, "truths": len(truth.phrases), "predicted": len(prediction.phrases), **values}
        )

    def notes(self) -> tuple[str, ...]:
        """What has to be said of all pictures."""
        said = (
            ("without a true phrase", self.without_truths),
            ("without a prediction, counted as misses", self.missed),
        )
        return tuple(f"{len(names)} images {what}: {_listed(names)}" for what, names in said if names)

    def interval(self, name: Measure) -> Interval:
        """The value of one measure, with its interval."""
        return self._bootstrap.intervals(confidence=self.confidence)[self._place[name]]

    def summary(self, more: Mapping[Measure, tuple[str, Interval]] | None = None) -> pd.DataFrame:
        """The rows of the measures in their order, and those that were computed elsewhere before them."""
        import pandas as pd

        cells = self._bootstrap.intervals(confidence=self.confidence)
        found = {name: (what, cells[self._place[name]]) for name, what in self.measures.items()}
        drawn = self._bootstrap.replicated()
        rows = [
            {
                "measure": measure, "control": control, "what": CONTROLS.get(control, what), "value": one.value,
                "low": one.low, "high": one.high, "images": one.images, "phrases": one.phrases,
                **self._difference((measure, control), one, found, drawn),
            }
            for (measure, control), (what, one) in {**(more or {}), **found}.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _difference(
        self,
        name: Measure,
        own: Interval,
        found: Mapping[Measure, tuple[str, Interval]],
        drawn: NDArray[np.float64],
    ) -> dict[str, float]:
        """The measure minus its control, with the interval of the same draws of images for both."""
        keys, whole = ("difference", "difference_low", "difference_high"), (name[0], "")
        if not name[1] or name not in self._place or whole not in self._place:
            return dict.fromkeys(keys, nan)
        apart = drawn[:, self._place[whole]] - drawn[:, self._place[name]]
        apart = apart[~np.isnan(apart)]
        tail = (1 - self.confidence) / 2
        enough = own.images > 1 and len(apart) > 0
        low, high = np.quantile(apart, (tail, 1 - tail)) if enough else (nan, nan)
        return dict(zip(keys, (found[whole][1].value - own.value, float(low), float(high)), strict=True))

    def images(self) -> pd.DataFrame:
        """The rows of the pictures."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def _listed(names: Sequence[str], *, most: int = 20) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


class OtherPicture:
    """The last prediction with phrases that was about another picture: what shuffled pairs are made of."""

    def __init__(self) -> None:
        self._last: tuple[str, Prediction] | None = None
        self._before: tuple[str, Prediction] | None = None

    def prediction(self, truth: Truth) -> Prediction | None:
        """It, or None for the first picture."""
        for one in (self._last, self._before):
            if one is not None and one[0] != truth.picture:
                return one[1]
        return None

    def masks(self, truth: Truth) -> list[RunLengths]:
        """Its masks at the size of this picture; none for the first picture."""
        other = self.prediction(truth)
        return [resized(one.mask, truth.size) for one in other.phrases] if other else []

    def keep(self, truth: Truth, prediction: Prediction) -> None:
        """Remembers this picture's prediction for those to come."""
        if not prediction.phrases:
            return
        if self._last is not None and self._last[0] != truth.picture:
            self._before = self._last
        self._last = (truth.picture, prediction)


def phrase_score(phrase: PredictedPhrase) -> float:
    """The phrase's score, 1 where the model gave none."""
    return 1.0 if isnan(phrase.score) else float(phrase.score)
