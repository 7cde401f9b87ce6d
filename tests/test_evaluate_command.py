"""``probe evaluate``: what it writes and prints, what an interruption costs, and one line for everything that is asked wrongly."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import probe
from probe.evaluation.grounded_conversations import GroundedConversations
from probe.evaluation.lab import read_lab
from probe.evaluation.predictions import from_segmentation, read_predictions
from probe.evaluation.similarity import WordEncoder
from probe.evaluation.tallies import score_predictions
from probe.evaluation.truths import encode_example
from probe.protocols import evaluation, maps

SCENES = 4


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR's program takes seconds to start, and says so on standard error."""
    monkeypatch.setattr("probe.evaluation.caption_scores.shutil.which", lambda name: None)


@pytest.fixture
def evaluate(shell):
    """``evaluate("gcg", out, ...)``: the numbers that were printed, of a few scenes."""

    def run(protocol, out, *more):
        code, printed, noise = shell("evaluate", protocol, "--limit", SCENES, "--out", out, *more, "--json")
        assert (code, noise) == (0, "")
        return json.loads(printed)

    return run


@pytest.fixture
def counted(monkeypatch):
    """The prompts and answers that the model was run with."""
    seen = []

    def counting(subject, image, prompt, **options):
        seen.append((prompt, options["answer"], options["query_row"]))
        return probe.run(subject, image, prompt, **options)

    monkeypatch.setattr(maps, "run", counting)
    return seen


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*given, **options):
        raise AssertionError("the model was run")

    return lambda: monkeypatch.setattr(maps, "run", refuse)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("reduction", ["all-heads", "as-first-released"])
def test_conversations_are_those_of_one_call_after_the_other(evaluate, tmp_path, reduction):
    data = evaluate("gcg", tmp_path, "--reduction", reduction, "--combine", "max", "--max-new-tokens", 12)
    subject, examples = probe.load_model("lab/llava"), list(read_lab(limit=SCENES))
    plain = []
    for one in examples:
        record = probe.run(subject, one.image, "Describe the image.", max_new_tokens=12).record
        found = probe.attend_and_segment(record, one.image, reduction=reduction, combine="max")
        plain.append(from_segmentation(one.name, found))
    kept = list(read_predictions(tmp_path / "predictions.jsonl"))
    assert [(one.name, one.text) for one in kept] == [(one.name, one.text) for one in plain]
    for one, other in zip(kept, plain, strict=True):
        for field in ("text", "start", "end", "mask", "point", "score"):
            assert [getattr(p, field) for p in one.phrases] == [getattr(p, field) for p in other.phrases], field
    scores = score_predictions(GroundedConversations(WordEncoder()), map(encode_example, examples), plain)
    for key, measure in (("recall_legacy", "recall, legacy"), ("miou", "mIoU"), ("ap50", "AP50"), ("cider", "CIDEr")):
        assert data[key]["value"] == pytest.approx(scores.value(measure)), key
    shuffled = scores.value("recall, greedy", control="shuffled")
    assert data["controls"]["recall_greedy"]["shuffled"]["value"] == pytest.approx(shuffled)
    assert data["meteor"]["value"] is None
    assert "Java" in data["meteor"]["why"]
    assert data["recall_legacy"]["value"] <= data["recall_greedy"]["value"] <= data["recall_optimal"]["value"]


