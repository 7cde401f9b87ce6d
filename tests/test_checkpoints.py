"""Checkpoints that cannot be compared or are incomplete: each is named in one line before any model is scored."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from probe.checkpoints import Checkpoint, find_checkpoints, lab_checkpoints
from probe.errors import CertificateError, InputError, ModelError
from probe.evaluation.lab import read_lab
from probe.lab.llava import MODELS
from probe.training_curves import emergence
from tests.tiny import tiny_llava


def _save(folder, **options):
    subject = tiny_llava(**options)
    subject.model.save_pretrained(folder)
    subject.processor.save_pretrained(folder)


def _edit(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def run_folder(tmp_path):
    for step in (5, 20):
        _save(tmp_path / f"step-{step}", seed=step)
    return tmp_path


def _without_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"what Trainer writes beside them")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda at: _save(at, head_dim=16), InputError, r"step-20' has another shape .*head_dim is 16 instead of 8"),
        (_without_weights, ModelError, r"step-20' holds no weights"),
        (
            lambda at: (at / "processor_config.json").unlink(),
            ModelError,
            r"step-20' holds no processor.*processing_class",
        ),
        (
            lambda at: _edit(at, lambda w: w.pop(min(w))),
            InputError,
            r"step-20' has other weights .* is missing instead of",
        ),
        (
            lambda at: _edit(at, lambda w: w.update(extra=torch.ones(2, 3))),
            InputError,
            r"other weights .*extra is 2 x 3 instead of missing",
        ),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_loaded(run_folder, spoil, error, message):
    found = find_checkpoints(run_folder / "step-*")
    assert [one.step for one in found] == [5, 20]
    spoil(run_folder / "step-20")
    with pytest.raises(error, match=message):
        find_checkpoints(run_folder / "step-*")


@pytest.fixture
def lab_folder(tmp_path):
    shutil.copytree(MODELS["lab/llava"], tmp_path / "lab")
    return tmp_path / "lab"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        # Such a gap would be filled with random numbers, and drawn as a checkpoint.
        (
            lambda at: _edit(at / "snapshots/step-00200", lambda w: w.pop(min(w))),
            InputError,
            r"step-00200' has other weights .* is missing instead of",
        ),
        (
            lambda at: (at / "snapshots/step-00200/model.safetensors").write_bytes(b""),
            ModelError,
            r"step-00200/model.safetensors' cannot be read",
        ),
        (lambda at: (at / "training.json").write_text("[]"), ModelError, r"training.json' is not what a lab training"),
        (lambda at: (at / "training.json").write_text('{"steps": 9}'), ModelError, r"KeyError: 'model'"),
        (lambda at: (at / "model.safetensors").unlink(), ModelError, r"lab' holds no weights"),
    ],
)
def test_a_lab_training_that_is_not_whole(lab_folder, spoil, error, message):
    assert [one.step for one in lab_checkpoints(lab_folder)] == [0, 100, 200, 400, 800, 2500]
    spoil(lab_folder)
    with pytest.raises(error, match=message):
        lab_checkpoints(lab_folder)


def test_each_step_of_a_lab_training_is_its_own_model(lab_folder):
    found = {one.step: one.load().model for one in lab_checkpoints(lab_folder) if one.step in (0, 200, 2500)}
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    for step, folder in ((200, lab_folder / "snapshots/step-00200"), (2500, lab_folder)):
        kept = load_file(folder / "model.safetensors")
        [saved] = [
            kept[key] for key in kept if "language_model" in key and key.endswith("layers.0.self_attn.q_proj.weight")
        ]
        assert torch.equal(found[step].state_dict()[name], saved.float())
    assert not torch.equal(found[0].state_dict()[name], found[200].state_dict()[name])
    half = lab_checkpoints(lab_folder, dtype="bfloat16")[0].load().model
    assert {one.dtype for one in half.parameters()} == {torch.bfloat16}


def test_a_place_to_run_that_is_not_there_is_one_line():
    for options, message in (
        ({"device": "nowhere"}, "cannot be used here"),
        ({"dtype": "int8"}, "no.* floating-point"),
    ):
        with pytest.raises(ModelError, match=message):
            lab_checkpoints("lab/llava", **options)[0].load()


def test_a_checkpoint_that_diverged_is_named():
    def load():
        subject = tiny_llava()
        for one in subject.model.model.language_model.parameters():
            one.data.fill_(float("nan"))
        return subject

    with pytest.raises(CertificateError, match=r"^step 7: "):
        emergence([Checkpoint(7, "step 7", load)], read_lab(limit=1), replicates=5)
