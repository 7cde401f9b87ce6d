"""Photographs and a LLaVA checkpoint folder through the shell, by the code path that a full-sized LLaVA takes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

import probe

ANSWER = "a man with a red ball and two dogs on the grass"


@pytest.fixture(params=["landscape", "portrait"])
def photograph(request, coco_mini):
    """The first photograph of that shape, with its (height, width) once it is upright."""
    for path in sorted((coco_mini / "images").iterdir()):
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
        if height != width and (height > width) == (request.param == "portrait"):
            return path, (height, width)
    pytest.fail(f"there is no photograph in {request.param}")


def _unseen(size, *, preparation):
    """(height, width): pixels that a centre crop of the shorter side leaves out, by the plainest count."""
    unseen = np.zeros(size, dtype=bool)
    if preparation != "crop":
        return unseen
    cut = abs(size[0] - size[1]) / 2
    along = np.arange(max(size)) + 0.5
    outside = (along < cut) | (along > max(size) - cut)
    unseen |= outside[:, None] if size[0] > size[1] else outside[None, :]
    return unseen


@pytest.mark.parametrize(("preparation", "answer"), [("crop", None), ("pad", ANSWER), ("squash", ANSWER)])
def test_a_photograph_is_recorded_drawn_and_kept(shell, checkpoint, tmp_path, photograph, preparation, answer):
    path, size = photograph
    out = tmp_path / "new" / "out"
    given = [] if answer is None else ["--answer", answer, "--phrase", "red ball", "--phrase", "two dogs"]
    code, printed, noise = shell(
        "record", path, "Describe the image.", "--model", checkpoint(preparation), "--out", out,
        "--max-new-tokens", 6, "--json", *given,
    )  # fmt: skip
    assert (code, noise) == (0, "")
    found = json.loads(printed)
    record = probe.load(out / "record.safetensors")
    assert record.image_size == size
    assert record.text == found["text"]
    assert found["certificate"]["passed"]
    assert list(record.tokens) == found["tokens"]
    if answer is not None:
        assert record.text == answer
        assert len(record["red ball"].tokens) >= 1
    for one in found["figures"]:
        assert (out / one).stat().st_size > 1000
    assert {one.name for one in out.iterdir()} >= {"record.safetensors", "record.json"}
    kept = json.loads((out / "record.json").read_text(encoding="utf-8"))
    assert kept["settings"]["model"] == str(checkpoint(preparation))
    assert kept["settings"]["answer"] == answer
    assert kept["text"] == record.text


@pytest.mark.parametrize("preparation", ["crop", "pad", "squash"])
def test_only_a_centre_crop_leaves_pixels_unseen(checkpoint, photograph, preparation):
    path, size = photograph
    subject = probe.load_model(checkpoint(preparation))
    record = probe.run(subject, path, "Describe the image.", answer=ANSWER).record
    heatmap = record["red ball"].heatmap()
    assert heatmap.shape == size
    expected = _unseen(size, preparation=preparation)
    # The processor cuts whole pixels of its small picture, so the border may lie one of those (20 of ours) further.
    differ = np.isnan(heatmap) != expected
    assert differ.sum() <= 20 * max(size)
    assert np.isnan(heatmap).any() == (preparation == "crop")
    total = sum(float(one.grid.weight.sum()) for one in record.layers) / len(record.layers)
    if preparation == "pad":
        # Sixteen patches cover the padded square, and the photograph this share of it.
        assert total == pytest.approx(16 * min(size) / max(size), rel=1e-6)
    else:
        assert total == pytest.approx(16, abs=0.5)


def test_a_photograph_and_its_upright_copy_with_an_orientation_tag_are_recorded_alike(checkpoint, photograph, tmp_path):
    path, size = photograph
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    tag = Image.Exif()
    tag[0x0112] = 6  # shown turned by 90 degrees clockwise, which undoes the turn above
    upright.save(tmp_path / "upright.png")
    turned.save(tmp_path / "turned.png", exif=tag)
    subject = probe.load_model(checkpoint())
    first, second = (
        probe.run(subject, tmp_path / name, "Describe the image.", answer=ANSWER).record
        for name in ("upright.png", "turned.png")
    )
    assert first.image_size == second.image_size == size
    assert bool((first.stack() == second.stack()).all())


@pytest.mark.parametrize("preparation", ["crop", "pad"])
def test_photographs_are_scored_against_their_masks(shell, checkpoint, coco_mini, tmp_path, preparation):
    arguments = ("score", "--data", coco_mini, "--model", checkpoint(preparation), "--limit", 6, "--out", tmp_path)
    code, printed, noise = shell(*arguments, "--metric", "pointing", "--metric", "auroc", "--json")
    assert (code, noise) == (0, "")
    found = json.loads(printed)
    phrases = json.loads((coco_mini / "phrases.json").read_text(encoding="utf-8"))["phrases"]
    assert found["images"] <= 6
    assert 6 <= found["phrases"] + sum(found["left_out"].values()) <= len(phrases)
    for metric in ("pointing", "auroc"):
        assert len(found[metric]["heads"]) == 12
        for name in ("mean_map", "minus_mean", "chance", "centre_prior", "oracle_patch"):
            assert 0 <= found[metric][name]["low"] <= found[metric][name]["value"] <= found[metric][name]["high"] <= 1
        assert found[metric]["oracle_patch"]["value"] > 0.75
    assert found["auroc"]["chance"]["value"] == pytest.approx(0.5)
    # The files say the same.
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == found
    table = pd.read_parquet(tmp_path / "scores.parquet")
    row = table[(table["name"] == "minus_mean") & (table["metric"] == "auroc")].iloc[0]
    assert row["value"] == found["auroc"]["minus_mean"]["value"]


def test_half_precision_is_recorded_and_scored(shell, checkpoint, coco_mini, tmp_path):
    path = min((coco_mini / "images").iterdir())
    code, _, noise = shell(
        "record", path, "Describe the image.", "--model", checkpoint(), "--dtype", "bfloat16", "--answer", ANSWER,
        "--out", tmp_path,
    )  # fmt: skip
    assert (code, noise) == (0, "")
    record = probe.load(tmp_path / "record.safetensors")
    assert record.source.dtype == "bfloat16"
    assert record.certificate.passed
    assert record.stack().element_size() == 4
    code, _, noise = shell("score", "--data", coco_mini, "--model", checkpoint(), "--dtype", "bfloat16", "--limit", 2)
    assert (code, noise) == (0, "")


@pytest.mark.parametrize("preparation", ["crop", "pad", "squash"])
def test_the_checkpoint_folder_passes_its_check_on_a_photograph(shell, checkpoint, photograph, preparation):
    path, _ = photograph
    code, printed, noise = shell("check", checkpoint(preparation), "--image", path)
    assert (code, noise) == (0, "")
    assert "FAILED" not in printed
    assert printed.count("ok ") == 6
