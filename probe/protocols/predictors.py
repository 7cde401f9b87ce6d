"""From the saved maps of one example to its prediction, as each protocol wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.evaluation.predictions import PredictedPhrase, Prediction, from_segmentation
from probe.evaluation.run_lengths import encode
from probe.evaluation.truths import TruePhrase, Truth
from probe.grounding.phrases import Phrase
from probe.grounding.refiners import Refiner
from probe.grounding.segment import Segmentation, attend_and_segment
from probe.protocols.maps import Failure, reduction_of
from probe.protocols.plans import EvaluationPlan, Protocol, ReadOut, reads_expression
from probe.protocols.questions import expression_phrase, narrative_phrases, said_phrases, token_after_verb

__all__ = ["Predictor"]


@dataclass(frozen=True, eq=False)
class Predictor:
    """What makes predictions of maps, for one protocol and one read-out."""

    protocol: Protocol
    plan: EvaluationPlan
    read: ReadOut
    refiner: Refiner

    def predict(self, truth: Truth, picture: Image.Image, found: Sequence[AttentionRecord | Failure]) -> Prediction:
        """The prediction about an example, of what was found by each question about it; at least one of them has maps."""
        if self.protocol.name == "res":
            pairs = zip(truth.phrases, found, strict=True)
            parts = [self._expression(true, one, picture) for true, one in pairs]
            return Prediction(truth.name, truth.size, truth.text, tuple(parts))
        [record] = [one for one in found if isinstance(one, AttentionRecord)]
        if self.protocol.name == "png":
            return self._narrative(truth, record, picture)
        phrases = said_phrases(record, self.protocol)
        try:
            return from_segmentation(truth.name, self._segmented(record, picture, phrases))
        except InputError:
            # An answer of one token is nothing minus its own mean: a text in which nothing was found.
            if len(record.tokens) > 1:
                raise
            return Prediction(truth.name, truth.size, record.text)

    def _segmented(self, record: AttentionRecord, picture: Image.Image, phrases: Iterable[Phrase]) -> Segmentation:
        part, read = reduction_of(record, self.read.reduction), self.read
        return attend_and_segment(
            part, picture, phrases=phrases, combine=read.combine, point=read.point, refiner=self.refiner
        )

    def _narrative(self, truth: Truth, record: AttentionRecord, picture: Image.Image) -> Prediction:
        """The prediction with its phrases at the characters of the example's own text."""
        places = list({(one.start, one.end): one for one in truth.phrases}.values())
        try:
            phrases = narrative_phrases(record, [(one.start, one.end) for one in places], truth.text)
            found = from_segmentation(truth.name, self._segmented(record, picture, phrases)).phrases
        except InputError as error:
            found = tuple(_nothing(one, truth.size, str(error)) for one in places)
        pairs = zip(places, found, strict=True)
        parts = [replace(one, text=true.text, start=true.start, end=true.end) for true, one in pairs]
        return Prediction(truth.name, truth.size, truth.text, tuple(parts))

    def _expression(self, true: TruePhrase, found: AttentionRecord | Failure, picture: Image.Image) -> PredictedPhrase:
        """The mask of one expression, at its characters in the example's text; empty, with the reason, where there is none."""
        size = (picture.height, picture.width)
        if isinstance(found, Failure):
            return _nothing(true, size, found.reason)
        if reads_expression(self.protocol, self.plan):
            phrase: Phrase | None = expression_phrase(found)
        else:
            phrase = token_after_verb(found)
        if phrase is None:
            return _nothing(true, size, f"the answer {found.text!r} has no token after is, are or be")
        try:
            [one] = self._segmented(found, picture, [phrase]).phrases
        except InputError as error:
            return _nothing(true, size, str(error))
        root = found.text[slice(*phrase.root)].strip()
        note = one.note or f"read at {root!r} of {found.text!r}"
        return PredictedPhrase(true.text, true.start, true.end, encode(one.mask), one.point, float(one.score), note)


def _nothing(true: TruePhrase, size: tuple[int, int], reason: str) -> PredictedPhrase:
    """An empty mask for a phrase, with the reason."""
    empty = encode(np.zeros(size, dtype=bool))
    return PredictedPhrase(true.text, true.start, true.end, empty, note=" ".join(reason.split()))
