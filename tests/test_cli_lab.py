"""`probe lab` and data sets through the shell: scenes written and read back, and a training that stops and goes on."""

from __future__ import annotations

import csv
import functools
import json

import numpy as np
import pandas as pd
import pytest

import probe
from probe import training_tables, twin_comparisons
from probe.evaluation.coco import read_coco_folder
from probe.evaluation.lab import read_lab
from probe.grounding.prompted import score_prompts
from probe.grounding.sam import SamRefiner
from probe.lab import autoencoding, contrastive, denoising, features, segmenting, training, twins
from probe.lab.arms import ARMS, TwinSettings
from probe.lab.storage import TWINS


@pytest.fixture
def scene_folder(shell, tmp_path):
    folder = tmp_path / "scenes"
    code, _, noise = shell("lab", "scenes", "--out", folder, "--count", 3, "--seed", 5)
    assert (code, noise) == (0, "")
    return folder


def test_written_scenes_are_read_back_with_the_same_phrases_and_masks(shell, scene_folder):
    drawn, read = list(read_lab(limit=3, seed=5)), list(read_coco_folder(scene_folder))
    assert len(read) == 3
    for first, second in zip(drawn, read, strict=True):
        assert first.text == second.text
        assert [(one.text, one.start, one.end) for one in first.phrases] == [
            (one.text, one.start, one.end) for one in second.phrases
        ]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(first.phrases, second.phrases, strict=True))
    from_folder = json.loads(shell("score", "--data", scene_folder, "--metric", "auroc", "--json")[1])
    from_lab = json.loads(shell("score", "--limit", 3, "--seed", 5, "--metric", "auroc", "--json")[1])
    assert from_folder["auroc"]["mean_map"]["value"] == from_lab["auroc"]["mean_map"]["value"]
    head = from_folder["auroc"]["heads"][-1]
    for row in (head, from_folder["auroc"]["layers"][0], from_folder["auroc"]["minus_mean"]):
        for name in ("top1_share", "border_share", "sink_share"):
            assert 0 <= row[name]["low"] <= row[name]["value"] <= row[name]["high"] <= 1
    assert "border_share" not in from_folder["auroc"]["chance"]
    table = shell("score", "--data", scene_folder, "--metric", "auroc")[1].split("where the scored maps peak")[1]
    shown = next(line for line in table.splitlines() if line.strip().startswith("minus_mean"))
    assert shown.count("[") == 3
    assert f"{from_folder['auroc']['minus_mean']['top1_share']['value']:.3f} [" in shown
    # The bootstrap draws images by the seed, which differs.
    assert from_folder["phrases"] == from_lab["phrases"]


@pytest.mark.parametrize("format", ["grandf", "png", "refcoco", "panoptic"])
def test_scenes_in_published_formats_are_scored(shell, refused, tmp_path, format):
    folder = tmp_path / format
    code, printed, noise = shell("lab", "scenes", "--out", folder, "--count", 2, "--format", format, "--json")
    assert (code, noise) == (0, "")
    assert json.loads(printed)["format"] == format
    score = ("score", "--metric", "auroc", "--json")
    found = json.loads(shell(*score, "--data", f"{format}:{folder}")[1])
    if format in ("grandf", "png"):  # whose captions and phrases are the scenes' own
        assert (
            found["auroc"]["mean_map"]["value"]
            == json.loads(shell(*score, "--limit", 2)[1])["auroc"]["mean_map"]["value"]
        )
    if format == "refcoco":
        assert found["phrases"] == sum(len(one.phrases) for one in read_lab(limit=2))
    if format != "panoptic":
        split = "refcoco/testB" if format == "refcoco" else f"{format}/val"
        assert "it has 'test'" in refused("score", "--data", f"{split}:{folder}")


def test_a_mask_of_another_size(refused, scene_folder):
    path = scene_folder / "instances.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table["annotations"][0]["segmentation"]["size"] = [100, 200]
    path.write_text(json.dumps(table), encoding="utf-8")
    message = refused("score", "--data", scene_folder)
    assert "[100, 200]" in message
    assert "[256, 256]" in message
    assert "instances.json" in message


