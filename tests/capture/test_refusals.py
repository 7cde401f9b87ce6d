"""What cannot be recorded truthfully is refused by name: what was asked, what was found, what to do."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlavaNextVideoConfig

import probe
from probe.errors import CaptureError, InputError, ModelError
from probe.families import family_of
from tests.capture.reference import inputs_of, read
from tests.tiny import picture, tiny_llava


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def subject():
    return tiny_llava()


@pytest.fixture
def inputs(subject):
    return inputs_of(subject, picture())


def _generate(subject, **inputs):
    with probe.record(subject) as recorder:
        subject.model.generate(**{"max_new_tokens": 3, "do_sample": False} | inputs)
    return recorder


def test_more_images_than_the_prompt_has_places_for(subject, inputs):
    pixels = torch.cat([inputs["pixel_values"]] * 2)
    with pytest.raises(
        InputError,
        match=r"has 16 image tokens in the sequence but 2 picture\(s\) of 4 x 4 = 16 patches, 4 x 4 = 16 patches;",
    ):
        _generate(subject, **dict(inputs, pixel_values=pixels))
    with pytest.raises(
        CaptureError, match=r"pixel_values has shape \(1, 2, 3, 32, 32\); expected \(image, channel, height"
    ):
        _generate(subject, **dict(inputs, pixel_values=pixels[None]))


def test_no_image(subject, inputs):
    del inputs["pixel_values"]
    with pytest.raises(InputError, match=r"No image was given .*pixel_values is missing"):
        _generate(subject, **inputs)


def test_embeddings_instead_of_ids(subject, inputs):
    embedded = subject.model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(CaptureError, match=r"no input_ids \(inputs_embeds instead\?\).*give input_ids"):
        _generate(subject, inputs_embeds=embedded, **inputs)
    with pytest.raises(CaptureError, match="give input_ids"), probe.record(subject):
        subject.model(inputs_embeds=embedded, **inputs)


@pytest.mark.parametrize("change", [-1, 1, 16])
def test_a_count_of_image_tokens_that_does_not_match(subject, inputs, change):
    ids = inputs["input_ids"]
    first = ids[0].tolist().index(3)
    image = torch.full((1, 16 + change), 3)
    ids = torch.cat([ids[:, :first], image, ids[:, first + 16 :]], dim=1)
    with pytest.raises(
        InputError, match=rf"{16 + change} image tokens .* 4 x 4 = 16 patches; the prompt must hold one placeholder"
    ):
        _generate(subject, input_ids=ids, pixel_values=inputs["pixel_values"])


def test_compiled_models():
    for part in ("model", "layer", "forward"):
        subject = tiny_llava()
        if part == "model":
            subject.model.compile()
        elif part == "layer":
            subject.model.get_decoder().layers[1].compile()
        else:
            subject.model.forward = torch.compile(subject.model.forward)
        with pytest.raises(
            CaptureError, match=r"compiled by torch\.compile, where hooks do not fire; record the model before"
        ):
            probe.record(subject)
    subject = tiny_llava()
    layers = subject.model.get_decoder().layers
    layers[0] = torch.compile(layers[0])
    with pytest.raises(CaptureError, match=r"layers\.0'? is compiled"):
        probe.record(subject)


def test_attention_dropout_in_training_mode(inputs):
    subject = tiny_llava(attention_dropout=0.1)
    subject.model.train()
    with pytest.raises(CaptureError, match=r"dropout of 0\.1 is on .*training mode.* call model\.eval\(\) first"):
        _generate(subject, **inputs)
    subject.model.eval()
    assert _generate(subject, **inputs).result().certificate.passed


def test_another_image_in_result(subject, inputs):
    recorder = _generate(subject, **inputs)
    assert recorder.result(image=picture()).image_size == (40, 56)
    for other in (picture(seed=1), picture().rotate(180), picture(56, 40)):
        with pytest.raises(
            InputError, match=r"is not the one that the model saw: .* differ by up to \d.*EXIF orientation"
        ):
            recorder.result(image=other)
    subject.processor.image_processor.crop_size = {"height": 40, "width": 40}
    with pytest.raises(CaptureError, match=r"saw a picture of \(32, 32\) pixels .* set to make \(40, 40\)"):
        recorder.result(image=picture())


@pytest.mark.parametrize("ids", [[], [2], [2, 0, 1]])
def test_empty_answers(subject, inputs, ids):
    with pytest.raises((InputError, CaptureError), match=r"The answer is empty|there is no answer to read"):
        read(subject, inputs, ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, "layer 3 does not exist: there are 3, numbered 0 to 2"),
        ({"layers": [0, -4]}, "layer -4 does not exist"),
        ({"heads": 4}, "head 4 does not exist: there are 4, numbered 0 to 3"),
        ({"heads": [1, 1]}, "names the same one more than once"),
        ({"heads": [1, -3]}, "names the same one more than once"),
        ({"heads": []}, "chooses none of the 4"),
        ({"layers": slice(5, 9)}, "chooses none of the 3"),
        ({"layers": 1.0}, "layer=1.0 is not a whole number"),
        ({"heads": "all"}, "head='all' is not a whole number"),
        ({"queries": "answers"}, "queries must be one of 'answer', 'prompt'; found 'answers'"),
        ({"queries": []}, "queries must be .* list of different numbers"),
        ({"queries": 3}, "queries must be .* found 3"),
        ({"queries": [0, 0]}, "queries must be .* different"),
        ({"queries": [0.5]}, "queries must be .* numbers"),
        ({"query_row": "last"}, "query_row must be one of None, 'predicting', 'own'; found 'last'"),
        ({"verify": True}, "verify must be one of 'sample', 'all', 'off'; found True"),
    ],
)
def test_options_that_do_not_exist(subject, options, message):
    with pytest.raises(InputError, match=message):
        probe.record(subject, **options)


def test_answer_tokens_that_do_not_exist(subject, inputs):
    for queries in ([7], [0, -4]):
        with probe.record(subject, queries=queries) as recorder:
            subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        with pytest.raises(InputError, match=rf"query {queries[-1]} does not exist: there are 3"):
            recorder.result()


def test_contexts_used_twice_or_not_at_all(subject, inputs):
    with probe.record(subject) as recorder:
        pass
    with pytest.raises(CaptureError, match=r"Nothing was recorded: call model\.generate\(\.\.\.\) inside the context"):
        recorder.result()
    with probe.record(subject) as recorder:
        with pytest.raises(CaptureError, match="already open; make another with record"):
            recorder.__enter__()
        subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        with pytest.raises(CaptureError, match="already holds one pass; use one record"):
            subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        with pytest.raises(CaptureError, match="already holds one pass"):
            subject.model(**inputs)
    assert len(recorder.result().tokens) == 2
    with probe.record(subject) as recorder:
        subject.model(**inputs)
    with pytest.raises(CaptureError, match="nothing was generated, so there is no answer to read"):
        recorder.result()


def test_caches_filled_before_or_changed_on_the_way(subject, inputs):
    ids = inputs["input_ids"]
    cache = DynamicCache(config=subject.model.config.get_text_config())
    subject.model(**inputs, past_key_values=cache)
    message = r"key cache holds 28 positions but 0 were fed .*Start with an empty cache"
    with pytest.raises(CaptureError, match=message), probe.record(subject):
        subject.model(input_ids=ids[:, :1], pixel_values=inputs["pixel_values"], past_key_values=cache)
    longer = torch.cat([ids, torch.tensor([[20, 21]])], dim=1)
    with pytest.raises(CaptureError, match="Start with an empty cache"):
        _generate(subject, input_ids=longer, pixel_values=inputs["pixel_values"], past_key_values=cache)


def test_a_sliding_cache_that_moves_its_columns():
    subject = tiny_llava(text="mistral", sliding_window=12)
    inputs = inputs_of(subject, picture())
    with pytest.raises(
        CaptureError,
        match=r"self_attn saw 1 queries and \d+ keys where 1 and 29 were fed: .*sliding window.* default cache",
    ):
        _generate(subject, **inputs, cache_implementation="static")
    # A window that is never filled is no reason to refuse.
    subject = tiny_llava(text="mistral", sliding_window=64)
    assert _generate(subject, **inputs, cache_implementation="static").result().certificate.passed


def test_what_is_no_vision_language_model_or_of_no_known_family():
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    )
    for one in (model, model.config):
        with pytest.raises(
            ModelError, match=r"model_type 'llama'\) is not a vision-language model: .* no vision part.*: llava"
        ):
            family_of(one)
    with pytest.raises(
        ModelError,
        match=r"'llava_next_video'\) is of a family that cannot be .*; known families: llava, .* Did you mean 'llava_next'",
    ):
        family_of(LlavaNextVideoConfig())
    with pytest.raises(ModelError, match="is not a vision-language model"):
        probe.record(model, object())
    with pytest.raises(InputError, match=r"needs the model's processor too: record\(model, processor\)"):
        probe.record(tiny_llava().model)


def test_layers_that_are_not_as_many_as_the_configuration_states(subject):
    subject.model.config.text_config.num_hidden_layers = 4
    with pytest.raises(CaptureError, match=r"states 4 layers but 3 attention modules were found \(LlamaAttention\)"):
        probe.record(subject)


def test_attention_that_goes_another_way_is_named(subject, inputs):
    module = subject.model.get_decoder().layers[2].self_attn
    module.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with pytest.raises(CaptureError, match=r"1 of 3 attention modules ran .*layers\.2\.self_attn \(0 times\)"):
        _generate(subject, **inputs)
