"""Faults that recorders of diffusion transformers could have, planted one at a time, and what cannot be recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import probe
from probe.capture import diffusion
from probe.capture.denoising import noise_and_record
from probe.capture.diffusion import DiffusionRecorder
from probe.capture.readings import Reading
from probe.capture.weights import attention_rows
from probe.errors import CaptureError, CertificateError, InputError
from tests.capture.test_transformers import expected
from tests.names import shown
from tests.tiny import picture
from tests.tiny_diffusion import heard
from tests.tiny_transformers import PIPELINES, T5_LENGTH, generate, plain_maps, tiny_flux, tiny_pixart, tiny_sd3

ONE_EACH = ["pixart", "sd3.5", "flux"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


MISREAD = {
    "missing scale": lambda call: replace(call, options=call.options | {"scaling": 1.0}),
    "queries of other heads": lambda call: replace(call, query=call.query.flip(1)),
    "keys off by one": lambda call: replace(call, key=call.key.roll(1, dims=2)),
}


@pytest.mark.parametrize("fault", MISREAD)
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_misread_call_fails_its_certificate(name, fault, monkeypatch):
    wrong = lambda module, call, **chosen: attention_rows(module, MISREAD[fault](call), **chosen)  # noqa: E731
    monkeypatch.setattr(diffusion, "attention_rows", wrong)
    pipeline = PIPELINES[name](seed=4)
    with DiffusionRecorder(pipeline) as recorder:
        generate(pipeline)
    with pytest.raises(CertificateError, match="does not rebuild what the model computed"):
        recorder.result()


@pytest.mark.parametrize("name", ["sd3.5", "flux"])
@pytest.mark.parametrize("place", ["image to text", "text to image"])
def test_parity_sees_words_and_patches_taken_for_each_other(name, place, monkeypatch):
    # No certificate can see it: what the kernel computed is right, but read from the wrong side.
    pipeline, real = PIPELINES[name](seed=4), Reading.sides

    def difference():
        with heard(pipeline.transformer) as calls, probe.record(pipeline, place=place, timesteps="all") as recorder:
            generate(pipeline)
        [first, _] = plain_maps(pipeline, calls)
        layer = recorder.result().layers[0]
        by_hand = expected(name, place, first[layer.name][-1])
        return float((layer.values[0].flatten(2) - by_hand).abs().max())

    assert difference() <= 1e-6
    turned = lambda self, **given: real(self, **given | {"text_first": not given["text_first"]})  # noqa: E731
    monkeypatch.setattr(Reading, "sides", turned)
    assert difference() > 1e-2


# Refused, each with what was found and what to do -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "recording", "given", "message"),
    [
        (tiny_sd3, {}, {"prompt_3": "two blue squares"}, "prompt_3 differs from prompt"),
        (tiny_flux, {}, {"prompt_2": "two blue squares"}, "prompt_2 differs from prompt"),
        (tiny_sd3, {}, {"prompt": "a " * 40}, "shorten it"),
        (tiny_flux, {}, {"prompt": "a " * T5_LENGTH}, f"has {T5_LENGTH + 1} tokens .* takes {T5_LENGTH}"),
        (tiny_pixart, {}, {"prompt": ["a", "red"]}, "prompt holds 2 texts"),
        (tiny_flux, {}, {"num_images_per_prompt": 2}, "one image at a time"),
        (tiny_sd3, {"guidance": "unconditional"}, {"guidance_scale": 1.0}, "does not guide .*no such half"),
        (tiny_flux, {"guidance": "unconditional"}, {"negative_prompt": "blue"}, "does not guide .*true_cfg_scale"),
        (
            tiny_flux, {}, {"negative_prompt": "a red circle", "true_cfg_scale": 2.0},
            "negative_prompt is the same text as prompt",
        ),
    ],
    ids=shown,
)  # fmt: skip
def test_calls_that_cannot_be_followed_are_refused_before_the_transformer_runs(make, recording, given, message):
    pipeline, ran = make(), []
    inner = pipeline.transformer.transformer_blocks[0]
    inner.register_forward_pre_hook(lambda module, args, kwargs: ran.append(module), with_kwargs=True)
    call = {"prompt": "a red circle"} | given
    with pytest.raises(InputError, match=message), probe.record(pipeline, **recording) as recorder:
        generate(pipeline, call.pop("prompt"), **call)
    assert not ran
    with pytest.raises(CaptureError, match="Nothing was recorded"):
        recorder.result()


def test_a_picture_that_is_resized_after_it_was_made_is_refused():
    pipeline = tiny_pixart(size=32)
    with (
        pytest.raises(InputError, match=r"a picture of \(256, 256\) pixels .* resize it to \(128, 128\)"),
        probe.record(pipeline),
    ):
        generate(pipeline, use_resolution_binning=True)


def test_guidance_that_skips_layers_is_refused_by_name():
    pipeline = tiny_sd3()
    with pytest.raises(CaptureError, match="skip_guidance_layers"), probe.record(pipeline):
        generate(
            pipeline, steps=4, skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
        )


def test_attention_that_cannot_be_seen_is_refused_before_anything_runs():
    from diffusers.models.attention_processor import AttnProcessor

    pipeline = tiny_pixart()
    pipeline.transformer.set_attn_processor(AttnProcessor())
    with pytest.raises(
        CaptureError, match=r"transformer_blocks\.0\.attn2 uses AttnProcessor, whose attention cannot be seen"
    ):
        probe.record(pipeline)
    pipeline = tiny_flux()
    pipeline.transformer.transformer_blocks[1].attn.processor._attention_backend = "flash"
    with pytest.raises(CaptureError, match=r"blocks\.1\.attn computes attention with the backend 'flash'.*\"native\""):
        probe.record(pipeline)
    pipeline = tiny_sd3()
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    with pytest.raises(CaptureError, match=r"compiled by torch\.compile"):
        probe.record(pipeline)
    pipeline = tiny_sd3()
    pipeline.transformer.transformer_blocks[2].attn = torch.nn.Identity()
    with pytest.raises(CaptureError, match="states 3 image to text layers but 2 were found"):
        probe.record(pipeline)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tiny_sd3, {"place": "cross-attention"}, "'image to text', 'text to image', 'image to image'"),
        (tiny_pixart, {"place": "image to text"}, "'cross-attention', 'self-attention'"),
        (tiny_flux, {"place": "text to image", "patches": [(0, 0)]}, "patches= is no option of place 'text to image'"),
        (tiny_flux, {"layers": [4]}, "layer 4 does not exist: there are 4"),
        (tiny_flux, {"layers": "up_blocks"}, "No block 'up_blocks' with image to text layers"),
        (tiny_sd3, {"heads": [2]}, "head 2 does not exist"),
    ],
    ids=shown,
)
def test_what_does_not_exist_is_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        probe.record(make(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "1 to 1000; they are not negative, and at 0 there is no noise"),
        ({"timesteps": 1001}, "1 to 1000"),
        ({"timesteps": (300, 300)}, "more than once"),
        ({"place": "image to image", "patches": [(0, 4)]}, r"\(0, 4\) does not exist in patches of 4 rows and 4 cols"),
    ],
    ids=shown,
)
def test_bad_input_of_real_pictures_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        noise_and_record(probe.load_model(tiny_flux()), picture(), "a red circle", **options)


def test_a_scheduler_that_noises_otherwise_is_refused_by_name():
    from diffusers import DDIMScheduler

    pipeline = tiny_flux()
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(CaptureError, match=r"FluxPipeline was trained with flow matching, .* is a DDIMScheduler"):
        noise_and_record(probe.load_model(pipeline), picture(), "a red circle")


def test_patches_that_are_no_grid_are_refused():
    pipeline = tiny_flux()
    given = {}
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    generate(pipeline)
    handle.remove()
    given["img_ids"] = given["img_ids"] + torch.tensor([1.0, 0, 0])
    with torch.no_grad(), probe.record(pipeline):
        pipeline.encode_prompt("a red circle", max_sequence_length=T5_LENGTH)
        with pytest.raises(CaptureError, match="no grid of 4 x 4"):
            pipeline.transformer(**given)