def test_a_folder_that_is_no_data_set(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "instances.json" in refused("score", "--data", tmp_path / "empty")
    assert "no such folder" in refused("score", "--data", tmp_path / "nowhere")


def test_scenes_never_replace_what_is_there(shell, scene_folder):
    before = sorted(one.name for one in scene_folder.rglob("*"))
    code, _, noise = shell("lab", "scenes", "--out", scene_folder, "--count", 1)
    assert code == 2
    assert "exists already" in noise
    assert sorted(one.name for one in scene_folder.rglob("*")) == before


@pytest.fixture
def quick_training(monkeypatch):
    """`train_llava` with batches of 4 and a checkpoint at every step."""
    quick = functools.partial(training.train_llava, batch_size=4, save_every=1)
    monkeypatch.setattr(training, "train_llava", quick)
    return quick


def _table(folder):
    with (folder / "training.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


TRAIN = ("lab", "train", "llava", "--steps", 3, "--measure", 4)


def test_a_training_is_measured_and_leaves_a_model_that_the_other_commands_take(shell, quick_training, tmp_path):
    code, printed, noise = shell(*TRAIN, "--out", tmp_path / "model", "--json")
    assert (code, noise, printed.count("\n")) == (0, "", 1)
    rows = json.loads(printed)["rows"]
    assert [one["step"] for one in rows] == [0, 3]
    for row in rows:
        assert 1 < row["caption_loss_low"] <= row["caption_loss"] <= row["caption_loss_high"] < 7
        assert 0 <= row["chance_low"] <= row["chance"] <= row["chance_high"] <= 1
        assert row["floor"] == pytest.approx(row["other_phrase"] + row["paraphrase"])
        assert {"mean_map", "minus_mean", "best_head_held_out", "margin_low", "border_share", "sink_share"} <= set(row)
        assert (row["images"], row["phrases"]) == (4, sum(len(one.phrases) for one in read_lab(limit=4)))
    kept = _table(tmp_path / "model")
    assert [int(one["step"]) for one in kept] == [0, 3]
    assert [float(one["caption_loss"]) for one in kept] == [one["caption_loss"] for one in rows]
    assert probe.load_model(tmp_path / "model").family.name == "llava"
    # The same command again does nothing but say it once more, as a table.
    before = {one: one.stat().st_mtime_ns for one in (tmp_path / "model").rglob("*")}
    code, table, noise = shell(*TRAIN, "--out", tmp_path / "model")
    assert (code, noise) == (0, "")
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "model").rglob("*")} == before
    for words, name in (("caption loss", "caption_loss"), ("paraphrase floor", "floor"), ("minus mean", "minus_mean")):
        assert words in table
        assert f"{rows[1][name]:.3f} [" in table
    # Another training is not mixed into it.
    code, _, noise = shell("lab", "train", "llava", "--steps", 4, "--measure", 4, "--out", tmp_path / "model")
    assert (code, noise.count("\n")) == (2, 1)
    assert "holds a run with steps=3" in noise


def test_measuring_changes_no_weight(shell, quick_training, tmp_path):
    assert shell(*TRAIN, "--out", tmp_path / "measured")[0] == 0
    quick_training(tmp_path / "plain", steps=3)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("measured", "plain")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss,minus_mean\n0,6.0,0.1\n", "is no table of these measurements: it has no column 'images'"),
        ("", "is no table of these measurements"),
        ("four", "holds measurements on 4 images, which cannot stand beside those on 5"),
        ("cut", "cannot be read as a table of measurements"),
    ],
)
def test_a_table_that_is_no_such_table_is_refused_before_any_step(refused, quick_training, tmp_path, text, message):
    row = {one: "4" if one in ("images", "phrases") else "0" for one in training_tables._COLUMNS}
    if text in ("four", "cut"):
        row |= {} if text == "four" else {"margin": "much"}
        text = ",".join(row) + "\n" + ",".join(row.values()) + "\n"
    (tmp_path / "training.csv").write_text(text, encoding="utf-8")
    assert message in refused("lab", "train", "llava", "--steps", 3, "--measure", 5, "--out", tmp_path, writes=False)
    assert [one.name for one in tmp_path.iterdir()] == ["training.csv"]


