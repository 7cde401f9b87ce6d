"""`check` passes on image encoders and diffusion pipelines recorded truthfully, and a planted fault fails its own question."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import probe
from probe.capture import decomposition, denoising, diffusion, encoders, latent_painting, painting
from probe.capture.encoders import EncoderRecorder
from probe.capture.geometry import preparation_of
from probe.capture.weights import attention_rows
from tests.difflmm.tiny_difflmm import tiny_difflmm
from tests.tiny import tiny_clip, tiny_siglip
from tests.tiny_diffusion import tiny_sd, tiny_sdxl

ENCODER = {"state restored", "certificate", "eager parity", "bit-identical output", "geometry"}
DIFFUSION = {
    "state restored",
    "certificate",
    "parity with the plain processor",
    "bit-identical output",
    "same seed, same maps",
    "geometry",
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def failed(subject, questions):
    report = probe.check(subject)
    assert {one.name for one in report.results} == questions
    return {one.name for one in report.results if not one.passed}


@pytest.mark.parametrize(
    "options",
    [{}, {"preparation": "pad"}, {"attention": "eager"}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}],
    ids=str,
)
def test_clip_passes(options):
    subject = tiny_clip(**options)
    assert failed(subject, ENCODER | {"sum of contributions"}) == set()
    assert subject.model.vision_model.config._attn_implementation == options.get("attention", "sdpa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_siglip_passes(dtype):
    assert failed(tiny_siglip(dtype=dtype), ENCODER) == set()


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_pipelines_pass(make):
    assert failed(probe.load_model(make()), DIFFUSION) == set()


def test_a_difflmm_passes_with_its_unet():
    subject = probe.load_model(*tiny_difflmm())
    report = probe.check(subject)
    assert report.passed, report
    assert report.results[-1].name == "certificates of its U-Net"


def test_unscaled_weights_fail_what_reads_weights(monkeypatch):
    def unscaled(module, call, **options):
        return attention_rows(module, replace(call, options=call.options | {"scaling": 1.0}), **options)

    monkeypatch.setattr(encoders, "attention_rows", unscaled)
    assert failed(tiny_clip(), ENCODER | {"sum of contributions"}) == {"certificate", "eager parity"}


def test_a_geometry_off_by_one_pixel_fails(monkeypatch):
    def wrong(processor, size, *, family):
        right = preparation_of(processor, size, family=family)
        return replace(right, offset=(right.offset[0] + 1, right.offset[1]))

    monkeypatch.setattr(painting, "preparation_of", wrong)
    assert failed(tiny_clip(size=64), ENCODER | {"sum of contributions"}) == {"geometry"}


def test_a_prepared_picture_off_by_a_pixel_fails(monkeypatch):
    real = latent_painting.latent_preparation

    def wrong(*args):
        right = real(*args)
        return replace(right, offset=(right.offset[0], right.offset[1] + 1))

    monkeypatch.setattr(latent_painting, "latent_preparation", wrong)
    assert failed(probe.load_model(tiny_sd()), DIFFUSION) == {"geometry"}


def test_a_forgotten_term_fails_the_sum(monkeypatch):
    real = decomposition._direction
    monkeypatch.setattr(decomposition, "_direction", lambda *a: (real(*a)[0], real(*a)[1] + 0.1))
    assert failed(tiny_clip(), ENCODER | {"sum of contributions"}) == {"sum of contributions"}


def test_a_hook_that_is_left_fails(monkeypatch):
    real = EncoderRecorder.__enter__

    def forgetful(self):
        self.tower.register_forward_hook(lambda *a: None)
        return real(self)

    monkeypatch.setattr(EncoderRecorder, "__enter__", forgetful)
    assert failed(tiny_siglip(), ENCODER) == {"state restored"}


def test_noise_that_differs_fails_the_same_seed_alone(monkeypatch):
    monkeypatch.setattr(denoising, "draw_noise", lambda shape, **_: torch.randn(tuple(shape)))
    assert failed(probe.load_model(tiny_sd()), DIFFUSION) == {"same seed, same maps"}


def test_wrong_weights_of_a_unet_fail_certificate_and_parity(monkeypatch):
    real = diffusion.attention_rows
    monkeypatch.setattr(diffusion, "attention_rows", lambda *a, **k: real(*a, **k).flip(0))
    assert failed(probe.load_model(tiny_sd()), DIFFUSION) == {"certificate", "parity with the plain processor"}


def test_a_recorder_that_refuses_is_a_failed_check_and_no_crash():
    subject = tiny_clip()
    layer = subject.model.vision_model.encoder.layers[1].self_attn
    layer.forward = lambda hidden_states, **options: (torch.zeros_like(hidden_states), None)
    report = probe.check(subject)
    assert [one.name for one in report.results] == ["recording"]
    assert "layers.1.self_attn (0 times)" in report.results[0].found
