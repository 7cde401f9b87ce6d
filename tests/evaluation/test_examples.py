"""An example whose phrases or masks do not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase

MASK = np.ones((4, 6), bool)


def example(*phrases: ExamplePhrase, image: object = Path("a.png")) -> Example:
    return Example("one", image, "a red dog", phrases)  # type: ignore[arg-type]


def test_phrases_that_fit_are_kept() -> None:
    phrase = ExamplePhrase("red dog", 2, 9, MASK)
    assert example(phrase).phrases == (phrase,)
    assert example(phrase, image=Image.new("RGB", (6, 4))).phrases == (phrase,)
    assert example().phrases == ()


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        (ExamplePhrase("dog", 2, 5, MASK), r"example 'one', phrase 'dog': at characters 2 to 5 the text says 'red'"),
        (ExamplePhrase("dog", 6, 10, MASK), r"characters 6 to 10 are not in its text of 9 characters"),
        (ExamplePhrase("", 6, 6, MASK), r"characters 6 to 6 are not in"),
        (ExamplePhrase("dog", -3, 9, MASK), r"characters -3 to 9 are not in"),
        (ExamplePhrase("dog", 6, 9, MASK.astype(int)), r"its mask is int64 of shape \(4, 6\): give a bool array"),
        (ExamplePhrase("dog", 6, 9, MASK[0]), r"its mask is bool of shape \(6,\)"),
        (ExamplePhrase("dog", 6, 9, [[True]]), r"its mask is list"),  # type: ignore[arg-type]
        (ExamplePhrase("dog", 6, 9, MASK.T), r"its mask is 6 x 4 \(height x width\), and the picture is 4 x 6"),
    ],
)
def test_phrases_that_do_not_fit_are_named(phrase: ExamplePhrase, message: str) -> None:
    with pytest.raises(InputError, match=message):
        example(ExamplePhrase("red", 2, 5, MASK), phrase)


def test_the_picture_is_a_path_or_an_image() -> None:
    with pytest.raises(InputError, match="its image is a str"):
        example(image="a.png")
    with pytest.raises(InputError, match="and the picture is 6 x 4"):
        example(ExamplePhrase("dog", 6, 9, MASK), image=Image.new("RGB", (4, 6)))
