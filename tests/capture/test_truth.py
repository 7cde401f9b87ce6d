"""What is recorded is what the model computed: against an eager copy that keeps every map, and against its own output."""

from __future__ import annotations

import random

import pytest
import torch

import probe
from probe.capture import tracks
from probe.errors import CaptureError
from tests.capture.reference import (
    eager_maps,
    exact_softmax,
    inputs_of,
    largest_difference,
    random_answer,
    read,
    with_answer,
)
from tests.tiny import picture, tiny_llava

GEMMA = {"text": "gemma2", "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 5, "sliding_window": 9}
# Recorded rows hold float32 sums in another order than the kernel's; half precision also rounds the reference itself.
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
RANGE = {torch.bfloat16: 0.2, torch.float16: 0.2}  # larger logits are rounded by more than that in the reference itself


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("text", ["llama", "qwen2", "mistral"])
def test_every_row_of_one_pass_equals_eager(text, dtype):
    subject = tiny_llava(text=text, dtype=dtype, seed=1, initializer_range=RANGE.get(dtype, 0.3))
    rng = random.Random(f"{text}{dtype}")
    for trial in range(4):
        image = picture(rng.randint(9, 80), rng.randint(9, 80), seed=trial)
        inputs = inputs_of(subject, image, rng.choice(["a dog", "Describe the image."]), padding=trial % 2 * 3)
        ids = random_answer(subject, rng)
        whole, start = with_answer(inputs, ids), inputs["input_ids"].shape[1]
        maps = eager_maps(subject, whole)
        for query_row, shift in (("predicting", -1), ("own", 0)):
            record = read(subject, inputs, ids, query_row=query_row)
            rows = [start + i + shift for i in range(len(ids))]
            assert largest_difference(record, maps, rows, whole) <= ALLOWED[dtype]
            assert record.token_ids == tuple(ids)
            assert record.layers[0].values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "sdpa"},
        {"attention": "eager"},
        {"attention": "sdpa", "num_key_value_heads": 4},
        {"attention": "eager", "num_key_value_heads": 1},
        GEMMA | {"attention": "eager", "sliding_window": 4096},
    ],
    ids=str,
)
def test_every_row_of_a_generated_answer_equals_eager(options):
    subject = tiny_llava(dtype=torch.float64, seed=2, **options)
    # With padding, eager attention in float64 computes NaN: its lowest number is -inf in the float32 of its softmax.
    for padding in (0, 4) if options["attention"] == "sdpa" else (0,):
        inputs = inputs_of(subject, picture(seed=padding), padding=padding)
        start = inputs["input_ids"].shape[1]
        for query_row, shift in (("predicting", -1), ("own", 0)):
            with exact_softmax(subject), probe.record(subject, query_row=query_row, verify="all") as recorder:
                output = subject.model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=[3])
            record = recorder.result()
            ids = output[0, start:].tolist()
            maps = eager_maps(subject, with_answer(inputs, ids[:-1]))
            # The last token was given out but never fed back: it has no row of its own.
            rows = [start + i + shift for i in range(len(ids) - (query_row == "own"))]
            assert record.token_ids == tuple(ids[: len(rows)])
            # RMSNorm rounds to float32 in any model, so step by step and all at once differ by jumps of that size.
            assert largest_difference(record, maps, rows, inputs) <= 2e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", [0, 5])
def test_every_row_of_the_prompt_equals_eager(attention, padding):
    subject = tiny_llava(attention=attention, seed=3)
    inputs = inputs_of(subject, picture(), padding=padding)
    ids = inputs["input_ids"][0].tolist()
    maps = eager_maps(subject, inputs)
    for query_row, shift in (("own", 0), ("predicting", -1)):
        with probe.record(subject, queries="prompt", query_row=query_row, verify="all") as recorder:
            subject.model(**inputs)
        record = recorder.result()
        # The first real token has an own row, but nothing predicts it.
        positions = [i for i in range(padding + (shift == -1), len(ids)) if ids[i] != 3]
        assert record.token_ids == tuple(ids[i] for i in positions)
        assert largest_difference(record, maps, [i + shift for i in positions], inputs) <= 1e-6
        assert record.query_kind == "prompt token"


