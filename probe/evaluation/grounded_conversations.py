"""Grounded conversation generation: a text about a picture whose phrases are found in it, as GLaMM scores it.

References: Rasheed et al., GLaMM: Pixel Grounding Large Multimodal Model, CVPR 2024, arXiv 2311.03356.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from probe.analysis.stats import Interval
from probe.evaluation.average_precision import AveragePrecision, Masked
from probe.evaluation.caption_scores import CaptionScores, score_captions
from probe.evaluation.matching import greedy_pairs, legacy_pairs, optimal_pairs, paired_iou
from probe.evaluation.predictions import Prediction
from probe.evaluation.run_lengths import RunLengths, area, bounding_box, centre_box, ious
from probe.evaluation.similarity import TextEncoder, similarities
from probe.evaluation.tallies import Measure, OtherPicture, Scores, Tally
from probe.evaluation.truths import Truth

__all__ = ["GroundedConversations"]

MATCHINGS = {"recall, legacy": legacy_pairs, "recall, greedy": greedy_pairs, "recall, optimal": optimal_pairs}
WHAT = {
    "AP": "average precision of the masks, IoU 0.5 to 0.95, every score 1",
    "AP50": "average precision of the masks at IoU 0.5, every score 1",
    "mIoU": "mean over images of the mean IoU of masks paired one by one, the largest first",
    "recall, legacy": "share of the true phrases found, IoU and similarity of words at least 0.5, as published",
    "recall, greedy": "the same, going on after a pair that does not pass",
    "recall, optimal": "the same, with as many pairs as can be made",
    "similarity": "how alike the words of a true phrase and of the predicted phrase that overlaps it most are",
}
#: The sets of masks that all of it is computed for.
VARIANTS = ("", "shuffled", "centre box")
CONTROLS = {
    "AP": ("shuffled", "centre box"),
    "mIoU": ("shuffled", "centre box", "oracle box"),
    **dict.fromkeys(MATCHINGS, ("shuffled", "other phrase", "centre box", "oracle masks", "oracle words")),
}


@dataclass(frozen=True, eq=False)
class _Found:
    """Masks and words, predicted or in place of the predicted ones."""

    masks: list[RunLengths]
    words: list[str]


class GroundedConversations:
    """The scorer of grounded conversation generation.

    >>> scorer = GroundedConversations(BertEncoder())
    >>> scorer.add(truth, prediction)
    >>> scorer.result().summary

    - AP, AP50: COCO's, one category, every score 1. Among equal scores the order decides: that of the pictures' names.
    - mIoU: of pairs taken one by one, the largest IoU first; a picture without a pair counts as 0, one without a true phrase too.
    - recall: a true phrase is found by a predicted one if IoU and similarity of words are at least 0.5. As published, pairing
      ("legacy") stops at the first pair that does not pass; "greedy" goes on, and "optimal" makes as many pairs as there can be:
      legacy <= greedy <= optimal. The pictures' rows have the pairs of each, and how many the first lost.
    - controls: beside each of these. Which words a mask has is nothing to AP and mIoU, so that "other phrase" stands beside recall
      alone; "shuffled" takes masks and words of the previous picture.
    - empty masks: overlap nothing. In the released scorer two of them have no IoU (0 / 0), which ends its pairing for mIoU and
      counts as found for recall.
    - METEOR, CIDEr: of the texts against the example's text and its references.

    Parameters
    ----------
    encoder : what says how alike words are; its name stands in the settings. The published one is ``BertEncoder``.
    captions : False leaves out METEOR and CIDEr.
    confidence, seed : of the intervals.
    """

    def __init__(self, encoder: TextEncoder, *, captions: bool = True, confidence: float = 0.95, seed: int = 0) -> None:
        self.encoder, self.captions, self.confidence, self.seed = encoder, captions, confidence, seed
        names: list[Measure] = [("similarity", "")]
        for measure in ("mIoU", *MATCHINGS):
            names += [(measure, control) for control in ("", *CONTROLS[measure])]
        self._tally = Tally({name: WHAT[name[0]] for name in names}, confidence=confidence, seed=seed)
        self._precision = {one: AveragePrecision(seed=seed) for one in VARIANTS}
        self._other = OtherPicture()
        self._texts: list[tuple[str, tuple[str, ...]]] = []
        self._truths: list[Truth] = []

    def add(self, truth: Truth, prediction: Prediction | None) -> None:
        """Scores one picture."""
        prediction = self._tally.begin(truth, prediction)
        found = _Found([one.mask for one in prediction.phrases], [one.text for one in prediction.phrases])
        true = _Found([one.mask for one in truth.phrases], [one.words for one in truth.phrases])
        overlaps, alike = ious(found.masks, true.masks), similarities(self.encoder, true.words, found.words)
        values: dict[Measure, list[float]] = {("mIoU", ""): [paired_iou(overlaps)]}
        pairs = {name: match(overlaps.T, alike) for name, match in MATCHINGS.items()}
        for name, matched in pairs.items():
            values[name, ""] = _shares(len(matched), true)
        values["similarity", ""] = [float(alike[one, overlaps[:, one].argmax()]) for one in range(len(true.words))
                                    if len(found.words) and overlaps[:, one].max() > 0]  # fmt: skip
        values |= self._controls(truth, found, true, overlaps, alike)
        self._tally.add(truth, values)
        counts = {name.replace("recall, ", ""): len(matched) for name, matched in pairs.items()}
        lost = counts["optimal"] - counts["legacy"]
        self._tally.row(truth, prediction, miou=values["mIoU", ""][0], **counts, lost=lost)
        self._precision[""].add(truth.name, _masked(found.masks), _masked(true.masks), picture=truth.picture)
        self._texts.append((prediction.text, (truth.text, *truth.references)))
        self._truths.append(truth)
        self._other.keep(truth, prediction)

    def _controls(
        self, truth: Truth, found: _Found, true: _Found, overlaps: NDArray[np.float64], alike: NDArray[np.float64]
    ) -> dict[Measure, list[float]]:
        values: dict[Measure, list[float]] = {}

        def score(control: str, ious_: NDArray[np.float64], similar: NDArray[np.float64]) -> None:
            for name, match in MATCHINGS.items():
                values[name, control] = _shares(len(match(ious_.T, similar)), true)

        boxes = [centre_box(area(one), truth.size) for one in found.masks]
        in_boxes = ious(boxes, true.masks)
        score("centre box", in_boxes, alike)
        values["mIoU", "centre box"] = [paired_iou(in_boxes)]
        self._precision["centre box"].add(truth.name, _masked(boxes), _masked(true.masks), picture=truth.picture)
        if other := self._other.prediction(truth):
            masks = self._other.masks(truth)
            elsewhere = ious(masks, true.masks)
            words = [one.text for one in other.phrases]
            score("shuffled", elsewhere, similarities(self.encoder, true.words, words))
            values["mIoU", "shuffled"] = [paired_iou(elsewhere)]
            self._precision["shuffled"].add(truth.name, _masked(masks), _masked(true.masks), picture=truth.picture)
        if len(found.masks) > 1:
            score("other phrase", np.roll(overlaps, 1, axis=0), alike)
        # Words or masks that are perfect leave the other of the two to decide.
        score("oracle masks", (alike.T >= 0.5).astype(float), alike)
        score("oracle words", overlaps, np.ones_like(alike))
        values["mIoU", "oracle box"] = [paired_iou(ious([bounding_box(one) for one in true.masks], true.masks))]
        return values

    def result(self) -> Scores:
        """The tables; texts are scored now."""
        more: dict[Measure, tuple[str, Interval]] = {}
        precise = {one: part.intervals(confidence=self.confidence) for one, part in self._precision.items()}
        for place, measure in enumerate(("AP", "AP50")):
            more |= {(measure, one): (WHAT[measure], found[place]) for one, found in precise.items()}
        images = self._tally.images()
        settings = {"similarity of words": self.encoder.name}
        notes, unavailable = list(self._tally.notes()), {}
        if self.captions:
            found = score_captions([one for one, _ in self._texts], [one for _, one in self._texts])
            more |= self._of_texts(found)
            unavailable = dict(found.unavailable)
            notes += [f"{name} is not available: {reason}" for name, reason in found.unavailable.items()]
            settings["words of METEOR and CIDEr"] = found.tokeniser
            for name, each in found.each.items():
                images[name] = each
        return Scores("gcg", self._tally.summary(more), images, settings, tuple(notes), unavailable)

    def _of_texts(self, found: CaptionScores) -> dict[Measure, tuple[str, Interval]]:
        """The measures of texts. METEOR as published is no mean over images, and has no interval."""
        rows: dict[Measure, tuple[str, Interval]] = {}
        count = len(self._texts)
        if "METEOR" in found.overall:
            overall = Interval(found.overall["METEOR"], nan, nan, count, count)
            rows["METEOR", ""] = ("METEOR from counts summed over the texts, as published", overall)
        for name, measure in (("METEOR", "METEOR, each"), ("CIDEr", "CIDEr")):
            if name in found.each:
                tally = Tally({(measure, ""): ""}, confidence=self.confidence, seed=self.seed)
                for truth, one in zip(self._truths, found.each[name], strict=True):
                    tally.add(truth, {(measure, ""): [one]})
                rows[measure, ""] = (f"{name}, mean over the texts", tally.interval((measure, "")))
        return rows


def _masked(masks: Sequence[RunLengths]) -> list[Masked]:
    return [Masked("", one) for one in masks]


def _shares(hits: int, true: _Found) -> list[float]:
    return [1.0] * hits + [0.0] * (len(true.words) - hits)
