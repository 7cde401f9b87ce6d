"""Whole trainings of tiny models: what changes and what does not, resuming to the bit, and what is left for later."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import probe
from probe.errors import FileError, InputError, ModelError
from probe.lab.trainers import read_curve
from probe.training import courses
from probe.training.courses import train
from tests.tiny import picture
from tests.training.tiny_training import conversation, plan_of, write_parts, write_records


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Six records: two of them text alone, so that batches without a picture occur."""
    return write_records(
        tmp_path_factory.mktemp("records"),
        [conversation(number, image=number not in (1, 4), turns=2) for number in range(6)],
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("pairs"), 4)


def plan_for(kind, parts, records, **settings):
    own = {name: value for name, value in parts.items() if name != "diffusion" or kind == "difflmm"}
    return plan_of(**own, **records, **settings)


@pytest.fixture(scope="module")
def projectors(parts, pairs, tmp_path_factory):
    """The folders of a finished stage 1 of each kind."""
    made = {}
    for kind in ("llava", "difflmm"):
        made[kind] = tmp_path_factory.mktemp("stage-1") / kind
        train(kind, plan_for(kind, parts, pairs, steps=3), made[kind])
    return made


@pytest.mark.parametrize("kind", ["llava", "difflmm"])
def test_stage_1_leaves_the_projector_side_and_changes_nothing_else(
    kind, parts, pairs, projectors, monkeypatch, tmp_path
):
    kept = {}
    build = courses.build

    def watched(*given):
        model = build(*given)
        kept.update(model=model, before={name: one.clone() for name, one in model.state_dict().items()})
        return model

    monkeypatch.setattr(courses, "build", watched)
    train(kind, plan_for(kind, parts, pairs, steps=3), tmp_path / "one")
    trained = load_file(tmp_path / "one" / "trained.safetensors")
    sides = ("model.multi_modal_projector.", "model.diffusion_tower.caption.")
    for name, value in kept["model"].state_dict().items():
        assert torch.equal(value, kept["before"][name]) != name.startswith(sides), name
    assert trained.keys() == {name for name in kept["before"] if name.startswith(sides)}
    # The same plan gives the same weights.
    again = load_file(projectors[kind] / "trained.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    assert sorted(one.name for one in (tmp_path / "one").iterdir()) == [
        "loss.csv",
        "trained.safetensors",
        "training.json",
    ]
    assert [row["step"] for row in read_curve(tmp_path / "one" / "loss.csv")] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["llava", "difflmm"])
def test_stage_2_leaves_a_whole_model_that_is_loaded_and_run(kind, parts, records, projectors, tmp_path):
    settings = {
        "stage": 2,
        "prompt": "conversation",
        "projector": str(projectors[kind]),
        "projector_learning_rate": 1e-3,
    }
    train(kind, plan_for(kind, parts, records, **settings, gradient_checkpointing=True), tmp_path / "two")
    subject = probe.load_model(tmp_path / "two")
    assert subject.family.name == kind
    found = probe.run(subject, picture(), "Describe the image.", max_new_tokens=4)
    assert found.record.certificate.passed
    assert subject.model.config.text_config.use_cache
    # Padded to a square, as it was trained.
    assert subject.processor.image_processor.do_pad
    first = load_file(projectors[kind] / "trained.safetensors")
    now = dict(subject.model.named_parameters())
    moved = [not torch.equal(now[name], value) for name, value in first.items()]
    assert any(moved)
    assert all(float((now[name].detach() - value).abs().max()) < 0.02 for name, value in first.items())


def test_a_tiny_set_is_learned(parts, pairs, tmp_path):
    plan = plan_for("llava", parts, pairs, stage=2, steps=40, lora_rank=8, lora_alpha=32, warmup=0.1)
    train("llava", plan, tmp_path / "one")
    curve = [row["loss"] for row in read_curve(tmp_path / "one" / "loss.csv")]
    assert curve[0] > 4
    assert curve[-1] < 0.6 * curve[0]


