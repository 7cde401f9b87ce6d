"""``probe record``: what it draws where no phrase is asked for, and what it says where nothing can be drawn."""

from __future__ import annotations

import json

import pytest

import probe
from tests.tiny import picture


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    picture().save(path)
    return path


def test_without_a_phrase_the_noun_phrases_are_drawn(shell, photo, tmp_path, monkeypatch):
    import probe.plots

    drawn, real = [], probe.plots.phrases
    monkeypatch.setattr(
        "probe.plots.phrases", lambda record, wanted, image: drawn.extend(wanted) or real(record, wanted, image)
    )
    argv = ["record", photo, "Hi", "--out", tmp_path / "out", "--answer"]
    assert shell(*argv, "it shows a red circle and a circle left of a red circle")[0] == 0
    assert drawn == [("a red circle", 0), ("a circle", 0), ("a red circle", 1)]
    drawn.clear()
    code, printed, _ = shell(*argv, " and ".join(["a circle"] * 11))
    assert (code, len(drawn), "the first 8 of 11 noun phrases" in printed) == (0, 8, True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--answer", "it is here"], "has no noun phrase"), (["--max-new-tokens", 1], "the answer has one token")],
)
def test_where_nothing_can_be_drawn_the_record_is_written_and_why_is_said(shell, photo, tmp_path, options, reason):
    code, printed, noise = shell("record", photo, "Hi", *options, "--out", tmp_path / "out")
    assert (code, noise) == (0, "")
    assert "no picture" in printed
    assert reason in " ".join(printed.split())
    data = json.loads((tmp_path / "out" / "record.json").read_text(encoding="utf-8"))
    assert (data["figures"], reason in data["note"]) == ([], True)
    assert probe.load(tmp_path / "out" / "record.safetensors").text == data["text"]


def test_a_phrase_of_a_one_token_answer_is_refused_before_anything_is_written(refused, photo):
    message = refused("record", photo, "Hi", "--max-new-tokens", 1, "--phrase", "a")
    assert "is the whole answer, and a map minus its own mean is zero everywhere" in message


def test_a_prompt_of_one_phrase_is_drawn_as_recorded(shell, tmp_path):
    picture(64, 64).save(tmp_path / "photo.png")
    argv = (
        "record",
        tmp_path / "photo.png",
        "a red circle",
        "--model",
        "lab/diffusion",
        "--out",
        tmp_path / "out",
        "--json",
    )
    code, printed, _ = shell(*argv)
    data = json.loads(printed)
    assert code == 0
    assert "maps are drawn as recorded" in data["note"]
    assert len(data["figures"]) == 2
