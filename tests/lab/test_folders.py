"""Scenes written in any format are read back with their own pictures, phrases and masks, bit for bit."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from probe.errors import InputError
from probe.evaluation.examples import Example
from probe.evaluation.sources import read_data
from probe.lab.folders import write_folder
from probe.lab.scenes import Scene, SceneSettings, scene, scenes

SETTINGS = SceneSettings(size=64, occlusion=True, relations=True)
DRAWN = list(scenes(5, start=30, settings=SETTINGS))


def written(tmp_path: Path, format: str) -> list[Example]:
    """The scenes, written in this format and read again without a word about the format."""
    folder = write_folder(tmp_path / "set", DRAWN, format=format)  # type: ignore[arg-type]
    return list(read_data(folder)[0])


def check(example: Example, drawn: Scene) -> None:
    """The example has the scene's picture, caption, phrases and masks."""
    assert isinstance(example.image, Path)
    with Image.open(example.image) as image:
        assert np.array_equal(np.asarray(image), np.asarray(drawn.image))
    assert example.text == drawn.caption
    assert [(one.text, one.start, one.end) for one in example.phrases] == [
        (one.text, one.start, one.end) for one in drawn.phrases
    ]
    for found, phrase in zip(example.phrases, drawn.phrases, strict=True):
        assert np.array_equal(found.mask, phrase.mask)


@pytest.mark.parametrize("format", ["coco", "grandf", "png"])
def test_captions_with_phrases_come_back(tmp_path: Path, format: str) -> None:
    read = written(tmp_path, format)
    assert len(read) == len(DRAWN)
    for example, drawn in zip(read, DRAWN, strict=True):
        check(example, drawn)
        if format != "grandf":  # which has no classes
            assert [one.category for one in example.phrases] == [item.shape for item in drawn.objects]
            assert {one.thing for one in example.phrases} == {True}
        if format == "png":
            assert {one.plural for one in example.phrases} == {False}


def test_expressions_come_back(tmp_path: Path) -> None:
    expected = [
        (phrase.text, phrase.mask.tolist(), item.shape)
        for drawn in DRAWN
        for phrase, item in zip(drawn.phrases, drawn.objects, strict=True)
    ]
    read = written(tmp_path, "refcoco")
    for example in read:
        assert example.text == example.phrases[0].text
    found = [(one.text, one.phrases[0].mask.tolist(), one.phrases[0].category) for one in read]
    assert found == expected
    assert len({example.name for example in read}) == len(read)


def test_an_expression_refers_to_one_object(tmp_path: Path) -> None:
    one = DRAWN[0]
    first, second, *others = one.objects
    twin = Scene(
        one.index,
        one.image,
        one.caption,
        (first, first, *others),
        tuple(
            type(phrase)(one.phrases[0].text if number < 2 else phrase.text, phrase.start, phrase.end, phrase.mask)
            for number, phrase in enumerate(one.phrases)
        ),
    )
    assert second.name != first.name
    cut = Scene(0, one.image, "", twin.objects[:2], twin.phrases[:2])
    with pytest.raises(InputError, match="In no scene has an object a phrase that no other has"):
        write_folder(tmp_path / "none", [cut], format="refcoco")
    read = list(read_data(write_folder(tmp_path / "some", [twin, DRAWN[1]], format="refcoco"))[0])
    assert [example.text for example in read] == [
        *(item.name for item in others),
        *(item.name for item in DRAWN[1].objects),
    ]


def test_panoptic_maps_come_back_by_shape(tmp_path: Path) -> None:
    for example, drawn in zip(written(tmp_path, "panoptic"), DRAWN, strict=True):
        expected: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((64, 64), bool))
        for phrase, item in zip(drawn.phrases, drawn.objects, strict=True):
            expected[item.shape] |= phrase.mask
        assert {one.category for one in example.phrases} == set(expected)
        for one in example.phrases:
            assert np.array_equal(one.mask, expected[one.category])


def test_the_pair_of_tables_is_what_glamm_loads(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", DRAWN, format="grandf") / "annotations" / "val_test"
    masks, captions = (COCO(str(folder / f"test_gcg_coco_{kind}_gt.json")) for kind in ("mask", "caption"))
    for drawn in DRAWN:
        name = f"{drawn.index:06d}"
        rows = [row for row in masks.anns.values() if row["image_id"] == name]
        (caption,) = (row for row in captions.anns.values() if row["image_id"] == name)
        assert caption["labels"] == [phrase.text for phrase in drawn.phrases]
        for row, phrase in zip(rows, drawn.phrases, strict=True):
            assert np.array_equal(masks.annToMask(row).astype(bool), phrase.mask)


def test_narratives_are_written_as_published(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", DRAWN[:1], format="png")
    (narrative,) = json.loads((folder / "annotations" / "png_coco_test.json").read_text())
    assert narrative["image_id"] == str(DRAWN[0].index)
    assert " ".join(one["utterance"] for one in narrative["segments"]).replace(" ,", ",") == narrative["caption"]
    named = [one["utterance"] for one in narrative["segments"] if one["noun"]]
    assert named == [phrase.text for phrase in DRAWN[0].phrases]
    assert all(type(one) is str for part in narrative["segments"] for one in part["segment_ids"])


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no format 'grand' of scenes; there are coco, .*Did you mean 'grandf'"):
        write_folder(tmp_path / "set", DRAWN, format="grand")  # type: ignore[arg-type]
    far = scene(2**21, settings=SETTINGS)
    for format in ("panoptic", "png"):
        with pytest.raises(InputError, match="which a panoptic map cannot hold"):
            write_folder(tmp_path / "set", [far], format=format)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    assert [one.name for one in read_data(write_folder(tmp_path / "set", [far]))[0]] == [f"{2**21}-{2**21}"]
