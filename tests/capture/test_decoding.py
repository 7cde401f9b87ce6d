"""Every way in which ``generate`` can decode and cache: recorded as the plain one is, or refused before the model runs."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import Cache, QuantizedLayer

import probe
from probe.errors import CaptureError, ProbeError
from tests.capture.families import batch_of
from tests.capture.plain import plain_softmax
from tests.capture.reference import inputs_of
from tests.capture.test_generation import _same
from tests.names import shown
from tests.tiny import picture, tiny_llava

LONG = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _recorded(subject, inputs, **options):
    with probe.record(subject, verify="all") as recorder:
        subject.model.generate(**inputs, **LONG | options)
    return recorder.result()


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 8},
        {"prefill_chunk_size": 7},  # the last chunk is shorter, and chunks end within the image
        {"output_attentions": True, "return_dict_in_generate": True},
        {"past_key_values": DynamicCache},
        {"logits_processor": [lambda ids, scores: scores]},
    ],
    ids=shown,
)
def test_ways_to_cache_and_to_prefill_change_nothing(options):
    subject = tiny_llava(seed=2)
    inputs = inputs_of(subject, picture())
    options = {name: one() if isinstance(one, type) else one for name, one in options.items()}
    if "prefill_chunk_size" in options and not hasattr(
        subject.model, "_prepare_multimodal_encoder_kwargs_for_generation"
    ):
        # Without a recorder such a release gives another answer than to the whole prompt.
        with pytest.raises(CaptureError, match="splits a prompt without its pictures in this release"):
            _recorded(subject, inputs, **options)
        return
    _same(_recorded(subject, inputs, **options), _recorded(subject, inputs), 2e-5)


ASKED = {
    "num_beams": (3, r"num_beams=3 cannot be followed: beams change .* read the answer that was found"),
    "assistant_model": ("x", r"assistant_model makes the model read tokens .* cannot be followed; record greedy"),
    "prompt_lookup_num_tokens": (2, r"prompt_lookup_num_tokens makes the model read tokens .* cannot be followed"),
    "assistant_early_exit": (2, r"assistant_early_exit makes the model read tokens .* cannot be followed"),
    "use_mtp": (True, r"use_mtp makes the model read tokens .* cannot be followed"),
    "penalty_alpha": (0.6, r"penalty_alpha \(contrastive search\) .* cannot be followed"),
    "dola_layers": ("high", r"dola_layers chooses tokens in a loop of its own, which cannot be followed"),
    "custom_generate": (print, r"custom_generate chooses tokens in a loop of its own, which cannot be followed"),
    "constraints": ([1], r"constraints searches beams"),
    "force_words_ids": ([[5]], r"force_words_ids searches beams"),
    "guidance_scale": (1.5, r"guidance_scale=1\.5 runs the model a second time .* read the answer that was found"),
    "use_cache": (False, r"use_cache=False makes the model read the whole text again .* keep use_cache on"),
    "cache_implementation": ("paged", r"A paged cache packs sequences into one, .* leave it out"),
}


@pytest.mark.parametrize("where", ["argument", "configuration", "model's own"])
@pytest.mark.parametrize("name", ASKED)
def test_decoding_that_cannot_be_followed_is_refused_before_the_model_runs(name, where):
    subject, passes = tiny_llava(), []
    subject.model.register_forward_pre_hook(lambda *_: passes.append(1))
    inputs, (value, message) = inputs_of(subject, picture()), ASKED[name]
    settings, ids = GenerationConfig(**LONG), inputs.pop("input_ids")
    options = {name: value} if where == "argument" else {}
    if where == "configuration":
        setattr(settings, name, value)
    elif where == "model's own":
        setattr(subject.model.generation_config, name, value)
    if where == "configuration" and name in ("assistant_model", "custom_generate"):
        options[name] = value  # beside a configuration that says nothing of them
    with pytest.raises(CaptureError, match=message), probe.record(subject) as recorder:
        subject.model.generate(ids, settings, **inputs, **options)
    assert not passes
    with pytest.raises(CaptureError, match="Nothing was recorded"):
        recorder.result()


def test_continuous_batches_are_refused_before_the_model_runs():
    subject, passes = tiny_llava(), []
    subject.model.register_forward_pre_hook(lambda *_: passes.append(1))
    ids = inputs_of(subject, picture())["input_ids"][0].tolist()
    own = subject.model.init_continuous_batching
    with (
        pytest.raises(CaptureError, match=r"Continuous batching packs .* record model\.generate"),
        probe.record(subject),
    ):
        subject.model.generate_batch([ids], generation_config=subject.model.generation_config)
    assert not passes
    assert subject.model.init_continuous_batching == own


@pytest.mark.parametrize("kernel", ["flex_attention", "paged|sdpa"])
def test_kernels_whose_mask_cannot_be_read_are_refused_before_the_context(kernel):
    subject = tiny_llava()
    for part in (subject.model.get_decoder().config, subject.model.config.get_text_config()):
        part._attn_implementation = kernel
    with pytest.raises(CaptureError, match=rf"kernel '{kernel[:5]}.*not understood; use another: model\.set_attn_impl"):
        probe.record(subject)


class _Eighths(QuantizedLayer):
    """Keys and values kept in steps of an eighth, but for the last few."""

    def _quantize(self, tensor, axis):
        return (tensor * 8).round().to(torch.int8)

    def _dequantize(self, tensor):
        return tensor.float() / 8


def test_a_quantised_cache_gives_the_rows_of_what_the_kernel_was_given():
    subject = tiny_llava(seed=2)
    inputs = inputs_of(subject, picture())
    cache = lambda: Cache(layers=[_Eighths(residual_length=4) for _ in range(3)])  # noqa: E731
    record = _recorded(subject, inputs, past_key_values=cache())
    assert record.certificate.passed
    maps = plain_softmax(lambda: subject.model.generate(**inputs, **LONG, past_key_values=cache()))[2:]
    ids = inputs["input_ids"][0]
    image = [place for place, one in enumerate(ids.tolist()) if one == 3]
    for number, layer in enumerate(record.layers):
        rows = torch.stack([one[0, :, -1, image] for one in maps[number::3]], dim=1)
        torch.testing.assert_close(layer.values[0].flatten(2).double(), rows, atol=2e-6, rtol=0)
    plain = _recorded(subject, inputs)
    assert not torch.allclose(plain.layers[0].values[:, :, 1:3], record.layers[0].values[:, :, 1:3], atol=1e-3)


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_the_librarys_quantised_caches_pass_their_certificate(backend):
    pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    subject = tiny_llava(seed=2)
    settings = {"backend": backend, "nbits": 4, "residual_length": 4, "q_group_size": 8}
    inputs = inputs_of(subject, picture())
    record = _recorded(subject, inputs, cache_implementation="quantized", cache_config=settings)
    assert record.certificate.passed


@pytest.mark.parametrize("given", [{"max_new_tokens": 6}, {"max_new_tokens": 6, "pad_token_id": 0}], ids=shown)
def test_the_models_own_settings_hold_where_a_configuration_leaves_them_open(given):
    subject = tiny_llava(seed=5)
    inputs = batch_of(subject, [([picture(seed=1)], "a dog"), ([picture(seed=2)], "Describe the image. a man")])
    start = inputs["input_ids"].shape[1]
    answers = [row[start:].tolist() for row in subject.model.generate(**inputs, **LONG)]
    end = next(one for one in answers[0][1:] if one not in answers[1])
    subject.model.generation_config.eos_token_id = end
    with probe.record(subject) as recorder:
        subject.model.generate(**inputs, generation_config=GenerationConfig(**given, do_sample=False))
    found = [record.token_ids for record in recorder.results()]
    # What generate adds behind the end token is padding, and no part of the answer.
    assert found == [tuple(answers[0][: answers[0].index(end) + 1]), tuple(answers[1])]
    # And an argument goes before both.
    with probe.record(subject) as recorder:
        subject.model.generate(**inputs, **LONG, eos_token_id=answers[1][1])
    assert [len(record.token_ids) for record in recorder.results()][1] == 2


def test_a_prompt_that_generate_changes_is_refused():
    subject = tiny_llava(seed=2)
    inputs = inputs_of(subject, picture())
    with pytest.raises(ProbeError, match=r"fed other token ids than the prompt"):
        _recorded(subject, inputs, token_healing=True, tokenizer=subject.processor.tokenizer)