def test_what_is_written_says_how_it_was_made(evaluate, tmp_path):
    data = evaluate("gcg", tmp_path)
    assert data == json.loads((tmp_path / "scores.json").read_text())
    settings = data["settings"]
    assert (settings["prompt"], settings["refiner"], settings["model"]) == (
        "Describe the image.",
        "threshold",
        "lab/llava",
    )
    assert re.fullmatch("[0-9a-f]{64}", settings["maps"]["weights"])
    rows = pd.read_parquet(tmp_path / "images.parquet")
    assert list(rows["name"]) == [f"lab {one}" for one in range(SCENES)]
    one = json.loads((tmp_path / "predictions" / "lab 0.json").read_text())
    assert set(one) == {"image_id", "caption", "phrases", "pred_masks"}
    truths = json.loads((tmp_path / "truths-masks.json").read_text())
    assert len(truths["images"]) == SCENES
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)=['"](?!data:)""", page)
    assert page.count("<article>") == SCENES


def test_missing_and_broken_maps_alone_are_made_again(evaluate, counted, tmp_path):
    evaluate("gcg", tmp_path)
    assert len(counted) == SCENES
    before = contents(tmp_path)
    (tmp_path / "maps" / "000001-0.safetensors").unlink()
    broken = tmp_path / "maps" / "000003-0.safetensors"
    damaged = bytearray(broken.read_bytes())
    damaged[-1] ^= 1
    broken.write_bytes(damaged)
    evaluate("gcg", tmp_path)
    assert len(counted) == SCENES + 2
    assert contents(tmp_path) == before


def test_a_run_that_stops_between_the_stages_goes_on_without_the_model(
    shell, evaluate, no_model, monkeypatch, tmp_path
):
    def stop(*given, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "predict_examples", stop)
        assert shell("evaluate", "gcg", "--limit", SCENES, "--out", tmp_path / "one")[0] == 130
    assert not (tmp_path / "one" / "scores.json").exists()
    whole = evaluate("gcg", tmp_path / "two")
    no_model()
    assert evaluate("gcg", tmp_path / "one") == whole
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_shards_are_one_run(shell, evaluate, counted, tmp_path):
    argv = ("evaluate", "res", "--limit", SCENES, "--out", tmp_path / "parts", "--json")
    code, printed, _ = shell(*argv, "--shard", "1/2")
    first = json.loads(printed)
    own = len(counted)
    assert (code, first["scored"], first["missing"]) == (0, False, first["maps"] - own)
    assert shell(*argv, "--shard", "0/2")[0] == 0
    assert len(counted) == first["maps"]
    evaluate("res", tmp_path / "whole")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_of_several_processes_the_first_scores(shell, monkeypatch, tmp_path):
    argv = ("evaluate", "png", "--limit", 3, "--out", tmp_path, "--json")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(evaluation, "PATIENCE", 0.0)
    monkeypatch.setenv("RANK", "0")
    code, printed, _ = shell(*argv)
    assert (code, json.loads(printed)["missing"]) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    assert shell(*argv) == (0, "", "")
    assert not (tmp_path / "scores.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert json.loads(shell(*argv)[1])["average_recall"]["value"] > 0
    assert "divide the examples" in shell(*argv, "--shard", "0/2")[2]


def test_read_outs_are_tabulated_from_one_pass(evaluate, no_model, tmp_path):
    single = evaluate("png", tmp_path, "--refiner", "superpixels", "--combine", "first")
    no_model()
    found = evaluate("png", tmp_path, "--vary", "combine=mean,first,max", "refiner=threshold,superpixels")["read_outs"]
    assert [(one["combine"], one["refiner"]) for one in found] == [
        (combine, refiner) for combine in ("mean", "first", "max") for refiner in ("threshold", "superpixels")
    ]
    assert found[3]["average_recall"] == single["average_recall"]
    assert len({one["average_recall"]["value"] for one in found}) > 3
    frame = pd.read_parquet(tmp_path / "read-outs.parquet")
    same = frame[(frame["combine"] == "first") & (frame["refiner"] == "superpixels") & (frame["control"] == "")]
    assert same.set_index("measure")["value"]["average recall"] == single["average_recall"]["value"]


def test_an_option_without_effect_is_named(evaluate, tmp_path):
    found = evaluate("gcg", tmp_path, "--vary", "combine=mean,max", "refiner=threshold,superpixels")
    assert [one for one in found["notes"] if "changes no score" in one] == [
        "combine changes no score here: a phrase is read at its head noun, whose tokens are what is combined"
    ]
    found = evaluate("png", tmp_path / "png", "--vary", "combine=mean,max")
    assert not [one for one in found["notes"] if "changes no score" in one]


def test_maps_of_another_question_are_refused(shell, evaluate, checkpoint, tmp_path):
    evaluate("gcg", tmp_path)
    before = contents(tmp_path)
    for option, value, said in (
        ("--prompt", "What is there?", "question 'Describe the image.' and not 'What is there?'"),
        ("--max-new-tokens", 9, "max_new_tokens 256 and not 9"),
        ("--model", checkpoint(), "weights"),
        ("--dtype", "float64", "dtype 'torch.float32' and not 'torch.float64'"),
        ("--seed", 1, "picture"),
    ):
        code, printed, noise = shell("evaluate", "gcg", "--limit", SCENES, "--out", tmp_path, option, value)
        assert (code, printed) == (2, "")
        assert said in noise, noise
        assert "give another --out" in noise
    assert contents(tmp_path) == before


def test_each_protocol_asks_in_its_own_way(evaluate, counted, tmp_path):
    points = evaluate("pacc", tmp_path / "pacc")
    assert {"pacc", "pacc_silence_a_miss", "ap", "controls"} <= set(points)
    assert set(counted) == {("Describe the image.", None, "predicting")}
    results = json.loads((tmp_path / "pacc" / "results.json").read_text())
    assert all(len(one["point"]) == 2 for one in results)
    counted.clear()
    narratives = evaluate("png", tmp_path / "png")
    assert counted == [("Describe the image.", one.text, "own") for one in read_lab(limit=SCENES)]
    assert narratives["average_recall_stuff"]["value"] is None
    assert "no phrase" in narratives["average_recall_stuff"]["why"]
    counted.clear()
    expressions = evaluate("res", tmp_path / "res")
    asked = [f"a {part.text}" for one in read_lab(limit=SCENES) for part in one.phrases]
    assert [answer for _, answer, _ in counted] == asked
    assert set(expressions["precision"]) == {"0.5", "0.6", "0.7", "0.8", "0.9"}
    counted.clear()
    answers = evaluate("res", tmp_path / "answers", "--expressions", "answer")
    assert counted[0][:2] == (f'Describe the "{asked[0][2:]}" in the image.', None)
    # A lab model says no verb, so that each expression is a miss that says why.
    assert answers["giou"]["value"] == 0
    kept = next(read_predictions(tmp_path / "answers" / "predictions.jsonl"))
    assert "no token after is, are or be" in kept.phrases[0].note


@pytest.fixture
def folder(tmp_path):
    """Three photographs with one mask each, and captions that are markup."""
    root = tmp_path / "data"
    for number in range(3):
        (root / "masks" / f"p{number}").mkdir(parents=True)
        level = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(level).save(root / f"p{number}.png")
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[5:20, 8:30] = 255
        Image.fromarray(mask).save(root / "masks" / f"p{number}" / "red ball.png")
        (root / f"p{number}.txt").write_text("a <b onload=x>red ball</b> & 'more'")
    return root


def test_pictures_that_fail_are_rows_with_their_reasons_and_misses(shell, evaluate, no_model, tmp_path):
    root = tmp_path / "data"
    assert shell("lab", "scenes", "--format", "refcoco", "--count", 4, "--out", root)[0] == 0
    argv = ("--data", f"refcoco:{root}", "--limit", 99)
    whole = evaluate("res", tmp_path / "whole", *argv)
    cut, other, pipe, _ = sorted((root / "images").iterdir())
    Image.open(cut).save(cut, format="JPEG")
    cut.write_bytes(cut.read_bytes()[:-200])  # its header says all that a reader asks
    other.write_bytes(b"no picture")
    pipe.unlink()
    os.mkfifo(pipe)
    data = evaluate("res", tmp_path / "out", *argv)
    rows = pd.read_parquet(tmp_path / "out" / "images.parquet").set_index("name")
    failed = list(data["failed"])
    assert 0 < len(failed) < len(rows) == whole["examples"]
    assert rows.loc[failed, "predicted"].tolist() == [0] * len(failed)
    assert rows.loc[failed, "iou"].tolist() == [0.0] * len(failed)
    spoilt = [name for name in rows.index if name.split("-")[0] in {one.stem for one in (cut, other, pipe)}]
    assert failed == spoilt
    assert all(f"{name.split('-')[0]}.png" in rows.loc[name, "note"] for name in failed)
    assert data["giou"]["value"] == pytest.approx(rows["iou"].mean())
    assert data["giou"]["value"] < whole["giou"]["value"]
    assert data["images"] == 4  # several expressions share a picture
    no_model()
    assert evaluate("res", tmp_path / "out", *argv)["giou"] == data["giou"]


def test_markup_in_captions_stays_text(evaluate, checkpoint, folder, tmp_path):
    evaluate("png", tmp_path / "out", "--data", folder, "--model", checkpoint())
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<b onload" not in page
    assert "&lt;b onload=x&gt;" in page


def test_a_model_without_training_gives_chance_and_says_so(evaluate, checkpoint, coco_mini, tmp_path):
    data = evaluate("png", tmp_path, "--data", coco_mini, "--limit", 25, "--model", checkpoint())
    main = [one for one in data["notes"] if one.startswith("average recall is not above chance")]
    assert main
    assert all(re.search(r"with '(shuffled|other phrase|centre box)' \(difference", one) for one in main)
    control = data["controls"]["average_recall"]["shuffled"]
    assert control["difference_low"] <= 0 <= control["difference_high"] or control["difference"] < 0.05


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ("gcg", "--vary", "colour=red"),
            "--vary takes NAME=VALUE,VALUE with a name of combine, reduction, point, refiner",
        ),
        (("gcg", "--vary", "combine=mean,last"), "combine must be one of 'mean', 'first', 'max', found 'last'"),
        (("gcg", "--vary", "refiner=sharp"), "There is no refiner 'sharp'"),
        (("gcg", "--vary", "point=bicubic", "point=bicubic"), "--vary names point twice"),
        (("gcg", "--similarity", "meaning"), "There is no similarity 'meaning'"),
        (("gcg", "--similarity", "bert:nowhere"), "The text encoder 'nowhere' cannot be loaded"),
        (("gcg", "--chunker", "spacy:en_core_web_xx"), "spacy:en_core_web_xx"),
        (("res", "--shard", "2/2"), "--shard takes i/n with i from 0 to n - 1"),
        (("png", "--limit", "0"), "--limit must be 1 or more, found 0"),
        (("png", "--data", "nowhere"), "nowhere"),
        (("pacc", "--model", "lab/clip"), "'lab/clip' answers nothing"),
        (("pacc", "--category", "best"), "--category takes 'named' or 'similar', found 'best'"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(refused, no_model, argv, said):
    no_model()
    assert said in refused("evaluate", *argv)


def test_people_see_a_table(shell, tmp_path):
    code, printed, _ = shell("evaluate", "pacc", "--limit", 3, "--out", tmp_path)
    assert code == 0
    for word in ("PAcc", "other phrase", "paired difference", "index.html"):
        assert word in printed
