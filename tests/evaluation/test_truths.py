"""Truths keep what examples say, and every one meets the prediction of its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.predictions import Prediction
from probe.evaluation.truths import encode_example, pair
from tests.evaluation.scored import dense, truth


def test_an_encoded_example_keeps_everything():
    mask = np.eye(4, 6, dtype=bool)
    phrase = ExamplePhrase("dog", 2, 5, mask, "animal", True, False)
    one = encode_example(Example("a", Path("one.png"), "a dog", (phrase,), ("the dog",)))
    assert (one.name, one.picture, one.size, one.text, one.references) == (
        "a",
        "one.png",
        (4, 6),
        "a dog",
        ("the dog",),
    )
    [part] = one.phrases
    assert (part.text, part.start, part.end, part.category, part.thing, part.plural) == (
        "dog",
        2,
        5,
        "animal",
        True,
        False,
    )
    assert (dense(one.phrases)[0] == mask).all()
    assert encode_example(Example("b", Image.new("RGB", (6, 4)), "nothing", ())).size == (4, 6)


def predicted(*names, size=(12, 16)):
    return [Prediction(one, size, "") for one in names]


def truths(*names):
    return [truth(one, []) for one in names]


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_predictions_find_their_truths_in_any_order(order):
    found = list(pair(truths(*"abc"), predicted(*order)))
    assert [(one.name, other.name) for one, other in found] == [("a", "a"), ("b", "b"), ("c", "c")]


def test_predictions_in_order_are_not_read_ahead():
    read = []

    def coming():
        for one in predicted(*"abc"):
            read.append(one.name)
            yield one

    pairs = pair(truths(*"abc"), coming())
    next(pairs)
    assert read == ["a"]


def test_a_missing_prediction_is_refused_or_a_miss():
    with pytest.raises(InputError, match="example 'b' has no prediction"):
        list(pair(truths(*"ab"), predicted("a")))
    found = list(pair(truths(*"ab"), predicted("a"), missing="miss"))
    assert [one.name for one, _ in found] == ["a", "b"]
    assert found[1][1] is None
    with pytest.raises(InputError, match="missing must be one of 'refuse', 'miss', found 'skip'"):
        pair([], [], missing="skip")


@pytest.mark.parametrize("missing", ["refuse", "miss"])
def test_what_does_not_fit_is_refused(missing):
    for given, expected, message in (
        (truths("a"), predicted("a", "scene", ""), "2 predictions are about no example, the first of them 'scene'"),
        (truths("a", "a"), predicted("a"), "example 'a' is there twice"),
        (truths("a"), predicted("a", "a"), "prediction 'a' is there twice"),
        (
            truths("a"),
            predicted("a", size=(16, 12)),
            "is of a picture of 16 x 12 .height x width., and its example of one of 12 x 16",
        ),
    ):
        with pytest.raises(InputError, match=message):
            list(pair(given, expected, missing=missing))