def test_a_window_and_a_soft_cap_are_honoured_in_one_pass():
    for options in (GEMMA | {"attention": "eager"}, {"text": "mistral", "sliding_window": 7}):
        subject = tiny_llava(seed=4, dtype=torch.float32, **options)
        inputs = inputs_of(subject, picture())
        ids = random_answer(subject, random.Random(4))
        whole, start = with_answer(inputs, ids), inputs["input_ids"].shape[1]
        maps = eager_maps(subject, whole)
        assert any(float(one[:, -1, : start - 10].max()) == 0 for one in maps), "the window must cut something off"
        record = read(subject, inputs, ids)
        assert largest_difference(record, maps, [start + i - 1 for i in range(len(ids))], whole) <= 1e-6


def test_chosen_layers_heads_and_tokens_are_those_of_the_whole_record():
    subject = tiny_llava(seed=5)
    inputs = inputs_of(subject, picture())
    ids = random_answer(subject, random.Random(5), longest=8) * 2
    whole = read(subject, inputs, ids)
    rng = random.Random(0)
    for _ in range(12):
        layers = rng.sample(range(3), rng.randint(1, 3))
        heads = rng.sample(range(4), rng.randint(1, 4))
        tokens = rng.sample(range(len(ids)), rng.randint(1, len(ids)))
        part = read(subject, inputs, ids, layers=layers, heads=heads, queries=tokens, offload=rng.random() < 0.5)
        assert part.token_ids == tuple(ids[i] for i in tokens)
        for layer, number in zip(part.layers, layers, strict=True):
            full = whole.layers[number]
            assert layer.name == full.name
            assert layer.heads == tuple(heads)
            torch.testing.assert_close(layer.values, full.values[:, heads][:, :, tokens], atol=1e-7, rtol=0)
            # The mean is over the whole answer, whichever tokens were kept.
            torch.testing.assert_close(layer.token_mean, full.values[:, heads].mean(2), atol=1e-7, rtol=0)
            torch.testing.assert_close(layer.rest, full.rest[:, heads][:, :, tokens], atol=1e-7, rtol=0)
    assert torch.equal(read(subject, inputs, ids, layers=-1).layers[0].values, whole.layers[2].values)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_output_is_the_same_to_the_last_bit(attention):
    for seed, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64)):
        subject = tiny_llava(attention=attention, seed=seed, dtype=dtype)
        model, inputs = subject.model, inputs_of(subject, picture(seed=seed), padding=seed % 2)
        settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        with torch.inference_mode():
            plain, logits = model.generate(**inputs, **settings), model(**inputs).logits
            with probe.record(subject):
                watched = model.generate(**inputs, **settings)
            with probe.record(subject, queries="prompt"):
                assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(plain.sequences, watched.sequences)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, watched.logits, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)],
    ids=str,
)
def test_the_certificate_counts_every_row_and_names_what_it_saw(attention, dtype, tolerance):
    subject = tiny_llava(attention=attention, dtype=dtype, seed=6)
    inputs = inputs_of(subject, picture())
    ids = random_answer(subject, random.Random(6), longest=5) * 20
    found = read(subject, inputs, ids).certificate
    assert found.passed
    assert found.rows == 3 * len(ids)
    assert (found.layers, found.tokens, found.patches) == (3, len(ids), 16)
    # Eager attention takes its softmax in float32 whatever the model's number type.
    assert found.tolerance == (1e-5 if attention == "eager" and dtype == torch.float64 else tolerance)
    assert 0 <= found.max_error <= found.tolerance
    sampled = read(subject, inputs, ids, verify="sample").certificate
    assert sampled.passed
    # Four rows of each chunk of 64, in each of three layers.
    assert sampled.rows == 3 * sum(min(4, len(ids[i : i + 64])) for i in range(0, len(ids), 64))
    unchecked = read(subject, inputs, ids, verify="off").certificate
    assert (unchecked.rows, unchecked.passed) == (0, False)


