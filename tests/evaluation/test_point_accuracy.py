"""Point accuracy against a plain loop over pixels, and the rules that say which phrases count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.evaluation.categories import named_category, similar_category
from probe.evaluation.point_accuracy import PointAccuracy
from probe.evaluation.predictions import PredictedPhrase
from probe.evaluation.run_lengths import encode
from probe.evaluation.similarity import WordEncoder
from probe.evaluation.tallies import score_predictions
from tests.evaluation.scored import dense, prediction, random_pairs, truth

MASK = np.zeros((12, 16), bool)
MASK[:6] = True


def scored(pairs, rule=None, **options):
    truths, predictions = zip(*pairs, strict=True)
    return score_predictions(PointAccuracy(rule), truths, [one for one in predictions if one], **options)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_share_equals_a_plain_loop(seed):
    pairs = random_pairs(seed, 6)
    hits, uniform = [], []
    for true, found in pairs:
        inside = {}
        for one, mask in zip(true.phrases, dense(true.phrases), strict=True):
            inside[one.category] = inside.get(one.category, False) | mask
        for one in found.phrases:
            category = one.text.split()[-1]
            if category in inside:
                hits.append(one.point is not None and bool(inside[category][one.point]))
                uniform.append(inside[category].mean())
    scores = scored(pairs)
    if hits:
        assert scores.value("PAcc") == pytest.approx(np.mean(hits), abs=1e-12)
        assert scores.value("PAcc", control="uniform") == pytest.approx(np.mean(uniform), abs=1e-12)
    else:
        assert np.isnan(scores.value("PAcc"))


def test_controls_by_hand():
    words = ["dog", "cat"]
    true = truth("a", [MASK, ~MASK], words, categories=words)
    second = truth("b", [MASK, ~MASK], words, categories=words)
    found = [prediction(name, [MASK, ~MASK], words, points=[(0, 0), (11, 15)]) for name in "ab"]
    scores = scored([(true, found[0]), (second, found[1])])
    assert scores.value("PAcc") == scores.value("AP") == scores.value("AP50") == pytest.approx(1)
    assert scores.value("PAcc", control="other phrase") == 0
    assert scores.value("PAcc", control="centre") == 0.5  # row 6 is the cat's
    assert scores.value("PAcc", control="uniform") == 0.5
    assert scores.value("PAcc", control="shuffled") == 0.5
    assert scores.images[["counted", "hits", "categories", "named"]].to_numpy().tolist() == [[2, 2, 2, 2]] * 2


def test_pictures_that_say_nothing():
    pairs = [
        (truth("hit", [MASK], ["dog"], categories=["dog"]), prediction("hit", [MASK], ["two dogs"], points=[(0, 0)])),
        (truth("no point", [MASK], ["dog"], categories=["dog"]), prediction("no point", [MASK], ["dog"])),
        (truth("silent", [MASK], ["dog"], categories=["dog"]), prediction("silent", [])),
        (truth("other", [MASK], ["dog"], categories=["dog"]), prediction("other", [MASK], ["tree"], points=[(0, 0)])),
        (truth("no truth", []), prediction("no truth", [MASK], ["dog"], points=[(0, 0)])),
        (truth("missing", [MASK], ["dog"], categories=["dog"]), None),
    ]
    scores = scored(pairs, missing="miss")
    assert scores.value("PAcc") == 0.5
    assert scores.value("PAcc, silence a miss") == 1 / 5
    assert scores.images["counted"].tolist() == [1, 1, 0, 0, 0, 0]
    assert scores.notes[-1].startswith("4 images have no phrase that counts")


def test_a_category_that_is_not_in_the_picture_is_a_miss():
    phrase = PredictedPhrase("it", 0, 2, encode(MASK), (0, 0), category="cat")
    from probe.evaluation.predictions import Prediction

    true = truth("a", [MASK], ["dog"], categories=["dog"])
    scores = scored([(true, Prediction("a", (12, 16), "it", (phrase,)))])
    assert scores.value("PAcc") == 0
    assert scores.images["counted"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("a dog", "dog"),
        ("two Young dogs", "dog"),
        ("a hot dog", "hot dog"),
        ("the dog house", None),
        ("a man", "person"),
        ("people", "person"),
        ("glasses", "wine glass"),
        ("a bus", "bus"),
        ("buses", "bus"),
        ("the", None),
    ],
)
def test_the_last_words_name_the_category(text, category):
    rule = named_category({"person": ["man", "woman"], "wine glass": ["glass"]})
    phrase = PredictedPhrase(text, 0, len(text), encode(MASK))
    assert rule(phrase, ["dog", "hot dog", "person", "wine glass", "bus"]) == category


def test_the_most_similar_category_as_published():
    phrase = PredictedPhrase("a big dog", 0, 9, encode(MASK))
    rule = similar_category(WordEncoder())
    assert rule(phrase, ["cat", "hot dog"]) == "hot dog"
    assert rule(phrase, ["tree", "cat"]) == "cat"  # every phrase counts, and of equals the first in order
    assert rule(phrase, []) is None
    assert similar_category(WordEncoder(), least=0.5)(phrase, ["tree", "cat"]) is None
