"""CIDEr and METEOR by pycocoevalcap, and the reasons where they are not to be had."""

from __future__ import annotations

import importlib.util
import shutil
from math import isnan

import pytest

from probe.errors import InputError
from probe.evaluation import caption_scores
from probe.evaluation.caption_scores import score_captions
from probe.evaluation.grounded_conversations import GroundedConversations
from probe.evaluation.similarity import WordEncoder
from probe.evaluation.tallies import score_predictions
from tests.evaluation.scored import random_pairs

TEXTS = ["A red circle, and a blue square.", "", "two dogs on grass.\r\nThey sleep", "a\u2028cat | ||| -"]
REFERENCES = [
    ["a red circle and a blue square"],
    ["a cat"],
    ["two dogs", "two dogs on the grass they sleep"],
    ["a cat"],
]

installed = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None,
    reason="pycocoevalcap is not installed: pip install 'groundprobe[eval]'",
)
java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed, which METEOR needs")


@installed
@java
def test_published_scorers_give_the_same():
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor

    found = score_captions(TEXTS, REFERENCES)
    assert found.tokeniser == "Stanford PTB"
    assert not found.unavailable
    words = {0: ["a red circle and a blue square"], 1: [""], 2: ["two dogs on grass they sleep"], 3: ["a cat"]}
    for name, scorer in (("METEOR", Meteor()), ("CIDEr", Cider())):
        overall, each = scorer.compute_score(dict(enumerate(REFERENCES)), words)
        assert found.overall[name] == pytest.approx(overall, abs=1e-9)
        assert found.each[name] == pytest.approx(each, abs=1e-9)
    assert found.each["METEOR"][0] == 1
    assert found.each["METEOR"][1] == found.each["CIDEr"][1] == 0


@installed
def test_without_java_cider_is_there_and_meteor_says_why(monkeypatch):
    monkeypatch.setattr(caption_scores.shutil, "which", lambda name: None)
    found = score_captions(TEXTS, REFERENCES)
    assert found.tokeniser == "plain words"
    assert found.unavailable == {"METEOR": "Java is not installed, or not on the PATH"}
    assert list(found.overall) == ["CIDEr"]
    assert found.each["CIDEr"][0] > found.each["CIDEr"][2] > found.each["CIDEr"][1] == 0


@installed
def test_a_java_that_fails_is_no_crash_and_no_hang(monkeypatch, tmp_path):
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = score_captions(TEXTS, REFERENCES)
    assert list(found.overall) == ["CIDEr"]
    assert "the Stanford tokeniser failed" in found.unavailable["METEOR"]
    with pytest.raises((OSError, ValueError)):
        caption_scores._meteor(["a"], [["a"]])


def test_without_the_library_everything_else_runs(monkeypatch):
    monkeypatch.setattr(caption_scores.importlib.util, "find_spec", lambda name: None)
    truths, predictions = zip(*random_pairs(0, 5), strict=True)
    scores = score_predictions(GroundedConversations(WordEncoder()), truths, predictions)
    assert [one.split(" is ")[0] for one in scores.notes if "groundprobe[eval]" in one] == ["METEOR", "CIDEr"]
    assert not isnan(scores.value("mIoU"))
    assert "METEOR" not in set(scores.summary["measure"])


@installed
def test_texts_stand_in_the_tables(monkeypatch):
    monkeypatch.setattr(caption_scores.shutil, "which", lambda name: None)
    truths, predictions = zip(*random_pairs(0, 12), strict=True)
    scores = score_predictions(GroundedConversations(WordEncoder()), truths, predictions)
    assert scores.settings["words of METEOR and CIDEr"] == "plain words"
    row = scores.summary.set_index("measure").loc["CIDEr"]
    assert row["value"] == pytest.approx(scores.images["CIDEr"].mean())
    assert row["low"] < row["value"] < row["high"]


def test_texts_without_references_are_refused():
    with pytest.raises(InputError, match="There are 1 texts and 1 lists of references, 1 of them empty"):
        score_captions(["a"], [[]])
    with pytest.raises(InputError, match="There are 1 texts and 0 lists"):
        score_captions(["a"], [])
