"""``probe segment``: what it prints and writes, and one line for everything that is asked wrongly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import probe
from probe.lab.scenes import scene
from tests.tiny import picture


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    picture().save(path)
    return path


def _segments(printed, out):
    data = json.loads(printed)
    assert data == json.loads((out / "segments.json").read_text(encoding="utf-8"))
    for name in ("answer.png", "answer.pdf", "record.safetensors"):
        assert (out / name).stat().st_size > 1000
    assert probe.load(out / "record.safetensors").text == data["text"]
    return data


def test_a_photograph_with_a_random_model(shell, coco_mini, checkpoint, tmp_path):
    image = min((coco_mini / "images").iterdir())
    text = "a man with a red ball and two dogs on the grass"
    code, printed, noise = shell(
        "segment", image, "Describe the image.", "--model", checkpoint(), "--answer", text, "--refiner", "superpixels",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert (code, noise) == (0, "")
    data = _segments(printed, tmp_path / "out")
    assert [one["text"] for one in data["phrases"]] == ["a man", "a red ball", "two dogs", "the grass"]
    height, width = np.asarray(probe.read_image(image)).shape[:2]
    for one in data["phrases"]:
        mask = coco_mask.decode(one["mask"])
        assert mask.shape == (height, width)
        assert mask.sum() == one["area"] > 0
        assert one["chunker"].startswith(("textblob", "spacy:"))
    assert data["certificate"]["passed"]


def test_scenes_with_the_lab_model(shell, tmp_path):
    hits = []
    for index in (0, 1, 2, 4):
        example = scene(index)
        example.image.save(tmp_path / "scene.png")
        phrases = [part for one in example.phrases for part in ("--phrase", one.text)]
        code, printed, noise = shell(
            "segment", tmp_path / "scene.png", "Describe the image.", "--answer", example.caption, *phrases,
            "--out", tmp_path / "out", "--json",
        )  # fmt: skip
        assert (code, noise) == (0, "")
        found = _segments(printed, tmp_path / "out")["phrases"]
        by_place = {one["span"][0]: one["point"] for one in found}
        hits += [one.mask[tuple(by_place[one.start])] for one in example.phrases]
    assert np.mean(hits) > 0.6  # a random point hits about one in twenty


def test_scenes_with_the_lab_models_masks(shell, tmp_path):
    example = scene(1)
    example.image.save(tmp_path / "scene.png")
    phrases = [part for one in example.phrases for part in ("--phrase", one.text)]
    code, printed, noise = shell(
        "segment", tmp_path / "scene.png", "Describe the image.", "--answer", example.caption, *phrases,
        "--refiner", "lab/sam:best", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert (code, noise) == (0, "")
    data = _segments(printed, tmp_path / "out")
    assert data["refiner"] == "sam (lab/sam, best)"
    found = {one["span"][0]: one for one in data["phrases"]}
    pointed = [one for one in example.phrases if one.mask[tuple(found[one.start]["point"])]]
    assert pointed
    for one in pointed:
        mask = coco_mask.decode(found[one.start]["mask"]).astype(bool)
        assert (mask & one.mask).sum() / (mask | one.mask).sum() > 0.8


def test_people_get_a_table(shell, photo, checkpoint, tmp_path):
    argv = ["segment", photo, "What?", "--model", checkpoint(), "--answer", "a red ball and a red ball"]
    code, printed, noise = shell(*argv, "--phrase", "red ball", "--out", tmp_path / "out")
    assert (code, noise) == (0, "")
    # A phrase that is said twice has a row for each time.
    assert "2-10" in printed
    assert "17-25" in printed
    assert "answer.png" in printed


def test_an_answer_without_a_noun_phrase_is_written_and_explained(shell, photo, checkpoint, tmp_path):
    argv = ["segment", photo, "What?", "--model", checkpoint(), "--answer", "it is here", "--out", tmp_path / "out"]
    code, printed, noise = shell(*argv)
    assert (code, noise) == (0, "")
    assert "has no noun phrase" in printed
    data = json.loads((tmp_path / "out" / "segments.json").read_text(encoding="utf-8"))
    assert data["phrases"] == []
    assert "has no noun phrase" in data["note"]
    assert (tmp_path / "out" / "answer.png").exists()


def test_an_answer_of_one_token(refused, photo, checkpoint):
    message = refused("segment", photo, "What?", "--model", checkpoint(), "--max-new-tokens", 1)
    assert "is the whole answer, and a map minus its own mean is zero everywhere" in message


def test_what_cannot_be_asked_is_said_before_a_model_is_loaded(refused, photo, monkeypatch):
    monkeypatch.setattr("probe.models.load_model", None)
    assert "Did you mean 'superpixels'" in refused("segment", photo, "What?", "--refiner", "superpixel")
    assert "found 'bets'. Did you mean 'best'" in refused("segment", photo, "What?", "--refiner", "lab/sam:bets")
    assert "names no model" in refused("segment", photo, "What?", "--refiner", "sam:")
    assert "No model folder 'nowhere'" in refused("segment", photo, "What?", "--refiner", "sam:nowhere")
    assert "could not be loaded" in refused("segment", photo, "What?", "--refiner", "sam:nobody/nothing")
    assert "type 'clip', not a SAM" in refused("segment", photo, "What?", "--refiner", "sam:lab/clip")
    assert "'mean' or 'first' or 'max'" in refused("segment", photo, "What?", "--combine", "median")
    assert "Did you mean 'patch centre'" in refused("segment", photo, "What?", "--point", "patch center")


def test_a_phrase_that_is_not_in_the_answer(refused, photo, checkpoint):
    argv = ["segment", photo, "What?", "--model", checkpoint(), "--answer", "a red ball"]
    assert "Did you mean 'red ball'" in refused(*argv, "--phrase", "red bal")
