"""`check` passes on models that are recorded truthfully, and each planted fault fails the question that asks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probe.capture import checks, painting, passes, reduce
from probe.capture import recorder as recorder_module
from probe.capture.checks import check
from probe.capture.geometry import preparation_of
from probe.capture.hooks import hook_tables
from probe.capture.recorder import Recorder
from probe.capture.weights import attention_rows
from probe.errors import FileError
from tests.tiny import picture, tiny_llava

QUESTIONS = {
    "state restored",
    "certificate",
    "eager parity",
    "bit-identical output",
    "geometry",
    "generate equals one pass",
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _failed(report):
    assert {one.name for one in report.results} == QUESTIONS
    return {one.name for one in report.results if not one.passed}


@pytest.mark.parametrize("image", [None, (40, 56), (90, 60), (11, 9)], ids=str)
@pytest.mark.parametrize("preparation", ["crop", "pad", "squash"])
def test_a_truthful_recording_passes_whatever_the_image(preparation, image):
    report = check(tiny_llava(preparation=preparation), image=image and picture(*image))
    assert _failed(report) == set(), report
    assert report.passed
    assert (report.family, report.kernel, report.dtype) == ("llava", "sdpa", "float32")


@pytest.mark.parametrize(
    "options",
    [{"attention": "eager"}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"text": "mistral"}],
    ids=str,
)
def test_other_kernels_number_types_and_language_models_pass(options):
    subject = tiny_llava(**options)
    used = subject.model.get_decoder().config._attn_implementation
    report = check(subject)
    assert _failed(report) == set(), report
    assert report.kernel == options.get("attention", "sdpa")
    # The eager reference has been taken back.
    assert subject.model.get_decoder().config._attn_implementation == used
    hooks = hook_tables(subject.model)
    check(subject)
    assert hook_tables(subject.model) == hooks


def test_the_report_is_plain_data():
    found = check(tiny_llava()).to_dict()
    assert found["passed"] is True
    assert [one["name"] for one in found["results"]][:2] == ["state restored", "certificate"]
    assert all(set(one) == {"name", "passed", "found", "allowed", "number"} for one in found["results"])


def test_missing_scale_fails_what_reads_weights_and_nothing_else(monkeypatch):
    def unscaled(module, call, *, rows, heads):
        return attention_rows(module, replace(call, options=call.options | {"scaling": 1.0}), rows=rows, heads=heads)

    monkeypatch.setattr(recorder_module, "attention_rows", unscaled)
    report = check(tiny_llava())
    assert not report.passed
    assert _failed(report) == {"certificate", "eager parity"}
    assert "does not rebuild" in next(one.found for one in report.results if one.name == "certificate")
    assert float(next(one.found for one in report.results if one.name == "eager parity")) > 0.01


def test_columns_of_the_neighbouring_patches_fail_parity_alone(monkeypatch):
    # The weights are right and only kept in the wrong place, which no certificate can see.
    real = reduce._columns_on
    shifted = lambda layout, device: [slice(one.start + 1, one.stop + 1) for one in real(layout, device)]  # noqa: E731
    monkeypatch.setattr(reduce, "_columns_on", shifted)
    assert _failed(check(tiny_llava())) == {"eager parity"}


@pytest.mark.parametrize("off", [(0.0, 1.0), (-1.0, 0.0), (8.0, 0.0)])
@pytest.mark.parametrize("preparation", ["crop", "pad", "squash"])
def test_geometry_off_by_one_pixel_of_the_processed_picture_fails(monkeypatch, preparation, off):
    def wrong(processor, size, *, family):
        right = preparation_of(processor, size, family=family)
        return replace(right, offset=(right.offset[0] + off[0], right.offset[1] + off[1]))

    monkeypatch.setattr(painting, "preparation_of", wrong)
    # Patches of 8 pixels on 64 leave room for whole ones inside, whatever the border loses.
    report = check(tiny_llava(preparation=preparation, size=64))
    assert _failed(report) == {"geometry"}, report


def test_rows_and_columns_exchanged_fail_geometry(monkeypatch):
    def wrong(processor, size, *, family):
        right = preparation_of(processor, size[::-1], family=family)
        return replace(right, image_size=size)

    monkeypatch.setattr(painting, "preparation_of", wrong)
    assert _failed(check(tiny_llava(preparation="crop"))) == {"geometry"}


def test_geometry_says_when_an_image_has_no_whole_patch():
    report = check(tiny_llava(preparation="pad"), image=np.zeros((30, 300, 3), np.uint8))
    assert _failed(report) == {"geometry"}
    assert "30 x 300 pixels" in next(one.found for one in report.results if one.name == "geometry")


def test_a_recorder_that_changes_the_output_fails(monkeypatch):
    real = Recorder._see

    def noisy(self, module, call):
        real(self, module, call)
        call.output.add_(1e-3)

    monkeypatch.setattr(Recorder, "_see", noisy)
    failed = _failed(check(tiny_llava()))
    assert "bit-identical output" in failed
    assert "state restored" not in failed


def test_a_hook_that_is_left_on_the_model_fails(monkeypatch):
    real = Recorder.__enter__

    def forgetful(self):
        self.model.get_decoder().layers[0].register_forward_hook(lambda *a: None)
        return real(self)

    monkeypatch.setattr(Recorder, "__enter__", forgetful)
    report = check(tiny_llava())
    assert _failed(report) == {"state restored"}
    assert report.results[0].found == "changed: hooks"


@pytest.mark.parametrize(
    ("leave", "found"),
    [
        (lambda model: setattr(model, "_left", 1), "attributes"),
        (lambda model: model.get_decoder().layers[1].train(), "modes"),
        (lambda model: setattr(model.config, "left", 1), "configuration"),
    ],
)
def test_what_is_left_once_and_for_all_fails(monkeypatch, leave, found):
    # Set by the first recording, so that a look before the second would not see it change.
    real = Recorder.__enter__

    def forgetful(self):
        leave(self.model)
        return real(self)

    monkeypatch.setattr(Recorder, "__enter__", forgetful)
    report = check(tiny_llava())
    assert "state restored" in _failed(report)
    assert found in report.results[0].found


def test_a_cache_that_is_read_differently_fails(monkeypatch):
    def other(subject, seen, prompt, *, answer, **options):
        return passes.read_and_record(subject, seen, prompt + " a", answer=answer, **options)

    monkeypatch.setattr(checks, "read_and_record", other)
    assert _failed(check(tiny_llava())) == {"generate equals one pass"}


def test_a_layer_that_runs_unseen_is_a_failed_check_and_no_crash():
    subject = tiny_llava()
    layer = subject.model.get_decoder().layers[1].self_attn
    layer.forward = lambda hidden_states, **options: (torch.zeros_like(hidden_states), None)
    report = check(subject)
    assert not report.passed
    assert [one.name for one in report.results] == ["recording"]
    assert "layers.1.self_attn" in report.results[0].found


def test_an_image_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        check(tiny_llava(), image=tmp_path / "none.png")
