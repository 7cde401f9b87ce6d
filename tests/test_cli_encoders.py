"""The shell on models that answer nothing: image encoders and diffusion pipelines."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import probe
from tests.tiny import picture, tiny_clip, tiny_siglip
from tests.tiny_diffusion import tiny_sd

CLIP_NOTE = "CLIP has no attention from text to patches: these are contributions of patches"
CAPTIONS = ("a red circle and two blue squares", "a circle on the grass and a blue circle")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(tiny_clip)``: its folder, as `save_pretrained` makes it."""
    made = {}

    def make(build):
        if build not in made:
            made[build] = str(tmp_path_factory.mktemp(build.__name__) / "model")
            found = build()
            for one in (found.model, found.processor) if hasattr(found, "processor") else [found]:
                one.save_pretrained(made[build])
        return made[build]

    return make


@pytest.fixture
def coco(tmp_path):
    """A folder in COCO style, with captions that the tiny text encoders can take."""
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    tables = {
        "instances": {"annotations": [], "categories": [{"id": 1, "name": "circle"}]},
        "captions": {"annotations": []},
    }
    rows = []
    for number, caption in enumerate(CAPTIONS):
        picture(seed=number).save(folder / "images" / f"{number}.png")
        ends = [(caption.index(word), caption.index(word) + len(word), word) for word in caption.split(" and ")]
        for place, (start, end, word) in enumerate(ends):
            box = [8 + 10 * place, 6, 12, 20 + 8 * number]
            corners = [box[0], box[1], box[0] + 12, box[1], box[0] + 12, box[1] + box[3], box[0], box[1] + box[3]]
            note = {"id": 10 * number + place + 1, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0}
            tables["instances"]["annotations"].append(note | {"segmentation": [corners], "area": box[2] * box[3]})
            row = {
                "caption_id": number,
                "image_id": number,
                "start": start,
                "end": end,
                "text": word,
                "category": "circle",
            }
            rows.append(row | {"ann_ids": [note["id"]], "segment_ids": []})
        tables["captions"]["annotations"].append({"id": number, "image_id": number, "caption": caption})
    images = [{"id": i, "file_name": f"{i}.png", "width": 56, "height": 40} for i in range(len(CAPTIONS))]
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table | {"images": images}))
    (folder / "phrases.json").write_text(json.dumps({"phrases": rows}))
    return folder


def test_scores_of_clip_say_that_they_are_contributions(shell, saved, coco, tmp_path):
    out = tmp_path / "out"
    code, printed, noise = shell(
        "score", "--model", saved(tiny_clip), "--data", coco, "--metric", "auroc", "--out", out
    )
    assert (code, noise) == (0, "")
    assert CLIP_NOTE in printed
    assert "auroc of contributions: 2 images, 4 phrases" in printed
    # Single heads, with their intervals.
    assert "auroc of single heads, read as contribution minus mean" in printed
    frame = pd.read_parquet(out / "scores.parquet")
    head = frame.query("kind == 'head' and layer == 2 and head == 3").iloc[0]
    assert f"{head.value:.3f} [{head.low:.3f}, {head.high:.3f}]" in printed
    assert json.loads((out / "scores.json").read_text())["quantity"] == "contribution"


def test_the_row_of_the_class_token_can_be_scored(shell, saved, coco):
    for build, name in ((tiny_clip, "CLIP"), (tiny_siglip, "SigLIP")):
        code, printed, noise = shell("score", "--model", saved(build), "--data", coco, "--quantity", "attention")
        assert (code, noise) == (0, "")
        assert f"{name} has no attention from text to patches: this is the attention of its own query" in printed


def test_scores_of_a_pipeline_have_rows_for_each_timestep(shell, saved, coco):
    asked = (
        "score",
        "--model",
        saved(tiny_sd),
        "--data",
        coco,
        "--metric",
        "auroc",
        "--timestep",
        100,
        "--timestep",
        900,
    )
    code, printed, noise = shell(*asked)
    assert (code, noise) == (0, "")
    assert "auroc of single heads at timestep 900" in printed
    assert "CLIP" not in printed
    code, printed, _ = shell(*asked, "--json")
    rows = json.loads(printed)["auroc"]["timesteps"]
    assert {one["timestep"] for one in rows} == {100, 900}
    assert len(rows) == 2 * (1 + 7 * 2)


