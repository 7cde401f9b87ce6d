"""Predictions are checked when they are made, and come back from their file as they were."""

from __future__ import annotations

import json
import os
from math import isnan, nan

import numpy as np
import pytest
from PIL import Image

from probe.errors import FileError, InputError
from probe.evaluation.predictions import (
    PredictedPhrase,
    Prediction,
    from_segmentation,
    read_predictions,
    write_predictions,
)
from probe.evaluation.run_lengths import encode
from probe.grounding.segment import attend_and_segment
from tests.evaluation.scored import dense, random_pairs
from tests.records import make_record

MASK = encode(np.eye(4, 6, dtype=bool))


def fields(one):
    return [
        (
            part.text,
            part.start,
            part.end,
            part.mask,
            part.point,
            None if isnan(part.score) else part.score,
            part.note,
            part.category,
        )
        for part in one.phrases
    ]


def test_what_is_written_is_read_back(tmp_path):
    given = [found for _, found in random_pairs(0, 20)]
    strange = PredictedPhrase("né\ud800\n", 0, 4, MASK, None, nan, 'a "note"', "dog")
    given.append(Prediction("x/ü", (4, 6), "né\ud800\n…", (strange,)))
    path = tmp_path / "deep" / "predictions.jsonl"
    assert write_predictions(path, iter(given)) == 21
    read = list(read_predictions(path))
    assert [(one.name, one.size, one.text, fields(one)) for one in read] == [
        (one.name, one.size, one.text, fields(one)) for one in given
    ]


def test_a_segmentation_becomes_a_prediction():
    found = attend_and_segment(make_record(), Image.new("RGB", (32, 32), "grey"), phrases=["red circle", "blue square"])
    one = from_segmentation("a", found)
    assert (one.name, one.size, one.text) == ("a", (32, 32), found.text)
    assert [(part.text, (part.start, part.end), part.point, part.note) for part in one.phrases] == [
        (part.text, part.span, part.point, part.note) for part in found.phrases
    ]
    assert (np.array(dense(one.phrases)) == found.masks).all()
    assert found.masks.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": 3}, "its text is 3; give text"),
        ({"start": 0.5}, "its characters are 0.5 to 3"),
        ({"score": float("inf")}, "its score is inf; give a finite number"),
        ({"score": "high"}, "its score is 'high'"),
        ({"mask": np.eye(4)}, "its mask has no size"),
        ({"mask": {"size": [4, 0], "counts": ""}}, "its mask has no size"),
        ({"mask": {"size": [4, 6], "counts": [23]}}, "sum to 23"),
        ({"point": (4, 0)}, r"its point is \(4, 0\); give \(row, col\) in a picture of 4 x 6"),
        ({"point": [1, 1]}, "its point is a list of 2"),
        ({"point": (1.0, 1)}, r"its point is \(1.0, 1\)"),
    ],
)
def test_phrases_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        PredictedPhrase(**({"text": "dog", "start": 0, "end": 3, "mask": MASK} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "its name and text are None and 'a dog'"),
        ({"size": (4, 5)}, "its mask is 4 x 6 .height x width., and the picture is 4 x 5"),
        ({"size": (0, 6)}, r"its size is \(0, 6\)"),
        ({"size": [4, 6]}, "its size is a list of 2"),
        ({"text": "two dogs"}, "at characters 2 to 5 the text of 8 characters says 'o d'"),
        ({"text": "a"}, "at characters 2 to 5 the text of 1 characters says ''"),
    ],
)
def test_predictions_that_cannot_be_are_refused(changes, message):
    phrase = PredictedPhrase("dog", 2, 5, MASK)
    with pytest.raises(InputError, match=message):
        Prediction(**({"name": "one", "size": (4, 6), "text": "a dog", "phrases": (phrase,)} | changes))


def line(**changes):
    phrase = {
        "text": "dog",
        "start": 2,
        "end": 5,
        "mask": MASK,
        "point": [1, 2],
        "score": 0.5,
        "note": "",
        "category": "",
    }
    return {"name": "b", "size": [4, 6], "text": "a dog", "phrases": [phrase]} | changes


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "it is a list of 1; an object is needed"),
        ('{"name": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "is nested too deeply"),
        ("\udcff", "is not UTF-8 text"),
        (line(name="a"), "prediction 'a' stands in line 1 already"),
        (line(name=3), "its 'name' is 3; it needs a name"),
        (line(size=[4]), "its size is"),
        (line(size=[6, 4]), "its mask is 4 x 6"),
        (line(phrases=[3]), "its phrase at position 0 is 3"),
        (line(phrases=[{"text": "dog"}]), "a phrase of it has no 'point'"),
        (line(phrases=[line()["phrases"][0] | {"mask": {"size": [4, 6], "counts": "0"}}]), "sum to 0"),
        (line(phrases=[line()["phrases"][0] | {"score": True}]), "its score is True"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, second, message):
    path = tmp_path / "p.jsonl"
    text = second if isinstance(second, str) else json.dumps(second)
    path.write_bytes((json.dumps(line(name="a")) + "\n" + text + "\n").encode("utf-8", "surrogateescape"))
    lines = read_predictions(path)
    assert next(lines).name == "a"
    with pytest.raises(InputError, match=f"p.jsonl', line 2.*{message}"):
        next(lines)


def test_files_that_cannot_be_read_or_written(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="cannot be read"):
        read_predictions(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="not an ordinary file"):
        read_predictions(tmp_path / "pipe")
    path = tmp_path / "p.jsonl"
    write_predictions(path, [Prediction("a", (4, 6), "")])
    before = path.read_bytes()
    with pytest.raises(InputError, match="'b' is there twice"):
        write_predictions(path, [Prediction("b", (4, 6), ""), Prediction("b", (4, 6), "")])
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["p.jsonl", "pipe"]
    monkeypatch.setattr("probe.evaluation.predictions.LONGEST_LINE", 20)
    with pytest.raises(InputError, match="line 1: it is longer than 20 bytes"):
        list(read_predictions(path))
