"""Plans: what is refused, how a batch is cut up, and the recipes that ship."""

from __future__ import annotations

import math

import pytest
import yaml

from probe.errors import InputError
from probe.training.plans import TrainingPlan
from probe.training.recipes import RECIPES, recipe_file

PARTS = {"data": "x.json", "language_model": "a", "clip": "b"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": ""}, "data is empty"),
        ({"stage": 3}, "stage must be 1 or 2, found 3"),
        ({"long_texts": "cut"}, "long_texts must be 'refuse' or 'truncate' or 'skip', found 'cut'"),
        ({"batch_size": 0}, "batch_size must be 1 or more, found 0"),
        ({"workers": -1}, "workers must be 0 or more, found -1"),
        ({"steps": 0}, "steps must be 1 or more, found 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite, found nan"),
        ({"epochs": 0.0}, "epochs must be above 0"),
        ({"warmup": 1.0}, "warmup is a share, from 0 to below 1; found 1.0"),
        ({"lora_dropout": -0.1}, "lora_dropout is a share"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"lora_targets": "("}, "is not a regular expression"),
        ({"clip": None}, "A model is needed"),
        ({"model": "whole"}, "model is a whole model and language_model a part of one"),
        ({"projector_learning_rate": 1e-5}, "projector_learning_rate is for stage 2"),
    ],
)
def test_impossible_plans_are_refused(wrong, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        TrainingPlan(**PARTS | wrong)


def test_the_kind_of_model_must_fit_the_parts():
    with pytest.raises(InputError, match="A DiffLMM needs diffusion"):
        TrainingPlan(**PARTS).require_kind("difflmm")
    with pytest.raises(InputError, match="a LLaVA has none"):
        TrainingPlan(**PARTS, diffusion="c").require_kind("llava")


def test_a_batch_is_cut_up_without_a_rest():
    plan = TrainingPlan(**PARTS, batch_size=24, device_batch_size=4)
    assert [plan.accumulation(processes) for processes in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(InputError, match="device_batch_size=4 on 4 processes: it must be a multiple of 16"):
        plan.accumulation(4)
    assert [plan.count_steps(records) for records in (1, 24, 25, 48)] == [1, 1, 2, 2]
    assert TrainingPlan(**PARTS, steps=7).count_steps(10**6) == 7


def test_the_recipes_are_the_papers():
    assert list(RECIPES) == ["difflmm-stage-1", "difflmm-stage-2", "llava-stage-1", "llava-stage-2"]
    for name, path in RECIPES.items():
        plan = TrainingPlan(data="x.json", **yaml.safe_load(path.read_text(encoding="utf-8")))
        plan.require_kind("difflmm" if name.startswith("difflmm") else "llava")
        common = (plan.epochs, plan.warmup, plan.schedule, plan.weight_decay, plan.max_length, plan.dtype)
        assert common == (1, 0.03, "cosine", 0.0, 2048, "bfloat16")
        assert plan.language_model == "lmsys/vicuna-7b-v1.5"
        assert plan.clip == "openai/clip-vit-large-patch14-336"
        # LLaVA-1.5's numbers of pairs and instructions, and its numbers of steps.
        if plan.stage == 1:
            assert (plan.batch_size, plan.learning_rate, plan.prompt) == (256, 1e-3, "plain")
            assert plan.count_steps(558_128) == 2181
        else:
            assert (plan.batch_size, plan.learning_rate, plan.projector_learning_rate) == (128, 2e-4, 2e-5)
            assert (plan.lora_rank, plan.lora_alpha, plan.lora_dropout) == (128, 256, 0.05)
            assert plan.prompt == "conversation"
            assert plan.count_steps(665_298) == 5198
        assert plan.accumulation(8) == 1


def test_a_recipe_is_found_by_name_and_a_file_comes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("llava-stage-1") == str(RECIPES["llava-stage-1"])
    assert recipe_file("run.yaml") == "run.yaml"
    (tmp_path / "llava-stage-1").write_text("stage: 1\n")
    assert recipe_file("llava-stage-1") == "llava-stage-1"