def test_a_training_that_was_stopped_goes_on_to_the_same_end(shell, quick_training, monkeypatch, tmp_path):
    assert shell(*TRAIN, "--out", tmp_path / "whole")[0] == 0

    def stopped(*args, on_step, **options):
        def stop(step, loss):
            on_step(step, loss)
            if step == 3:
                raise KeyboardInterrupt

        return quick_training(*args, on_step=stop, **options)

    monkeypatch.setattr(training, "train_llava", stopped)
    assert shell(*TRAIN, "--out", tmp_path / "broken") == (130, "", "probe: interrupted\n")
    assert [one["step"] for one in _table(tmp_path / "broken")] == ["0"]
    monkeypatch.setattr(training, "train_llava", quick_training)
    code, _, noise = shell(*TRAIN, "--out", tmp_path / "broken")
    assert (code, noise) == (0, "")
    assert _table(tmp_path / "broken") == _table(tmp_path / "whole")


@pytest.fixture
def tiny_trainings(monkeypatch):
    """Trainings of clip and diffusion that take seconds."""
    from tests.lab.test_clip import TINY as clip
    from tests.lab.test_diffusion import TINY as diffusion

    small = {"batch_size": 4, "save_every": 2}
    monkeypatch.setattr(contrastive, "train_clip", functools.partial(contrastive.train_clip, settings=clip, **small))
    whole = functools.partial(denoising.train_diffusion, settings=diffusion, autoencoder_steps=5, **small)
    first = functools.partial(autoencoding.train_autoencoder, settings=diffusion, steps=5)
    monkeypatch.setattr(denoising, "train_diffusion", whole)
    monkeypatch.setattr(autoencoding, "train_autoencoder", first)


@pytest.mark.parametrize(
    ("organism", "column", "file"),
    [("clip", "accuracy", "model.safetensors"), ("diffusion", "squared_error", "model_index.json")],
)
def test_the_encoders_are_trained_and_their_curve_shown(shell, tiny_trainings, tmp_path, organism, column, file):
    command = ("lab", "train", organism, "--steps", 25, "--out", tmp_path / "model")
    code, printed, noise = shell(*command, "--json")
    assert (code, noise, printed.count("\n")) == (0, "", 1)
    rows = json.loads(printed)["rows"]
    assert [one["step"] for one in rows] == [25]
    with (tmp_path / "model" / "loss.csv").open(encoding="utf-8", newline="") as table:
        last = list(csv.DictReader(table))[-1]
    assert rows[0] == {name: pytest.approx(float(value)) for name, value in last.items()}
    assert 0 <= rows[0][column] < 2
    assert (tmp_path / "model" / file).is_file()
    # The same command again trains nothing.
    before = {one: one.stat().st_mtime_ns for one in (tmp_path / "model").rglob("*")}
    code, table, noise = shell(*command)
    assert (code, noise) == (0, "")
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "model").rglob("*")} == before
    assert f"{rows[0]['loss']:.3f}" in table
    code, _, noise = shell("lab", "train", organism, "--steps", 0, "--out", tmp_path / "other")
    assert (code, noise.count("\n")) == (2, 1)


