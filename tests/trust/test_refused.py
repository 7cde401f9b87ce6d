"""R5: what cannot be recorded truthfully is a typed error before the model runs, in every family, and never an empty record."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import probe
from probe.capture.encoders import EncoderRecorder
from probe.capture.geometry import encoder_inputs
from probe.capture.modules import attention_modules, encoder_modules
from probe.errors import CaptureError, InputError, ProbeError
from probe.models import load_model
from probe.tiny import tiny_model
from tests.capture.families import LANGUAGE, batch_of
from tests.tiny import picture
from tests.tiny_diffusion import tiny_sd
from tests.tiny_transformers import tiny_flux, tiny_pixart, tiny_sd3

TARGET = "0 that ran first, gave None or gave an empty record"
ENCODERS = ["clip", "siglip", "siglip2", "dinov2", "dinov3", "vit", "blip_2_vision"]


def _kernel(name):
    def change(subject, inputs):
        for _, module in attention_modules(subject.model, subject.family):
            module.config._attn_implementation = name

    return change


def _compile_layer(subject, inputs):
    attention_modules(subject.model, subject.family)[-1][1].compile(backend="eager")


def _compile_forward(subject, inputs):
    subject.model.forward = torch.compile(subject.model.forward, backend="eager")


def _layers(subject, inputs):
    config = subject.model.config.get_text_config()
    config.num_hidden_layers += 1
    if getattr(config, "cross_attention_layers", None):
        config.cross_attention_layers = [*config.cross_attention_layers, 2]


def _more_placeholders(subject, inputs):
    token = torch.full((1, 1), subject.model.config.image_token_id)
    for name, one in list(inputs.items()):
        if isinstance(one, torch.Tensor) and one.ndim == 2 and one.shape == inputs["input_ids"].shape:
            inputs[name] = torch.cat([one, token if name == "input_ids" else torch.ones_like(one[:, :1])], dim=1)


def _without_ids(subject, inputs):
    inputs["inputs_embeds"] = subject.model.get_input_embeddings()(inputs.pop("input_ids"))


#: What is changed about the model or its inputs before the context -> options of generate.
REQUESTS = {
    "compiled layer": (_compile_layer, {}),
    "compiled forward": (_compile_forward, {}),
    "flex attention": (_kernel("flex_attention"), {}),
    "paged attention": (_kernel("paged|sdpa"), {}),
    "layers that are not there": (_layers, {}),
    "too many placeholders": (_more_placeholders, {}),
    "embeddings instead of ids": (_without_ids, {}),
    "no picture": (lambda subject, inputs: inputs.pop("pixel_values"), {}),
    "videos": (lambda subject, inputs: inputs.update(pixel_values_videos=torch.zeros(1)), {}),
    "beams": (None, {"num_beams": 2}),
    "no cache": (None, {"use_cache": False}),
    "paged cache": (None, {"cache_implementation": "paged"}),
    "contrastive search": (None, {"penalty_alpha": 0.6, "top_k": 4}),
    "lookup of the prompt": (None, {"prompt_lookup_num_tokens": 2}),
    "guidance": (None, {"guidance_scale": 1.5}),
}


def _judge(refused, act, ran, what):
    """Count a request: the typed error that it ends in, which says something, before the model ran."""
    try:
        found = act()
    except (CaptureError, InputError) as error:
        refused.trial(not ran and len(str(error)) > 40, what=f"{what}: ran first, or says little: {error}")
    except Exception as error:
        refused.trial(False, what=f"{what}: {type(error).__name__}: {error}")
    else:
        refused.trial(False, silent=True, what=f"{what}: {found!r}")


@pytest.mark.promises("R5")
@pytest.mark.parametrize("name", [*LANGUAGE, "difflmm"])
def test_a_language_model_that_cannot_be_followed_is_refused_before_it_runs(name, line):
    refused = line("R5", target=TARGET)
    for request, (change, options) in REQUESTS.items():
        subject, ran = tiny_model(name), []
        inputs = batch_of(subject, [([picture(60, 90)], "a dog")])
        if change is not None:
            change(subject, inputs)
        subject.model.get_decoder().register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        kept = []

        def act(subject=subject, inputs=inputs, options=options, kept=kept):
            with probe.record(subject) as recorder:
                kept.append(recorder)
                subject.model.generate(**inputs, max_new_tokens=2, do_sample=False, **options)
            return recorder.result()

        _judge(refused, act, ran, f"{name}: {request}")
        if kept:
            _judge(refused, kept[0].result, ran, f"{name}: the result after {request}")
    refused.settle()


def _wrappers(subject):
    yield "compiled", lambda: torch.compile(subject.model, backend="eager")
    yield "copies on parts of a batch", lambda: nn.DataParallel(subject.model)


@pytest.mark.promises("R5")
@pytest.mark.parametrize("name", [*LANGUAGE, "difflmm", *ENCODERS, "blip_2", "instructblip"])
def test_what_holds_a_model_is_refused(name, line):
    refused, subject, ran = line("R5", target=TARGET), tiny_model(name), []
    subject.model.register_forward_pre_hook(lambda *_: ran.append(1))
    for what, wrap in _wrappers(subject):
        held = wrap()
        for take in (probe.record, load_model):
            _judge(refused, lambda take=take, held=held: take(held, subject.processor), ran, f"{name}: {what}")
    for options in ({"layers": 99}, {"heads": [0, 0]}, {"layers": []}, {"verify": "some"}):
        _judge(refused, lambda options=options: probe.record(subject, **options), ran, f"{name}: {options}")
    refused.settle()


@pytest.mark.promises("R5")
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_that_cannot_be_watched_is_refused(name, line):
    refused = line("R5", target=TARGET)
    for what in ("compiled", "words", "a patch that is not there"):
        subject, ran = tiny_model(name), []
        if what == "compiled":
            encoder_modules(subject.model)[0][1].compile(backend="eager")
        queries = {"words": "answer", "a patch that is not there": [10_000]}.get(what, [0])

        def act(subject=subject, queries=queries):
            with EncoderRecorder(subject.model, subject.processor, queries=queries) as recorder, torch.inference_mode():
                recorder.tower(**encoder_inputs(subject.processor, picture(), subject.model))
            return recorder.result()

        encoder_modules(subject.model)[0][1].register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        _judge(refused, act, ran, f"{name}: {what}")
    refused.settle()


@pytest.mark.promises("R5")
@pytest.mark.parametrize("make", [tiny_sd, tiny_pixart, tiny_sd3, tiny_flux])
def test_a_pipeline_that_cannot_be_followed_is_refused(make, line):
    refused = line("R5", target=TARGET)
    for what in ("compiled", "place", "layers", "timesteps", "heads"):
        pipeline, ran = make(), []
        part = "unet" if make is tiny_sd else "transformer"
        getattr(pipeline, part).register_forward_pre_hook(lambda *_, ran=ran: ran.append(1), with_kwargs=False)
        options = {"place": {"place": "elsewhere"}, "layers": {"layers": [99]}, "heads": {"heads": [99]}}
        options |= {"timesteps": {"timesteps": "some"}}
        if what == "compiled":
            setattr(pipeline, part, torch.compile(getattr(pipeline, part), backend="eager"))
        act = partial(probe.record, pipeline, **options.get(what, {}))
        _judge(refused, act, ran, f"{make.__name__} {what}")
    refused.settle()


@pytest.mark.promises("R5")
@pytest.mark.parametrize("kernel", ["rounds to 8 bits", "is no softmax", "gives another shape"])
def test_a_kernel_that_is_not_understood_gives_no_record(kernel, line, full):
    # It was told of by nobody, so what it does is known when it has done it: the certificate is the refusal.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    refused = line("R5", target=TARGET)

    def other(module, query, key, value, mask, **options):
        if kernel == "rounds to 8 bits":
            query, key = ((one * 16).round().clamp(-128, 127).to(torch.int8).to(one.dtype) / 16 for one in (query, key))
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **options)
        if kernel == "is no softmax":
            output = output.tanh()
        return (output[..., None] if kernel == "gives another shape" else output), None

    AttentionInterface.register("users_other", other)
    AttentionMaskInterface.register("users_other", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        for name in LANGUAGE if full else ["llava", "qwen2_vl", "gemma3", "mllama"]:
            subject = tiny_model(name)
            inputs = batch_of(subject, [([picture(60, 90)], "a dog")])
            subject.model.set_attn_implementation({"text_config": "users_other"})
            try:
                with probe.record(subject) as recorder:
                    subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
                found = recorder.result()
            except ProbeError as error:
                refused.trial(len(str(error)) > 40, what=error)
            else:
                refused.trial(False, silent=True, what=f"{name}: {found!r}")
    finally:
        for table in (AttentionInterface, AttentionMaskInterface):
            table._global_mapping.pop("users_other", None)
    refused.settle()
