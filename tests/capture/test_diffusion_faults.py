"""Faults that recorders of U-Nets really had, planted one at a time, and every way to ask for what cannot be recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as by_name

import probe
from probe.capture import conditioning, denoisers, diffusion
from probe.capture.diffusion import DiffusionRecorder
from probe.capture.unets import level_of, unet_attention
from probe.capture.weights import attention_rows
from probe.errors import CaptureError, CertificateError, InputError
from tests.capture.test_diffusion import generate, largest_difference
from tests.tiny_diffusion import LENGTH, heard, tiny_sd, tiny_sdxl, unet_inputs


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _difference(pipeline, **options):
    """How far a recording is from the plain maps of the conditional half."""
    with heard(pipeline.unet) as calls, DiffusionRecorder(pipeline, timesteps="all", **options) as recorder:
        generate(pipeline, steps=2)
    return largest_difference(recorder.result(), calls, pipeline, row=1)


MISREAD = {
    "missing scale": lambda call: replace(call, options=call.options | {"scaling": 1.0}),
    "transposed query and key": lambda call: replace(call, query=call.key, key=call.query),
    "queries of other heads": lambda call: replace(call, query=call.query.flip(1)),
    "keys of the other half": lambda call: replace(call, key=call.key.roll(1, dims=2)),
}


@pytest.mark.parametrize("verify", ["sample", "all"])
@pytest.mark.parametrize("name", MISREAD)
def test_a_misread_call_fails_its_certificate(name, verify, monkeypatch):
    # Self-attention has as many queries as keys, so that they can be mistaken for each other.
    pipeline = tiny_sd(seed=4)
    for place in ("self-attention",) if name.startswith("transposed") else ("self-attention", "cross-attention"):
        wrong = lambda module, call, **chosen: attention_rows(module, MISREAD[name](call), **chosen)  # noqa: E731
        monkeypatch.setattr(diffusion, "attention_rows", wrong)
        with DiffusionRecorder(pipeline, place=place, verify=verify) as recorder:
            generate(pipeline, steps=1)
        with pytest.raises(CertificateError, match=r"does not rebuild what the model computed: largest error .*attn"):
            recorder.result()
        monkeypatch.undo()
        with DiffusionRecorder(pipeline, place=place, verify=verify) as recorder:
            generate(pipeline, steps=1)
        assert recorder.result().certificate.passed


def test_swapped_heads_fail_the_certificate(monkeypatch):
    wrong = lambda *args, **chosen: attention_rows(*args, **chosen).flip(0)  # noqa: E731
    monkeypatch.setattr(diffusion, "attention_rows", wrong)
    with DiffusionRecorder(tiny := tiny_sd()) as recorder:
        generate(tiny, steps=1)
    with pytest.raises(CertificateError, match="does not rebuild"):
        recorder.result()


# What the kernel computed is right in these, but taken from the wrong place: no certificate can see it, the parity test must.


def test_parity_sees_keys_off_by_one(monkeypatch):
    pipeline, real = tiny_sd(seed=4), conditioning.prompt_keys

    def late(*args, **options):
        keys = real(*args, **options)
        return replace(keys, positions=(*keys.positions[1:], keys.positions[0]))

    monkeypatch.setattr(conditioning.PipelineConditioning, "_take_states", _unchecked)
    assert _difference(pipeline) <= 1e-6
    monkeypatch.setattr(conditioning, "prompt_keys", late)
    assert _difference(pipeline) > 1e-2


def _unchecked(self, output):
    self._halves = [output[1], output[0]]


def test_parity_sees_layers_given_each_others_maps(monkeypatch):
    pipeline, real = tiny_sd(seed=4), unet_attention

    def swapped(unet, place):
        found = real(unet, place)
        names = [name for name, _ in found]
        return [
            (name, module)
            for name, (_, module) in zip([*names[:3], names[4], names[3], *names[5:]], found, strict=True)
        ]

    monkeypatch.setattr(denoisers, "unet_attention", swapped)
    assert _difference(pipeline) > 1e-2


# Refused, each with what was found and what to do ---------------------------------------------------------------------------


def test_a_layer_that_is_not_seen_or_seen_twice_is_named():
    pipeline = tiny_sd()
    module = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    real = module.processor

    def hidden(attn, states, *args, **kwargs):
        return by_name(states[:, None], states[:, None], states[:, None])[:, 0]

    def twice(*args, **kwargs):
        real(*args, **kwargs)
        return real(*args, **kwargs)

    for processor, count in ((hidden, 0), (twice, 2)):
        module.processor = processor
        with (
            pytest.raises(
                CaptureError, match=rf"1 of 7 .* first mid_block\S+attn2 \({count} times\).*not go through torch"
            ),
            DiffusionRecorder(pipeline) as recorder,
        ):
            generate(pipeline, steps=1)
        with pytest.raises(CaptureError, match=r"Nothing was recorded|did not come to its end"):
            recorder.result()
    # Where only others are asked for, it does not matter.
    with DiffusionRecorder(pipeline, layers="up_blocks.1") as recorder:
        generate(pipeline, steps=1)
    assert len(recorder.result().layers) == 2


def test_attention_that_cannot_be_seen_is_refused_before_anything_runs():
    from diffusers.models.attention_processor import AttnProcessor

    pipeline = tiny_sd()
    for change, name in (
        (lambda: pipeline.enable_attention_slicing(1), "SlicedAttnProcessor"),
        (lambda: pipeline.unet.set_attn_processor(AttnProcessor()), "AttnProcessor"),
    ):
        change()
        with pytest.raises(CaptureError, match=rf"down_blocks\S+ uses {name}, .*call unet.set_attn_processor"):
            probe.record(pipeline)
    compiled = tiny_sd()
    compiled.unet = torch.compile(compiled.unet, backend="eager")
    with pytest.raises(CaptureError, match=r"compiled by torch\.compile"):
        probe.record(compiled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [99]}, "layer 99 does not exist: there are 7, numbered 0 to 6"),
        ({"layers": "up_blocks.7"}, r"No block 'up_blocks.7' with cross-attention layers.*down_blocks.0, .*mid_block"),
        ({"layers": ["mid_block", "down_block"]}, r"No block 'down_block'.*Did you mean 'down_blocks"),
        ({"layers": "down_blocks.2"}, "No block 'down_blocks.2'"),
        ({"heads": [2]}, r"down_blocks\S+attn2: head 2 does not exist: there are 2"),
        ({"timesteps": "last"}, "timesteps must be one of 'mean', 'all'; found 'last'"),
        ({"guidance": "both"}, "guidance must be one of 'conditional', 'unconditional'"),
        ({"verify": True}, "verify must be one of"),
        ({"place": "language model"}, r"place='language model' is not in .* 'cross-attention', 'self-attention'"),
        ({"place": "cross attention"}, "Did you mean 'cross-attention'"),
        ({"patches": [(0, 0)]}, "patches= is no option of place 'cross-attention'"),
        ({"query_row": "own"}, "query_row= is no option of place 'cross-attention', which takes timesteps, guidance"),
        ({"place": "self-attention", "patches": [(0, 0), (0, 0)]}, r"patches must be different \(row, col\) latents"),
        ({"place": "self-attention", "patches": [(-1, 0)]}, r"patches must be different \(row, col\) latents"),
        ({"place": "self-attention", "patches": [3]}, r"patches must be different \(row, col\) latents"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused_before_anything_runs(options, message):
    with pytest.raises(InputError, match=message):
        probe.record(tiny_sd(), **options)


@pytest.mark.parametrize(
    ("recording", "given", "message"),
    [
        ({}, {"prompt": "a " * (LENGTH - 1)}, rf"has {LENGTH + 1} tokens with start and end, but the text encoder takes {LENGTH}"),
        ({}, {"prompt": ["a", "red"]}, "prompt holds 2 texts"),
        ({}, {"prompt": "  "}, "holds no word to look for"),
        ({}, {"num_images_per_prompt": 2}, "num_images_per_prompt=2: one image at a time"),
        ({"guidance": "unconditional"}, {"guidance_scale": 1.0}, "the pipeline does not guide .*no such half"),
        ({"guidance": "unconditional"}, {"negative_prompt": "a " * LENGTH}, "shorten it"),
        ({}, {"prompt": None, "prompt_embeds": torch.zeros(1, LENGTH, 16)}, "prompt_embeds was given.*give prompt as text"),
    ],
    ids=str,
)  # fmt: skip
def test_calls_that_cannot_be_followed_are_refused_before_anything_is_computed(recording, given, message):
    pipeline, ran = tiny_sd(), []
    handles = [
        one.register_forward_pre_hook(lambda module, args: ran.append(module))
        for one in (pipeline.unet, pipeline.text_encoder, pipeline.vae)
    ]
    call = {"prompt": "a red circle"} | given
    if "prompt_embeds" in given:
        call["negative_prompt_embeds"] = given["prompt_embeds"]
    with pytest.raises(InputError, match=message), probe.record(pipeline, **recording) as recorder:
        generate(pipeline, call.pop("prompt"), steps=1, **call)
    assert not ran
    with pytest.raises(CaptureError, match="Nothing was recorded"):
        recorder.result()
    for one in handles:
        one.remove()


def test_two_texts_behind_one_key_are_refused():
    pipeline = tiny_sdxl()
    with pytest.raises(InputError, match="prompt_2 differs from prompt"), probe.record(pipeline):
        generate(pipeline, prompt_2="two blue squares", steps=1)
    with (
        pytest.raises(InputError, match="by zeros, which are no words"),
        probe.record(pipeline, guidance="unconditional"),
    ):
        generate(pipeline, steps=1)
    # The same text twice is one text.
    with probe.record(pipeline) as recorder:
        generate(pipeline, prompt_2="a red circle", steps=1)
    assert recorder.result()["red circle"].tokens == ("red", "circle")


def test_text_states_that_the_pipeline_did_not_make_are_refused():
    pipeline = tiny_sd()

    def change(pipeline, step, timestep, kept):
        return {"prompt_embeds": kept["prompt_embeds"].flip(0)}

    with (
        pytest.raises(
            CaptureError, match=r"shape \(2, 20, 16\) that are not the 2 that the pipeline made of the prompt"
        ),
        probe.record(pipeline),
    ):
        generate(pipeline, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with (
        pytest.raises(CaptureError, match="before the pipeline had encoded a prompt"),
        torch.no_grad(),
        probe.record(pipeline),
    ):
        pipeline.unet(**unet_inputs(pipeline))


def test_token_ids_that_the_text_encoder_was_not_given_are_refused(monkeypatch):
    pipeline, real = tiny_sd(), conditioning.prompt_keys
    wrong = lambda *args, **options: replace(keys := real(*args, **options), token_ids=keys.token_ids[::-1])  # noqa: E731
    monkeypatch.setattr(conditioning, "prompt_keys", wrong)
    with pytest.raises(CaptureError, match="given other token ids"), probe.record(pipeline):
        generate(pipeline, steps=1)


def test_a_patch_outside_the_latents_is_refused():
    pipeline = tiny_sd(size=(8, 6))
    with (
        pytest.raises(InputError, match=r"\(0, 6\) does not exist in latents of 8 rows and 6 cols"),
        probe.record(pipeline, place="self-attention", patches=[(0, 6)]),
    ):
        generate(pipeline, steps=1)


def test_one_recorder_holds_one_call():
    pipeline = tiny_sd()
    with probe.record(pipeline) as recorder:
        generate(pipeline, steps=1)
        first = recorder.result()
        with pytest.raises(CaptureError, match="already holds one pass"):
            generate(pipeline, steps=1)
    again = recorder.result()
    assert torch.equal(first.layers[0].values, again.layers[0].values)
    with pytest.raises(InputError, match=r"has \(20, 20\) pixels .* but \(32, 32\) were generated"):
        recorder.result(image=torch.zeros(20, 20, 3, dtype=torch.uint8).numpy())
    with probe.record(pipeline) as empty:
        pass
    with pytest.raises(CaptureError, match="Nothing was recorded"):
        empty.result()


def test_a_unet_that_is_not_built_as_it_says_is_refused():
    pipeline = tiny_sd()
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2 = torch.nn.Identity()
    with pytest.raises(CaptureError, match="states 7 cross-attention layers but 6 were found"):
        probe.record(pipeline)
    with pytest.raises(CaptureError, match="A layer has 7 queries, which is no halving of latents of 8 x 8"):
        level_of(7, (8, 8))


@pytest.mark.parametrize("verify", ["sample", "off"])
def test_numbers_that_are_none_are_refused(verify):
    pipeline = tiny_sd()
    with torch.no_grad():
        pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight[:] = torch.nan
    with probe.record(pipeline, verify=verify) as recorder:
        generate(pipeline, steps=1)
    with pytest.raises(CaptureError, match="the denoiser itself computes NaN"):
        recorder.result()