def test_emergence_over_timesteps_and_layers(shell, saved, coco, tmp_path):
    timesteps = ("--timestep", 100, "--timestep", 900)
    where = ("--model", saved(tiny_sd), "--data", coco, "--out", tmp_path)
    code, printed, noise = shell("emergence", "--over", "timestep", *where, *timesteps)
    assert (code, noise) == (0, "")
    assert "timestep 900" in printed
    assert (tmp_path / "emergence.pdf").is_file()
    code, printed, _ = shell("emergence", "--over", "layer", "--model", saved(tiny_clip), "--data", coco)
    assert code == 0
    assert CLIP_NOTE in printed


@pytest.mark.parametrize(("build", "text"), [(tiny_clip, "a red circle and a blue square"), (tiny_clip, "a red circle"),
                                             (tiny_sd, "a red circle")])  # fmt: skip
def test_record_reads_the_prompt_and_draws_it(shell, saved, tmp_path, build, text):
    picture().save(tmp_path / "photo.png")
    code, printed, noise = shell(
        "record", tmp_path / "photo.png", text, "--model", saved(build), "--out", tmp_path / "out"
    )
    assert (code, noise) == (0, "")
    assert f"text         {text}" in printed
    assert (CLIP_NOTE in printed) == (build is tiny_clip)
    record = probe.load(tmp_path / "out" / "record.safetensors")
    assert record.text == text
    assert record.quantity == ("contribution" if build is tiny_clip else "attention")
    assert (tmp_path / "out" / "phrases.png").is_file()


@pytest.mark.parametrize("build", [tiny_clip, tiny_sd])
def test_segment_reads_the_prompt(shell, saved, tmp_path, build):
    picture().save(tmp_path / "photo.png")
    asked = ("segment", tmp_path / "photo.png", "a red circle and a blue circle", "--model", saved(build))
    code, printed, noise = shell(*asked, "--out", tmp_path / "out")
    assert (code, noise) == (0, "")
    assert "a red circle" in printed
    assert (CLIP_NOTE in printed) == (build is tiny_clip)


@pytest.mark.parametrize("build", [tiny_clip, tiny_siglip, tiny_sd])
def test_check_passes(shell, saved, build):
    code, printed, noise = shell("check", saved(build))
    assert (code, noise) == (0, ""), printed
    assert "FAILED" not in printed


def test_what_means_nothing_for_a_model_is_one_line(refused, saved, coco, tmp_path):
    data = ("--data", coco)
    clip, pipeline = saved(tiny_clip), saved(tiny_sd)
    assert "timesteps=(100,) means nothing for" in refused("score", "--model", clip, *data, "--timestep", 100)
    assert "--timestep takes a whole number of 0 or more, found 'x'" in refused(
        "score", "--model", pipeline, *data, "--timestep", "x"
    )
    assert "numbered 0 to 999" in refused("score", "--model", pipeline, *data, "--timestep", 1000)
    assert "quantity='attention' means nothing" in refused(
        "score", "--model", pipeline, *data, "--quantity", "attention"
    )
    assert "prompt='What?' means nothing" in refused("score", "--model", clip, *data, "--prompt", "What?")
    assert "pools its patches" in refused("score", "--model", saved(tiny_siglip), *data)
    picture().save(tmp_path / "photo.png")
    asked = ("record", tmp_path / "photo.png", "a red circle", "--model", clip)
    assert "answer='x' means nothing" in refused(*asked, "--answer", "x")
    assert "Text 0" in refused("record", tmp_path / "photo.png", "a " + "red " * 40 + "circle", "--model", clip)
    assert "--over timestep" in refused("emergence", "--timestep", 100)


def test_a_phrase_that_is_not_in_a_prompt_is_not_asked_for_as_an_answer(shell, saved, tmp_path):
    picture().save(tmp_path / "a.png")
    out = tmp_path / "out"
    asked = ("record", tmp_path / "a.png", "a red circle", "--phrase", "blue dog", "--out", out, "--model")
    for build in (tiny_sd, tiny_clip):
        code, _, noise = shell(*asked, saved(build))
        assert (code, noise) == (2, "probe: The phrase 'blue dog' is not in the text 'a red circle'.\n")
    assert not out.exists()


def test_a_text_said_twice_is_drawn_without_its_mean(shell, saved, tmp_path):
    picture().save(tmp_path / "a.png")
    text = "a red circle and a red circle"
    code, printed, noise = shell(
        "record", tmp_path / "a.png", text, "--model", saved(tiny_clip), "--out", tmp_path / "out"
    )
    assert (code, noise) == (0, "")
    assert "phrases.png" in printed
