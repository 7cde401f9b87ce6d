"""Relevance by gradients against an eager copy whose attention keeps its own gradients, and against finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import probe
from probe.capture import gradients
from probe.capture.gradients import AttentionGraph
from probe.capture.hooks import hook_tables
from probe.capture.modules import attention_modules
from probe.capture.passes import inputs_with_answer
from probe.capture.taps import AttentionCall, edit_registry, edits_of
from probe.capture.weights import attention_with_gradient
from probe.errors import CaptureError, CertificateError, InputError
from probe.models import Subject
from probe.tiny import tiny_model
from tests.capture.families import IN_SEQUENCE
from tests.capture.reference import exact_softmax
from tests.tiny import picture, tiny_clip, tiny_llava, tiny_siglip

TEXT, PHRASES = "a red ball and two dogs", ["red ball", "two dogs"]
METHODS = ("chefer", "legrad")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def eager_attention(subject: Subject, inputs: dict[str, Any], score: Any) -> tuple[list[Tensor], list[Tensor]]:
    """(head, query, key) attention of an eager copy, and its gradient as torch leaves it."""
    eager = copy.deepcopy(subject.model)
    eager.set_attn_implementation("eager")
    with exact_softmax(subject):
        output = eager(**inputs, output_attentions=True)
        vision = getattr(output, "vision_model_output", None)
        attention = output.attentions if vision is None else vision.attentions
        for one in attention:
            one.retain_grad()
        score(output).backward()
    return [one[0].detach() for one in attention], [one.grad[0] for one in attention]


def chefer(attention: list[Tensor], grads: list[Tensor]) -> Tensor:
    rollout = torch.eye(attention[0].shape[-1], dtype=attention[0].dtype)
    for one, grad in zip(attention, grads, strict=True):
        mean = sum(torch.relu(one[head] * grad[head]) for head in range(len(one))) / len(one)
        rollout = rollout + mean @ rollout
    return rollout


@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_a_language_model_against_its_eager_copy(text):
    subject = tiny_llava(text=text, dtype=torch.float64, seed=4)
    inputs, start = inputs_with_answer(subject, picture(), "Describe the image.", TEXT)
    ids = inputs["input_ids"][0]
    image = (ids == subject.model.config.image_token_id).nonzero()[:, 0]
    records = {method: probe.relevance(subject, picture(), TEXT, PHRASES, method=method) for method in METHODS}
    plain = probe.run(subject, picture(), "Describe the image.", answer=TEXT).record
    for number, phrase in enumerate(PHRASES):
        rows = [start + one - 1 for one in plain.tokens_of(TEXT.index(phrase), TEXT.index(phrase) + len(phrase))]
        assert len(rows) >= 2
        attention, grads = eager_attention(
            subject, inputs, lambda output, rows=rows: sum(output.logits[0, row, ids[row + 1]] for row in rows)
        )
        rollout = chefer(attention, grads)[rows].mean(0)
        layer = records["chefer"].layers[0]
        torch.testing.assert_close(layer.values[0, 0, number].flatten(), rollout[image], rtol=1e-9, atol=1e-13)
        total = layer.values[0, 0, number].sum() + layer.rest[0, 0, number].sum()
        torch.testing.assert_close(total, rollout.sum(), rtol=1e-9, atol=0)
        assert float(layer.rest[0, 0, number, 0]) == pytest.approx(float(rollout[0]), rel=1e-9)
        for layer, grad in zip(records["legrad"].layers, grads, strict=True):
            expected = torch.relu(grad).mean(1)[:, image]
            torch.testing.assert_close(layer.values[0, :, number].flatten(1), expected, rtol=1e-9, atol=1e-13)
            assert float(expected.max()) > 1e-5


def test_clip_against_its_eager_copy():
    subject = tiny_clip(dtype=torch.float64, seed=2)
    inputs = dict(subject.processor(images=picture(), text=PHRASES, return_tensors="pt", padding=True))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    records = {method: probe.relevance(subject, picture(), TEXT, PHRASES, method=method) for method in METHODS}
    for number in range(2):

        def similarity(output: Any, number: int = number) -> Tensor:
            return torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds[[number]])[0]

        attention, grads = eager_attention(subject, inputs, similarity)
        expected = chefer(attention, grads)[0]
        layer = records["chefer"].layers[0]
        torch.testing.assert_close(layer.values[0, 0, number].flatten(), expected[1:], rtol=1e-8, atol=1e-13)
        assert float(layer.rest[0, 0, number, 0]) == pytest.approx(float(expected[0]))
        for layer, grad in zip(records["legrad"].layers, grads, strict=True):
            means = torch.relu(grad).mean(1)
            torch.testing.assert_close(layer.values[0, :, number].flatten(1), means[:, 1:], rtol=1e-8, atol=1e-13)
    # The class token's row alone reaches the last layer's output.
    assert float(grads[-1][:, 1:].abs().max()) == 0


def test_a_gradient_is_what_a_finite_difference_says(monkeypatch):
    # The library's own norm rounds to float32, which a difference this small would show.
    exact = lambda norm, x: norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)  # noqa: E731
    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)
    subject = tiny_llava(dtype=torch.float64, seed=1)
    model = subject.model
    inputs, start = inputs_with_answer(subject, picture(), "Describe the image.", TEXT)
    modules = attention_modules(model, subject.family)

    def score() -> Tensor:
        return model(**inputs, use_cache=False).logits[0, start].max()

    graph = AttentionGraph(model, modules)
    with graph:
        found = graph.gradients(score())
    for layer, head, row, key in ((0, 3, start, 7), (1, 0, start - 4, 9), (2, 2, start, start - 1)):
        ends = []
        for step in (1e-5, -1e-5):

            def nudged(module: Any, call: AttentionCall, amount: float = step) -> Tensor:
                output = call.output.clone()
                output[0, row, head] += amount * call.value[0, head // 2, key]  # noqa: B023
                return output

            with torch.no_grad(), edit_registry([modules[layer][1]], nudged, name="nudge"):
                ends.append(float(score()))
        expected = (ends[0] - ends[1]) / 2e-5
        assert abs(expected) > 1e-4
        assert float(found[layer][head, row, key]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(attention):
    subject = tiny_llava(attention=attention)
    model = subject.model.requires_grad_(False)
    inputs, _ = inputs_with_answer(subject, picture(), "Describe the image.", TEXT)
    with torch.no_grad():
        before, tables = model(**inputs).logits, hook_tables(model)
    with torch.inference_mode():
        one = probe.relevance(subject, picture(), TEXT, PHRASES)
        after = model(**inputs).logits
    assert torch.equal(before, after)
    assert hook_tables(model) == tables
    assert edits_of(model.modules()) == ()
    assert all(part.grad is None and not part.requires_grad for part in model.parameters())
    two = probe.relevance(replace(subject, model=model.requires_grad_(True)), picture(), TEXT, PHRASES)
    torch.testing.assert_close(one.stack(), two.stack(), rtol=1e-4, atol=1e-7)
    assert all(part.grad is None for part in model.parameters())
    assert not one.layers[0].values.requires_grad


@pytest.mark.parametrize("name", IN_SEQUENCE)
def test_every_family_with_patches_in_its_sequence_has_relevance(name):
    subject = tiny_model(name)
    record = probe.relevance(subject, picture(60, 90), "a dog and a ball", ["dog", "ball"], method="legrad")
    assert record.certificate.passed
    assert record.certificate.max_error > 0
    assert record.tokens == ("dog", "ball")
    views = {layer.view for layer in record.layers}
    assert len(record.layers) == len(views) * record.certificate.layers
    for layer in record.layers:
        assert bool((layer.values >= 0).all())
        assert bool((layer.rest >= -1e-6).all())
    assert max(float(layer.values.max()) for layer in record.layers) > 0


def test_half_precision_is_computed_in_float32():
    subject = tiny_llava(dtype=torch.bfloat16)
    record = probe.relevance(subject, picture(), TEXT, PHRASES)
    assert record.certificate.passed
    assert record.layers[0].values.dtype == torch.float32
    assert record.source.dtype == "bfloat16"


def test_the_record_says_what_it_is_and_is_read_as_any_other(tmp_path):
    record = probe.relevance(tiny_llava(), picture(), TEXT, ["dogs", (0, 10)])
    assert (record.quantity, record.query_kind, record.query_row) == ("relevance", "generated token", "predicting")
    assert record.softmax_over is None
    assert record.source.tap == "chefer, by gradients through recomputed attention"
    assert record.source.ablation == ""
    assert record.tokens == ("dogs", "a red ball")
    assert record["dogs"].tokens == ("dogs",)
    assert record.layers[0].heads == (-1,)
    shifted = probe.relevance(tiny_llava(), picture(), f"  {TEXT} ", ["dogs", (2, 12)])
    assert (shifted.text, shifted.spans) == (record.text, record.spans)
    assert torch.equal(shifted.layers[0].values, record.layers[0].values)
    probe.save(record, tmp_path / "one.safetensors")
    loaded = probe.load(tmp_path / "one.safetensors")
    assert (loaded.quantity, loaded.tokens) == ("relevance", record.tokens)
    mask = np.zeros((40, 56), dtype=bool)
    mask[:20, :20] = True
    scores = probe.score_heads([record] * 2, [{"dogs": mask}] * 2, reading="attention", replicates=9)
    assert scores.quantity == "relevance"
    assert 0 <= scores.reading("mean_map", "pointing").value <= 1


def test_a_text_that_the_tokenizer_changes_is_refused():
    with pytest.raises(InputError, match="gives the text back as"):
        probe.relevance(tiny_llava(), picture(), "a red ball <pad> two dogs", ["two dogs"])


def test_attention_that_is_not_the_kernels_fails_the_certificate(monkeypatch):
    def swapped(module: Any, call: AttentionCall) -> tuple[Tensor, Tensor]:
        weights, output = attention_with_gradient(module, call)
        return weights.flip(0), output.flip(1)

    monkeypatch.setattr(gradients, "attention_with_gradient", swapped)
    with pytest.raises(CertificateError, match="does not rebuild what the model computed"):
        probe.relevance(tiny_llava(), picture(), TEXT, PHRASES)


def test_a_score_that_does_not_depend_on_a_layer_is_refused():
    subject = tiny_llava()
    graph = AttentionGraph(subject.model, attention_modules(subject.model, subject.family))
    inputs, _ = inputs_with_answer(subject, picture(), "Describe the image.", TEXT)
    with graph:
        subject.model(**inputs, use_cache=False)
        with pytest.raises(CaptureError, match=r"does not depend on the attention of model\.\S*layers\.1\.self_attn"):
            graph.gradients(graph.weights[0].sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rollout"}, "method must be one of 'chefer', 'legrad'; found 'rollout'"),
        ({"text": " "}, "needs a text and a list of phrases"),
        ({"phrases": "dogs"}, "needs a text and a list of phrases"),
        ({"phrases": []}, "needs a text and a list of phrases"),
        ({"phrases": ["two cats"]}, "'two cats' is not in the text"),
        ({"subject": tiny_llava().model}, "needs a Subject, found a LlavaFor"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(options, message):
    given = {"subject": tiny_llava(), "image": picture(), "text": TEXT, "phrases": PHRASES} | options
    with pytest.raises(InputError, match=message):
        probe.relevance(given.pop("subject"), given.pop("image"), given.pop("text"), given.pop("phrases"), **given)


def test_models_of_other_kinds_and_in_other_states_are_refused():
    for subject in (tiny_siglip(), tiny_model("mllama")):
        with pytest.raises(CaptureError, match="has no relevance here"):
            probe.relevance(subject, picture(), TEXT, PHRASES)
    subject = tiny_llava()
    with (
        pytest.raises(CaptureError, match="something is taken away from it now \\(zero: \\(1, 2\\)\\)"),
        probe.ablate(subject, heads=[(1, 2)]),
    ):
        probe.relevance(subject, picture(), TEXT, PHRASES)
    subject.model.train()
    with pytest.raises(CaptureError, match="training mode"):
        probe.relevance(subject, picture(), TEXT, PHRASES)


def test_what_was_not_seen_or_seen_twice_is_refused():
    subject = tiny_llava()
    graph = AttentionGraph(subject.model, attention_modules(subject.model, subject.family))
    with pytest.raises(CaptureError, match="3 of 3 attention modules were not seen"), graph:
        _ = graph.weights
    inputs, _ = inputs_with_answer(subject, picture(), "Describe the image.", TEXT)
    with graph:
        subject.model(**inputs, use_cache=False)
        with pytest.raises(CaptureError, match="ran a second time"):
            subject.model(**inputs, use_cache=False)


def test_relevance_after_a_recording_in_inference_mode():
    # What the recording keeps for later calls must not be tensors that refuse a gradient.
    subject = tiny_llava(num_key_value_heads=2)
    probe.run(subject, picture(), "a dog", max_new_tokens=3)
    found = probe.relevance(subject, picture(), "a dog", ["dog"])
    assert found.quantity == "relevance"