def test_learning_rates_and_the_schedule(parts, pairs, tmp_path):
    rates = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            rates.append([group["lr"] for group in optimizer.param_groups])

    plan = plan_for("llava", parts, pairs, stage=2, steps=8, warmup=0.25, projector_learning_rate=1e-3)
    train("llava", plan, tmp_path / "one", callbacks=[Watch()])
    # Two steps up from 0, then half a cosine over the other six.
    expected = [0, 0.5, *(0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6))]
    assert [one[0] for one in rates] == pytest.approx([1e-2 * one for one in expected])
    assert [one[1] for one in rates] == pytest.approx([1e-3 * one for one in expected])
    assert [row["learning_rate"] for row in read_curve(tmp_path / "one" / "loss.csv")] == pytest.approx(
        [1e-2 * one for one in expected]
    )


@pytest.mark.parametrize("stage", [1, 2])
def test_a_killed_run_ends_with_the_curve_and_the_weights_of_an_unbroken_one(stage, parts, records, pairs, tmp_path):
    # Stage 2 with dropout, whose random numbers must go on too.
    settings = {"stage": 2, "prompt": "conversation", "lora_dropout": 0.3} if stage == 2 else {}
    plan = plan_for("llava", parts, records if stage == 2 else pairs, steps=7, **settings)
    seen = []

    def killed(step, loss):
        seen.append(step)
        if step == 5:
            raise KeyboardInterrupt

    train("llava", plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train("llava", plan, tmp_path / "broken", on_step=killed)
    checkpoint = tmp_path / "broken" / "checkpoints" / "checkpoint-4"
    assert {"trained.safetensors", "optimizer.pt", "trainer_state.json"} <= {one.name for one in checkpoint.iterdir()}
    assert "model.safetensors" not in {one.name for one in checkpoint.iterdir()}
    # Killed while it wrote a newer one: that one does not count.
    torn = tmp_path / "broken" / "checkpoints" / "checkpoint-5"
    torn.mkdir()
    (torn / "trained.safetensors").write_bytes(b"half")
    train("llava", plan, tmp_path / "broken", on_step=lambda step, loss: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7]
    assert (tmp_path / "broken" / "loss.csv").read_text() == (tmp_path / "whole" / "loss.csv").read_text()
    name = "trained.safetensors" if stage == 1 else "model.safetensors"
    expected, found = load_file(tmp_path / "whole" / name), load_file(tmp_path / "broken" / name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    # The same again does nothing.
    train("llava", plan, tmp_path / "broken", on_step=lambda step, loss: pytest.fail("it trained again"))


def test_another_training_is_not_mixed_in(parts, pairs, projectors, tmp_path):
    with pytest.raises(InputError, match=r"holds a training with steps=3 \(now 5\), seed=0 \(now 1\)"):
        train("llava", plan_for("llava", parts, pairs, steps=5, seed=1), projectors["llava"])
    other = write_records(tmp_path, [conversation(3)])
    with pytest.raises(InputError, match="holds a training with data="):
        train("llava", plan_for("llava", parts, other, steps=3), projectors["llava"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something that is no training"):
        train("llava", plan_for("llava", parts, pairs), tmp_path / "full")


def test_snapshots_are_measured_without_a_trace(parts, pairs, tmp_path):
    plan = plan_for("llava", parts, pairs, steps=3)
    taken = []

    def measure(step, model, processor, loss):
        assert not model.training
        torch.rand(5)
        taken.append((step, loss, probe.load_model(model, processor).family.name))

    train("llava", plan, tmp_path / "watched", on_snapshot=measure)
    train("llava", plan, tmp_path / "alone")
    assert [(step, name) for step, _, name in taken] == [(0, "llava"), (3, "llava")]
    curve = read_curve(tmp_path / "alone" / "loss.csv")
    assert taken[1][1] == curve[-1]["loss"]
    assert (tmp_path / "watched" / "loss.csv").read_text() == (tmp_path / "alone" / "loss.csv").read_text()


def test_accumulated_batches_are_one_batch(parts, records, tmp_path):
    curves = []
    for size in (4, 2, 1):
        plan = plan_for("llava", parts, records, stage=2, prompt="conversation", device_batch_size=size)
        train("llava", plan, tmp_path / str(size))
        curves.append([row["loss"] for row in read_curve(tmp_path / str(size) / "loss.csv")])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)


def test_bfloat16_and_workers(parts, pairs, tmp_path):
    plan = plan_for("difflmm", parts, pairs, dtype="bfloat16", workers=1, steps=2, whole_model=True)
    train("difflmm", plan, tmp_path / "one")
    assert {one.dtype for one in load_file(tmp_path / "one" / "trained.safetensors").values()} == {torch.float32}
    subject = probe.load_model(tmp_path / "one")
    assert subject.model.dtype == torch.bfloat16
    assert next(subject.model.model.diffusion_tower.vae.parameters()).dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_training_with_its_record(workers, parts, tmp_path):
    where = write_records(tmp_path, 4)
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    with pytest.raises(FileError) as found:
        train("llava", plan_for("llava", parts, where, workers=workers), tmp_path / "out")
    assert "record 'pair-2': " in str(found.value)
    assert "Traceback" not in str(found.value)
    assert "\n" not in str(found.value)


def test_bad_records_stop_it_before_anything_is_written_and_skipped_ones_are_counted(parts, tmp_path):
    bad = [conversation(number) | {"image": "none.png"} for number in (7, 8)]
    where = write_records(tmp_path, [*(conversation(number) for number in range(4)), *bad])
    (tmp_path / "images" / "none.png").unlink()
    with pytest.raises(
        InputError, match=r"2 of 6 records cannot be used: 2 with a missing image \('pair-7', 'pair-8'\)"
    ):
        train("llava", plan_for("llava", parts, where), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    outlook = train("llava", plan_for("llava", parts, where, bad_records="skip"), tmp_path / "out")
    assert outlook.left_out == {"a missing image": ["'pair-7'", "'pair-8'"]}
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["left_out"] == {"a missing image": ["'pair-7'", "'pair-8'"]}
    assert record["outlook"]["records"] == 4
    with pytest.raises(
        InputError, match=r"4 with a text of more than max_length=66 tokens.*long_texts=truncate or skip"
    ):
        train("llava", plan_for("llava", parts, where, bad_records="skip", max_length=66), tmp_path / "long")
    outlook = train(
        "llava",
        plan_for("llava", parts, where, bad_records="skip", max_length=66, long_texts="truncate"),
        tmp_path / "cut",
    )
    assert outlook.longer == 4


def test_a_projector_of_other_parts_is_refused(parts, pairs, projectors, tmp_path):
    others = write_parts(tmp_path)
    from safetensors.torch import save_file

    path = f"{others['clip']}/model.safetensors"
    weights = load_file(path)
    save_file(
        {name: value + 1 for name, value in weights.items() if value.is_floating_point()},
        path,
        metadata={"format": "pt"},
    )
    plan = plan_for("llava", others, pairs, stage=2, projector=str(projectors["llava"]))
    with pytest.raises(ModelError, match="was trained with another vision_tower than this plan's"):
        train("llava", plan, tmp_path / "out")
    with pytest.raises(ModelError, match="was trained for parts"):
        train(
            "difflmm", plan_for("difflmm", parts, pairs, stage=2, projector=str(projectors["llava"])), tmp_path / "out"
        )
    with pytest.raises(ModelError, match="is no folder of a finished stage 1"):
        train("llava", plan_for("llava", parts, pairs, stage=2, projector=str(tmp_path)), tmp_path / "out")


def test_a_loss_that_is_no_number_ends_it(parts, pairs, tmp_path):
    plan = plan_for("llava", parts, pairs, learning_rate=1e30, steps=6, warmup=0.0)
    with pytest.raises(ModelError, match="The loss is no number at step"):
        train("llava", plan, tmp_path / "one")


def test_a_whole_model_goes_on_from_where_it_was(pairs, tmp_path):
    plan = plan_of(**pairs, model="lab/llava", stage=2, prompt="conversation", steps=2)
    train("llava", plan, tmp_path / "one")
    assert probe.load_model(tmp_path / "one").family.name == "llava"
    with pytest.raises(ModelError, match="model='lab/llava' is a llava, not a difflmm"):
        train("difflmm", plan, tmp_path / "two")