def test_logits_are_rounded_where_eager_attention_rounds_them():
    for seed in range(3):
        # Logits so large that their rounding to eight bits alone would change an output by more than is allowed.
        subject = tiny_llava(attention="eager", dtype=torch.bfloat16, seed=seed, initializer_range=0.4)
        ids = random_answer(subject, random.Random(6), longest=5) * 20
        found = read(subject, inputs_of(subject, picture()), ids).certificate
        assert found.passed
        assert found.max_error < 1e-2


def test_rows_sum_to_one_with_the_rest_and_padding_gets_nothing():
    for attention, padding in (("sdpa", 0), ("sdpa", 6), ("eager", 6)):
        subject = tiny_llava(attention=attention, seed=7)
        inputs = inputs_of(subject, picture(), padding=padding)
        record = read(subject, inputs, random_answer(subject, random.Random(7)))
        for layer in record.layers:
            total = layer.values.double().sum((-1, -2)) + layer.rest.double().sum(-1)
            assert float((total - 1).abs().max()) < 1e-5
            assert float(layer.rest[..., 2].abs().max()) == 0  # no other views


def test_padding_that_the_mask_does_not_hide_is_refused():
    subject = tiny_llava()
    inputs = inputs_of(subject, picture(), padding=3)
    length = inputs["input_ids"].shape[1]

    def unhide(module, args, kwargs):
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        return args, dict(kwargs, attention_mask=causal)

    handle = subject.model.model.language_model.layers[0].self_attn.register_forward_pre_hook(unhide, with_kwargs=True)
    with probe.record(subject, queries="prompt") as recorder:
        subject.model(**inputs)
    handle.remove()
    with pytest.raises(CaptureError, match="Padding receives attention"):
        recorder.result()


def test_the_class_token_kept_by_the_full_strategy_is_no_patch():
    subject = tiny_llava(seed=8)
    subject.model.config.vision_feature_select_strategy = "full"
    subject.processor.vision_feature_select_strategy = "full"
    inputs = inputs_of(subject, picture())
    image = [i for i, one in enumerate(inputs["input_ids"][0].tolist()) if one == 3]
    assert len(image) == 17
    ids = random_answer(subject, random.Random(8))
    record = read(subject, inputs, ids)
    whole, start = with_answer(inputs, ids), inputs["input_ids"].shape[1]
    for layer, found in zip(record.layers, eager_maps(subject, whole), strict=True):
        rows = found[:, start - 1 : -1]
        torch.testing.assert_close(layer.values[0].flatten(2), rows[..., image[1:]], atol=1e-6, rtol=0)
        torch.testing.assert_close(layer.rest[0, ..., 2], rows[..., image[0]], atol=1e-6, rtol=0)


def test_no_map_of_all_rows_is_ever_made(monkeypatch):
    subject = tiny_llava(seed=9)
    inputs = inputs_of(subject, picture(), "a man with a red ball " * 40)
    sizes = []

    def spy(module, call, *, rows, heads, plain=tracks.attention_rows):
        sizes.append(len(rows))
        return plain(module, call, rows=rows, heads=heads)

    monkeypatch.setattr(tracks, "attention_rows", spy)
    with probe.record(subject, queries="prompt") as recorder:
        subject.model(**inputs)
    texts = inputs["input_ids"].shape[1] - 16
    assert texts > 200
    assert max(sizes) <= 64
    assert sum(sizes) == 3 * texts
    assert len(recorder.result().tokens) == texts


def test_an_answer_after_a_padded_prompt_has_its_beginning_at_the_first_real_token():
    subject = tiny_llava(seed=10)
    ids = random_answer(subject, random.Random(10))
    plain, padded = (read(subject, inputs_of(subject, picture(), padding=padding), ids) for padding in (0, 7))
    for one, other in zip(plain.layers, padded.layers, strict=True):
        # Rotary positions move together, so the padded prompt gives the same maps up to rounding.
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.rest, other.rest, atol=1e-5, rtol=0)
