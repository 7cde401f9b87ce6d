"""``probe train llava`` and ``probe train difflmm`` from the shell."""

from __future__ import annotations

import json

import pytest
import yaml

from probe.training.recipes import RECIPES
from tests.training.tiny_training import conversation, plan_of, write_parts, write_records


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with parts, records and ``run.yaml``."""
    root = tmp_path_factory.mktemp("command")
    parts, records = write_parts(root / "parts"), write_records(root)
    own = {name: value for name, value in parts.items() if name != "diffusion"}
    plan = vars(plan_of(**own, **records))
    (root / "run.yaml").write_text(yaml.safe_dump({name: value for name, value in plan.items() if value is not None}))
    return root


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_tried_without_weights_or_a_network(recipe, shell, home, tmp_path):
    data = ("--data", home / "data.json", "--images", home / "images", "--out", tmp_path / "out")
    code, printed, noise = shell("train", recipe.partition("-")[0], "--config", recipe, *data, "--dry-run", "--json")
    assert (code, noise) == (0, "")
    found = json.loads(printed)
    rows = {row["module"]: row for row in found["trainable"]}
    # Published sizes: CLIP ViT-L/14-336's vision model without its projection, Vicuna-7B with a token for images.
    assert rows["model.vision_tower"]["parameters"] == 303_507_456
    assert rows["model.language_model"]["parameters"] + rows["lm_head"]["parameters"] == 6_738_415_616 + 2 * 4096
    assert (
        rows["model.vision_tower"]["trained"]
        == rows["model.language_model"]["trained"]
        == rows["lm_head"]["trained"]
        == 0
    )
    if recipe.endswith("2"):
        # 32 layers of rank 128: four square maps, and three between 4096 and 11008.
        lora = 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 11008))
        assert rows["model.language_model (LoRA)"]["trained"] == lora
        assert rows["model.language_model (LoRA)"]["learning_rate"] == 2e-4
        assert rows["model.multi_modal_projector"]["learning_rate"] == 2e-5
    if recipe.startswith("llava"):
        assert rows["model.multi_modal_projector"]["trained"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    else:
        caption = 1024 * 768 + 768 + 768 * 768 + 768 + 576 * 768
        assert rows["model.diffusion_tower.caption"]["trained"] == caption
    assert (found["records"], found["longer_than_max_length"], found["steps"]) == (6, None, 1)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_it_could_not_check(shell, home):
    data = ("--data", home / "data.json", "--images", home / "images")
    code, printed, _ = shell("train", "llava", "--config", "llava-stage-2", *data, "--dry-run")
    assert code == 0
    assert "not checked: the tokenizer of lmsys/vicuna-7b-v1.5 is not on this machine" in printed
    assert "projector    runs/llava-stage-1 holds no trained stage 1 yet" in printed
    assert "batch        128 = 16 x 8 accumulated x 1 process" in printed
    code, printed, _ = shell("train", "llava", "--config", home / "run.yaml", "--dry-run")
    assert "lengths      0 longer than 2,048 tokens" in printed


def test_single_options_come_before_the_file_and_the_table_and_json_agree(shell, home, tmp_path):
    argv = ("train", "llava", "--config", home / "run.yaml", "--out", tmp_path / "one", "--steps", 2)
    code, printed, noise = shell(*argv, "--json")
    assert (code, noise, printed.count("\n")) == (0, "", 1)
    found = json.loads(printed)
    assert [row["step"] for row in found["curve"]] == [1, 2]
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert (record["plan"]["steps"], record["plan"]["batch_size"], record["finished"]) == (2, 4, True)
    code, printed, noise = shell(*argv)  # finished: says it once more
    assert (code, noise) == (0, "")
    for row in found["curve"]:
        assert f"{row['loss']:.4f}" in printed
    for row in found["trainable"]:
        assert row["module"] in printed
        assert f"{row['trained']:,}" in printed
    again = shell("train", "llava", "--config", home / "run.yaml", "--print-config", "--steps", 2)[1]
    assert yaml.safe_load(again)["steps"] == 2
    assert yaml.safe_load(again)["batch_size"] == 4


def test_bad_input_is_one_line(refused, home, tmp_path):
    own = ("train", "llava", "--config", home / "run.yaml")
    assert refused("train", "llava", "--config", "llava-stage-1").startswith("Missing: DATA.")
    assert "cannot be read: No such file" in refused(*own, "--data", tmp_path / "none.json")
    assert refused(*own, "--stage", 3).startswith("--stage takes '1' or '2', found '3'.")
    assert refused(*own, "--learning-rate", "fast").startswith("--learning-rate takes a number, found 'fast'.")
    assert "Did you mean '--batch-size'" in refused(*own, "--bach-size", 3)
    assert "batch_size=3 cannot be cut" in refused(*own, "--batch-size", 3)
    assert "File does not exist" in refused("train", "llava", "--config", "llava-stage-9")
    assert "a LLaVA has none" in refused(*own, "--diffusion", "x")
    assert "A DiffLMM needs diffusion" in refused("train", "difflmm", "--config", home / "run.yaml")
    assert "could not be loaded" in refused(*own, "--clip", tmp_path)
    settings = tmp_path / "wrong.yaml"
    settings.write_text("bath_size: 3\n")
    assert "'bath_size', which does not exist. Did you mean 'batch_size'" in refused(
        "train", "llava", "--config", settings
    )
    settings.write_text("lora_rank: three\n")
    assert refused("train", "llava", "--config", settings, "--data", "x").startswith("--lora-rank takes a whole number")
    settings.write_text("steps: [3\n")
    assert "wrong.yaml' cannot be read" in refused("train", "llava", "--config", settings, "--data", "x")


def test_bad_records_are_one_line_with_their_names(refused, home, tmp_path):
    records = [conversation(0), conversation(1) | {"image": "none.png"}, conversation(2)]
    records[2]["conversations"][0]["from"] = "robot"
    where = write_records(tmp_path, records)
    (tmp_path / "images" / "none.png").unlink()
    data = ("--data", where["data"], "--images", where["images"])
    for more in ((), ("--dry-run",)):
        line = refused("train", "llava", "--config", home / "run.yaml", *data, *more)
        assert (
            "2 of 3 records cannot be used: 1 with a missing image ('pair-1'), 1 with an unknown role ('pair-2')."
            in line
        )
        assert line.endswith("Correct them, or train without them: bad_records=skip.")


def test_help_lists_the_settings(shell):
    code, printed, _ = shell("train", "difflmm", "--help")
    assert code == 0
    for word in (
        "--config",
        "llava-stage-1",
        "--projector-learning-rate",
        "--lora-targets",
        "--dry-run",
        "--bad-records",
    ):
        assert word in printed
    assert "Regular expression for the names" in printed
