"""What a view is told: words and their tokens, phrases, geometry; and what is refused before anything is drawn."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError
from probe.plots.overlays import see_through
from probe.widgets import contents as contents_module
from probe.widgets.contents import contents_of, gather, picture_number
from tests.records import make_record
from tests.widgets.made import HOSTILE, disc, hostile_record, padded_grid, picture, ragged_record


@pytest.fixture
def record():
    return make_record(grid=padded_grid())


def told(*given, **options):
    contents = contents_of(gather(*given, **options))
    return json.loads(json.dumps(contents, allow_nan=False))


def test_words_carry_the_tokens_that_spell_them(record):
    [found] = told(record)["records"]
    assert [one["text"] for one in found["words"]] == ["a", "red", "circle", "and", "a", "blue", "square"]
    assert [one["tokens"] for one in found["words"]] == [[i] for i in range(7)]
    assert found["unplaced"] == [7]  # the end token
    assert found["tokens"][7] == "</s>"
    assert all(found["text"][one["start"] : one["end"]] == one["text"] for one in found["words"])


def test_phrases_with_masks_come_instead_of_the_noun_phrases_that_they_overlap(record):
    contents = told(record, masks={"red circle": disc()})
    [found] = contents["records"]
    assert [(one["text"], one["tokens"], one["mask"]) for one in found["phrases"]] == [
        ("red circle", [1, 2], 0), ("a blue square", [4, 5, 6], None),
    ]  # fmt: skip
    assert contents["start"] == {"tokens": [1, 2]}
    assert told(record)["start"] == {"tokens": [0, 1, 2]}
    assert told(record["blue square"])["start"] == {"tokens": [0, 1]}


def test_grids_are_those_of_the_record(record):
    [view] = told(record)["records"][0]["views"]
    assert (view["size"], view["picture"], view["overall"]) == ([40, 64], 0, 0)
    [grid] = view["grids"]
    own = record.layers[0].grid
    share = np.outer(np.array(grid["rows"])[:, 2], np.array(grid["cols"])[:, 2])
    np.testing.assert_allclose(share, own.weight, atol=1e-12)
    boxes = np.array([[[row[0], col[0], row[1], col[1]] for col in grid["cols"]] for row in grid["rows"]])
    np.testing.assert_array_equal(boxes, own.boxes)
    ragged = told(ragged_record())["records"][0]["views"][0]
    assert [one["grid"] for one in ragged["layers"]] == [0, 1]
    assert [len(one["heads"]) for one in ragged["layers"]] == [2, 3]
    assert (ragged["timesteps"], ragged["overall"]) == ([900, 500, 100], 0)


def test_the_picture_is_the_one_that_was_recorded(record):
    [found] = told(record, image=picture())["images"]
    data = Image.open(io.BytesIO(base64.b64decode(found["source"].partition(",")[2])))
    assert np.array_equal(np.asarray(data), picture())  # small ones lose nothing
    assert found["sharp"]
    assert told(record)["images"] == []
    run = SimpleNamespace(record=record, image=Image.fromarray(picture()), text="", prompt="")
    assert told(run)["images"] == [found]
    with pytest.raises(InputError, match=r"The image is 64 x 40 but the record was made of one of 40 x 64"):
        gather(record, image=picture((64, 40)))


def test_views_of_other_images_have_their_own(record):
    other = replace(record.layers[0], view="image 1", grid=padded_grid((64, 40)))
    both = replace(record, layers=(*record.layers, other))
    found = told(both, image=[picture(), picture((64, 40))])
    assert [(one["picture"], one["masks"]) for one in found["records"][0]["views"]] == [(0, True), (1, False)]
    with pytest.raises(InputError, match="The image is 40 x 64 but the record was made of one of 64 x 40"):
        gather(both, image=[picture(), picture()])
    with pytest.raises(InputError, match="Image 1 was given, but the records are of 1"):
        gather(record, image=[picture(), picture()])
    names = ["image 0", "image 12", "thumbnail", "thumbnail 1", "tile 2"]
    assert [picture_number(one) for one in names] == [0, 12, 0, 1, None]


def test_colours_are_those_of_the_figures():
    table = np.frombuffer(base64.b64decode(contents_module._colours()["light"]), dtype=np.uint8).reshape(256, 4)
    np.testing.assert_array_equal(table, np.rint(see_through(False)(np.linspace(0, 1, 256)) * 255))
    dark = np.frombuffer(base64.b64decode(contents_module._colours()["dark"]), dtype=np.uint8).reshape(256, 4)
    assert np.array_equal(dark[:, 3], table[:, 3])
    # On dark ground more is brighter, on light ground darker, all the way.
    assert (np.diff(dark[:, :3].sum(1).astype(int)) >= 0).all()
    assert (np.diff(table[:, :3].sum(1).astype(int)) <= 0).all()


def test_what_is_shown_is_said(record):
    facts = dict(told(record)["records"][0]["facts"])
    assert facts["quantity"] == "attention of each generated token, from the row that predicts it"
    assert facts["softmax over"].startswith("the whole sequence")
    assert facts["certificate"].startswith("passed, largest error 1.0e-07")
    assert "ablation" not in facts
    taken = replace(
        record, source=replace(record.source, ablation="zero: (1, 4)"), softmax_over="tokens", query_row="own"
    )
    facts = dict(told(taken.minus_mean())["records"][0]["facts"])
    assert facts["ablation"] == "zero: (1, 4)"
    assert facts["already reduced"] == "minus mean"
    assert facts["softmax over"].startswith("words")
    assert facts["quantity"].endswith("from its own row")


def test_hostile_words_are_strings_as_they_were():
    [found] = told(hostile_record())["records"]
    assert found["text"] == " ".join(HOSTILE)
    assert "".join(one["text"] for one in found["words"]) == "".join(found["text"].split())


def test_very_many_words_and_tokens_are_cut_and_counted(monkeypatch):
    monkeypatch.setattr(contents_module, "MOST_WORDS", 3)
    monkeypatch.setattr(contents_module, "MOST_TOKENS", 0)
    [found] = told(make_record())["records"]
    assert (len(found["words"]), len(found["unplaced"]), found["hidden"]) == (3, 0, [4, 1])


def test_a_phrase_that_one_of_several_records_does_not_say(record):
    other = make_record(grid=padded_grid(), text="a dog and a blue square")
    contents = told(
        [record, other], masks={"red circle": disc(), "blue square": disc(centre=(30, 50))}, labels=["x", "y"]
    )
    masked = [[one["text"] for one in found["phrases"] if one["mask"] is not None] for found in contents["records"]]
    assert masked == [["red circle", "blue square"], ["blue square"]]
    assert [one["label"] for one in contents["records"]] == ["x", "y"]
    with pytest.raises(InputError, match="'cat' is not in the text"):
        gather([record, other], masks={"cat": disc()})


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "No record was given"),
        ("record.safetensors", {}, "Record 0 is a str, not an AttentionRecord"),
        (
            [make_record(), make_record(grid=padded_grid())],
            {},
            "Record 1 is of an image of 40 x 64 and record 0 of one of 32 x 32",
        ),
        ([make_record()] * 2, {"labels": ["one"]}, "2 records need as many labels, found 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(given, options, message):
    with pytest.raises(InputError, match=message):
        gather(given, **options)
