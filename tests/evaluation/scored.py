"""Random truths and predictions about small pictures, and the plain lines that scorers are held against."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from probe.evaluation.predictions import PredictedPhrase, Prediction
from probe.evaluation.run_lengths import encode
from probe.evaluation.truths import TruePhrase, Truth

WORDS = ("red circle", "blue square", "large green ring", "small dog", "grey circle")
CATEGORIES = ("circle", "square", "ring", "dog")


def blob(rng, size, *, empty=0.1):
    """A random box with a hole, or nothing."""
    mask = np.zeros(size, bool)
    if rng.random() < empty:
        return mask
    top, left = (int(rng.integers(0, one)) for one in size)
    mask[top : top + int(rng.integers(1, size[0] + 1)), left : left + int(rng.integers(1, size[1] + 1))] = True
    mask[top, left] = rng.random() < 0.5
    return mask


def listed(words):
    """A text of these phrases, and the characters of each."""
    text, spans = "", []
    for one in words:
        text += "a "
        spans.append((one, len(text), len(text) + len(one)))
        text += one + ", "
    return text, spans


def truth(name, masks, words=None, *, size=(12, 16), picture=None, categories=None, **fields):
    """The truth with these dense masks."""
    text, spans = listed(words or [WORDS[i % len(WORDS)] for i in range(len(masks))])
    categories = categories or [""] * len(masks)
    phrases = tuple(
        TruePhrase(*span, encode(mask), category, **{key: each[i] for key, each in fields.items()})
        for i, (span, mask, category) in enumerate(zip(spans, masks, categories, strict=True))
    )
    return Truth(name, picture or name, size, text, phrases)


def prediction(name, masks, words=None, *, size=(12, 16), points=None, scores=None):
    """The prediction with these dense masks."""
    text, spans = listed(words or [WORDS[i % len(WORDS)] for i in range(len(masks))])
    points = points or [None] * len(masks)
    scores = scores or [float("nan")] * len(masks)
    phrases = tuple(
        PredictedPhrase(*span, encode(mask), point, score)
        for span, mask, point, score in zip(spans, masks, points, scores, strict=True)
    )
    return Prediction(name, size, text, phrases)


def random_pairs(seed, count, *, most=5, size=(12, 16)):
    """(truth, prediction) of pictures of which some have no truth, no prediction, or the same mask twice."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        true = [blob(rng, size) for _ in range(int(rng.integers(0, most)))]
        found = [
            true[int(rng.integers(len(true)))].copy() if true and rng.random() < 0.5 else blob(rng, size)
            for _ in range(int(rng.integers(0, most)))
        ]
        for one in found:
            one[tuple(rng.integers(0, size))] ^= rng.random() < 0.5
        words = [rng.choice(WORDS, len(each)).tolist() for each in (true, found)]
        points = [tuple(int(rng.integers(0, one)) for one in size) if rng.random() < 0.8 else None for _ in found]
        categories = [one.split()[-1] for one in words[0]]
        pairs.append(
            (
                truth(str(number), true, words[0], size=size, categories=categories),
                prediction(
                    str(number), found, words[1], size=size, points=points, scores=rng.random(len(found)).tolist()
                ),
            )
        )
    return pairs


def dense(phrases):
    """The masks of phrases as bool arrays."""
    return [coco_mask.decode(one.mask).astype(bool) for one in phrases]


def plain_iou(one, two):
    """Intersection over union, 0 of nothing."""
    return (one & two).sum() / max((one | two).sum(), 1)


def reference_precision(truths, results):
    """AP and AP50 as COCOeval says, from files."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO(str(truths))
        evaluator = COCOeval(true, true.loadRes(results if isinstance(results, list) else str(results)), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[0], evaluator.stats[1]