def test_a_segmenter_is_trained_and_its_masks_scored(shell, refused, monkeypatch, tmp_path):
    from tests.lab.test_sam import TINY

    monkeypatch.setattr(
        segmenting, "train_sam", functools.partial(segmenting.train_sam, settings=TINY, batch_size=2, save_every=2)
    )
    command = ("lab", "train", "sam", "--steps", 5, "--measure", 3, "--out", tmp_path / "model")
    code, printed, noise = shell(*command, "--json")
    assert (code, noise, printed.count("\n")) == (0, "", 1)
    found = json.loads(printed)
    assert [one["step"] for one in found["rows"]] == [5]
    kept = pd.read_csv(tmp_path / "model" / "scores.csv")
    assert found["scores"] == kept.to_dict("records")
    assert len(kept) == 2 * 3 * 2
    assert set(kept["images"]) == {3}
    assert set(kept["phrases"]) == {sum(len(one.phrases) for one in read_lab(limit=3))}
    alone = score_prompts(SamRefiner(tmp_path / "model", mask="last"), read_lab(limit=3))
    assert kept.loc[kept["mask"] == "last", "value"].tolist() == pytest.approx(alone["value"].tolist())
    before = {one: one.stat().st_mtime_ns for one in (tmp_path / "model").rglob("*")}
    code, table, noise = shell(*command)
    assert (code, noise) == (0, "")
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "model").rglob("*")} == before
    assert f"{kept['value'].iloc[0]:.3f} [" in table
    # Another number of scenes is another measurement of the same model.
    weights = tmp_path / "model" / "model.safetensors"
    assert json.loads(shell(*command[:5], "--measure", 2, *command[7:], "--json")[1])["scores"][0]["images"] == 2
    assert weights.stat().st_mtime_ns == before[weights]
    assert "measure must be 2 or more" in refused("lab", "train", "sam", "--measure", 1)


@pytest.fixture
def quick_twins(monkeypatch):
    """`train_twins` with batches of 2 and a small language model, on the shipped towers."""
    monkeypatch.setattr(features, "SHARD", 4)
    monkeypatch.setattr(twin_comparisons, "SCENES", 3)
    settings = TwinSettings(width=16, inner=32, layers=1, heads=2, diffusion_features=8)
    monkeypatch.setattr(twins, "train_twins", functools.partial(twins.train_twins, batch_size=2, settings=settings))


def test_twins_are_trained_measured_and_taken_by_the_other_commands(shell, refused, quick_twins, tmp_path):
    command = (
        "lab",
        "train",
        "twins",
        "--steps",
        2,
        "--measure",
        3,
        "--seeds",
        1,
        "--seed",
        4,
        "--out",
        tmp_path / "all",
    )
    code, printed, noise = shell(*command, "--json")
    assert (code, noise, printed.count("\n")) == (0, "", 1)
    found = json.loads(printed)
    assert [(one["seed"], one["arm"]) for one in found["runs"]] == [(4, arm) for arm in ARMS]
    assert [(one["arm"], one["step"]) for one in found["rows"]] == [(arm, step) for arm in ARMS for step in (0, 2)]
    for run in found["runs"]:
        kept = [float(one["caption_loss"]) for one in _table(tmp_path / "all" / "seed-4" / run["arm"])]
        assert kept == [one["caption_loss"] for one in found["rows"] if one["arm"] == run["arm"]]
        assert all(3 < loss < 7 for loss in kept)  # the logarithm of 398 tokens is 6.0
    home = tmp_path / "all"
    compared = pd.read_csv(home / "comparison.csv")
    assert set(compared["seed"]) == {4}
    assert set(compared["system"]) == {"lab/clip", "lab/diffusion", *TWINS}
    assert compared["images"].max() == 3
    (only,) = found["seeds"]
    assert only["systems"]["lab/difflmm"]["pointing"]["value"] == pytest.approx(
        compared.query("system == 'lab/difflmm' and kind == 'reading' and metric == 'pointing'")["value"].item()
    )
    assert json.loads((home / "comparison.json").read_text())["scenes"] == 3
    whole = pd.read_csv(home / "training.csv")
    assert len(whole) == len(found["rows"])
    assert set(whole["arm"]) == set(ARMS)
    twin = home / "seed-4" / "difflmm"
    scored = json.loads(shell("score", "--model", twin, "--limit", 2, "--json")[1])
    assert scored["phrases"] > 0
    # The same command again does nothing but say it once more, as a table.
    code, table, noise = shell(*command)
    assert (code, noise) == (0, "")
    assert all(f"{arm} " in table for arm in ARMS)
    assert "seeds must be 1 or more" in refused(*command[:3], "--seeds", 0, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "nowhere" in refused(*command[:3], "--clip", tmp_path / "nowhere", "--out", tmp_path / "none")
