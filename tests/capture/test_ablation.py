"""Heads that are taken away are gone exactly, in every way of running, and nothing else changes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import probe
from probe.capture.ablation import HeadMeans, ablate, mean_outputs
from probe.capture.passes import inputs_for, inputs_with_answer
from probe.errors import CaptureError, InputError
from tests.tiny import picture, tiny_clip, tiny_llava
from tests.tiny_diffusion import tiny_sd

PROMPT = "Describe the image."
ANSWER = "a man with a red ball"


def _logits(subject):
    inputs, _ = inputs_with_answer(subject, picture(), PROMPT, ANSWER)
    with torch.inference_mode():
        return subject.model(**inputs, use_cache=False).logits


def _steps(subject):
    """(step, vocabulary) logits of a generated answer."""
    inputs, _ = inputs_for(subject, picture(), PROMPT)
    with torch.inference_mode():
        made = subject.model.generate(
            **inputs,
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.cat(made.logits)


def _edited_before_projection(subject, heads, change, *, run=_logits):
    """Logits with the heads' slices changed by a hook of the test's own on each output projection."""
    layers = subject.model.model.language_model.layers
    handles = []
    for layer, head in heads:
        size = layers[layer].self_attn.head_dim

        def edit(module, args, part=slice(head * size, (head + 1) * size), layer=layer, head=head):
            hidden = args[0].clone()
            hidden[..., part] = change(hidden[..., part], layer, head)
            return (hidden,)

        handles.append(layers[layer].self_attn.o_proj.register_forward_pre_hook(edit))
    logits = run(subject)
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_is_the_slice_before_the_projection_to_the_bit(attention, dtype):
    subject, heads = tiny_llava(attention=attention, dtype=dtype), [(0, 1), (2, 0), (2, 3)]
    plain = _logits(subject)
    with ablate(subject, heads=heads):
        found = _logits(subject)
    assert torch.equal(found, _edited_before_projection(subject, heads, lambda part, *_: part * 0))
    assert not torch.equal(found, plain)
    assert torch.equal(_logits(subject), plain)


@pytest.mark.parametrize("run", [_logits, _steps])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_heads_are_their_slices_to_the_bit_in_one_pass_and_in_generation(attention, run):
    subject, draw = tiny_llava(attention=attention), random.Random(0)
    means = mean_outputs(subject, [(picture(seed=3), PROMPT, "two dogs")], name="one picture")
    every = [(layer, head) for layer in range(3) for head in range(4)]
    plain = run(subject)
    for _ in range(6):
        heads = draw.sample(every, draw.randint(1, 5))
        for how, change in (
            ("zero", lambda part, layer, head: torch.zeros_like(part)),
            ("mean", lambda part, layer, head: means.outputs[layer][head].expand_as(part)),
        ):
            with ablate(subject, heads=heads, how=how, reference=means if how == "mean" else None):
                found = run(subject)
            assert torch.equal(found, _edited_before_projection(subject, heads, change, run=run)), (heads, how)
            assert not torch.equal(found, plain)


def test_mean_is_the_mean_over_the_named_set():
    subject = tiny_llava()
    size, collected = 8, []
    conversations = [(picture(seed=seed), PROMPT, answer) for seed, answer in ((1, ANSWER), (2, "two dogs"))]

    def collect(module, args):
        collected.append(args[0][0])

    handle = subject.model.model.language_model.layers[1].self_attn.o_proj.register_forward_pre_hook(collect)
    means = mean_outputs(subject, iter(conversations), name="two pictures")
    handle.remove()
    plain = torch.cat(collected).mean(0)
    torch.testing.assert_close(means.outputs[1], plain.view(4, size), atol=1e-6, rtol=1e-5)
    assert (means.name, means.rows) == ("two pictures", sum(len(one) for one in collected))
    with ablate(subject, heads=[(1, 2)], how="mean", reference=means):
        found = _logits(subject)
    wanted = means.outputs[1][2]
    assert torch.equal(found, _edited_before_projection(subject, [(1, 2)], lambda part, *_: wanted.expand_as(part)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_uniform_is_the_mean_of_the_values_that_a_row_may_see(attention):
    subject = tiny_llava(attention=attention)
    held = {}
    layer = subject.model.model.language_model.layers[1].self_attn

    def keep(module, args, output):
        held["value"] = output[0].view(-1, 2, 8)  # two key heads

    handle = layer.v_proj.register_forward_hook(keep)
    _logits(subject)
    handle.remove()
    # Head 3 of four reads key head 1 of two; row t may see positions 0 to t.
    value = held["value"][:, 1]
    wanted = value.cumsum(0) / torch.arange(1, len(value) + 1)[:, None]
    with ablate(subject, heads=[(1, 3)], how="uniform"):
        found = _logits(subject)
    torch.testing.assert_close(
        found, _edited_before_projection(subject, [(1, 3)], lambda *_: wanted), atol=1e-4, rtol=1e-4
    )


def test_uniform_gives_padding_nothing():
    subject = tiny_llava()
    inputs, _ = inputs_with_answer(subject, picture(), PROMPT, ANSWER)
    pad = torch.full((1, 5), subject.processor.tokenizer.pad_token_id)
    mask = torch.cat([torch.zeros_like(pad), torch.ones_like(inputs["input_ids"])], 1)
    padded = dict(inputs, input_ids=torch.cat([pad, inputs["input_ids"]], 1), attention_mask=mask)
    padded["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with ablate(subject, heads=[(0, 0), (1, 1)], how="uniform"), torch.inference_mode():
        alone = subject.model(**inputs, use_cache=False).logits
        shifted = subject.model(**padded, use_cache=False).logits[:, 5:]
    torch.testing.assert_close(shifted, alone, atol=2e-4, rtol=1e-4)


def test_a_batch_is_edited_row_by_row():
    subject = tiny_llava()
    inputs, _ = inputs_with_answer(subject, picture(), PROMPT, ANSWER)
    other, _ = inputs_with_answer(subject, picture(seed=7), PROMPT, ANSWER)
    both = {key: torch.cat([inputs[key], other[key]]) for key in inputs}
    for how in ("zero", "uniform"):
        with ablate(subject, heads=[(1, 0)], how=how), torch.inference_mode():
            one = [subject.model(**each, use_cache=False).logits for each in (inputs, other)]
            two = subject.model(**both, use_cache=False).logits
        torch.testing.assert_close(two, torch.cat(one), atol=2e-4, rtol=1e-4)


def test_generation_and_one_pass_agree_under_ablation():
    subject = tiny_llava()
    for how in ("zero", "uniform"):
        with ablate(subject, heads=[(0, 2), (2, 1)], how=how):
            made = probe.run(subject, picture(), PROMPT, max_new_tokens=10).record
            read = probe.run(subject, picture(), PROMPT, answer=list(made.token_ids)).record
        torch.testing.assert_close(made.stack(), read.stack(), atol=2e-5, rtol=0)
        assert made.certificate.passed


def test_what_comes_after_changes_and_what_came_before_does_not():
    subject = tiny_llava()
    plain = probe.run(subject, picture(), PROMPT, answer=ANSWER).record.stack()
    with ablate(subject, heads=[(1, 0)]):
        changed = probe.run(subject, picture(), PROMPT, answer=ANSWER).record.stack()
    assert torch.equal(plain[:2], changed[:2])
    assert float((plain[2] - changed[2]).abs().max()) > 1e-4


def test_a_record_says_what_was_taken_away():
    subject = tiny_llava()
    means = mean_outputs(subject, [(picture(), PROMPT, ANSWER)], name="one picture")

    def source(**options):
        return probe.run(subject, picture(), PROMPT, answer=ANSWER, **options).record.source

    assert source().ablation == ""
    with ablate(subject, heads=[(2, 0), (1, 3)]):
        # Also where the layers that are recorded are not the ones that were edited.
        assert source().ablation == source(layers=[0]).ablation == "zero: (1, 3), (2, 0)"
        with ablate(subject, heads=[(0, 1)], how="mean", reference=means):
            both = source()
            generated = probe.run(subject, picture(), PROMPT, max_new_tokens=3).record.source
        assert both.ablation == generated.ablation == "zero: (1, 3), (2, 0); mean over one picture: (0, 1)"
        assert source().ablation == "zero: (1, 3), (2, 0)"
        other = tiny_llava()  # another model is not touched
        assert probe.run(other, picture(), PROMPT, answer=ANSWER).record.source.ablation == ""
    assert source().ablation == ""
    # The ablation ends before the record is made.
    inputs, _ = inputs_for(subject, picture(), PROMPT)
    with probe.record(subject) as recorder, ablate(subject, heads=[(1, 0)], how="uniform"):
        subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    record = recorder.result(image=picture())
    assert record.source.ablation == "uniform: (1, 0)"
    assert "ablation: uniform: (1, 0)" in repr(record)


def test_nested_ablations_add_up():
    subject = tiny_llava()
    with ablate(subject, heads=[(0, 1), (1, 2)]):
        both = _logits(subject)
    with ablate(subject, heads=[(0, 1)]), ablate(subject, heads=[(1, 2)]):
        assert torch.equal(_logits(subject), both)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": []}, "heads is empty"),
        ({"heads": [(0, 1), (0, 1)]}, r"Head \(0, 1\) is named twice"),
        ({"heads": [(3, 0)]}, r"Head \(3, 0\) does not exist: .* layers 0 to 2 with heads 0 to 3"),
        ({"heads": [(0, 4)]}, r"Head \(0, 4\) does not exist"),
        ({"heads": [(0, -1)]}, r"Head \(0, -1\) does not exist"),
        ({"heads": [3]}, r"is not a list of \(layer, head\)"),
        ({"heads": None}, r"heads=None is not a list of \(layer, head\)"),
        ({"heads": (2, 1)}, r"is not a list of \(layer, head\)"),
        ({"heads": [(0, 1, 2)]}, r"is not a list of \(layer, head\)"),
        ({"heads": [(0, 1.0)]}, r"heads=\[\(0, 1.0\)\] is not a list"),
        ({"heads": [(True, 1)]}, r"is not a list of \(layer, head\)"),
        ({"heads": ["12"]}, r"heads=\['12'\] is not a list"),
        ({"heads": "1"}, r"heads='1' is not a list"),
        ({"heads": [(0, 1)], "how": "none"}, "how must be 'zero', 'mean', 'uniform' or 'other image'"),
        ({"heads": [(0, 1)], "how": ["zero"]}, "how must be 'zero', 'mean', 'uniform' or 'other image'"),
        ({"heads": [(0, 1)], "how": "mean"}, "needs reference"),
        ({"heads": [(0, 1)], "how": "mean", "reference": {1: torch.zeros(4, 8)}}, "HeadMeans .* found a dict"),
        ({"heads": [(0, 1)], "reference": HeadMeans("none", 1, {})}, "how='zero' takes no reference"),
        (
            {"heads": [(0, 1)], "how": "mean", "reference": HeadMeans("some", 1, {1: torch.zeros(4, 8)})},
            "'some' holds nothing for layer 0; make it with mean_outputs",
        ),
    ],
)
def test_what_cannot_be_ablated_says_why(options, message):
    with pytest.raises(InputError, match=message), ablate(tiny_llava(), **options):
        pass


def test_only_a_subject_can_be_ablated():
    subject = tiny_llava()
    with (
        pytest.raises(InputError, match=r"ablate\(\) needs a Subject, found a Llava"),
        ablate(subject.model, heads=[(0, 1)]),
    ):
        pass
    with pytest.raises(InputError, match=r"mean_outputs\(\) needs a Subject"):
        mean_outputs(subject.model, [], name="none")


def test_numbers_of_any_whole_kind_name_a_head():
    subject = tiny_llava()
    with ablate(subject, heads=[(1, 2)]):
        wanted = _logits(subject)
    for heads in (
        [np.array([1, 2])],
        [(np.int64(1), torch.tensor(2))],
        {(1, 2): "a dictionary's keys"},
        iter([(1, 2)]),
    ):
        with ablate(subject, heads=heads):
            assert torch.equal(_logits(subject), wanted)


def test_means_of_another_model_are_refused():
    subject, other = tiny_llava(), tiny_llava()
    means = mean_outputs(subject, [(picture(), PROMPT, ANSWER)], name="one picture")
    with ablate(other, heads=[(1, 2)], how="mean", reference=means):  # the same weights again
        _logits(other)
    with torch.no_grad():
        other.model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.01)
    with (
        pytest.raises(InputError, match=r"'one picture' was made with another model .* or with other weights"),
        ablate(other, heads=[(1, 2)], how="mean", reference=means),
    ):
        pass
    by_hand = HeadMeans("by hand", 1, {1: torch.zeros(4, 5)})
    with (
        pytest.raises(InputError, match=r"shape \(4, 5\), .* layer 1, which gives out \(4, 8\)"),
        ablate(subject, heads=[(1, 2)], how="mean", reference=by_hand),
    ):
        _logits(subject)
    with pytest.raises(InputError, match=r"needs \(image, prompt, answer\) of each conversation, found a tuple"):
        mean_outputs(subject, [(picture(), PROMPT)], name="pairs")


def test_an_ablation_without_effect_is_an_error():
    subject = tiny_llava()
    with pytest.raises(CaptureError, match="the model did not run inside"), ablate(subject, heads=[(0, 1)]):
        pass
    # A layer whose attention never comes to the place of the edit.
    attention = subject.model.model.language_model.layers[0].self_attn
    own = attention.forward
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with (
        pytest.raises(CaptureError, match="layer 0 ran 1 times and was edited 0 times"),
        ablate(subject, heads=[(0, 1), (1, 1)]),
    ):
        _logits(subject)
    attention.forward = own
    with pytest.raises(InputError, match="reference set of mean_outputs"):
        mean_outputs(subject, [], name="none")


def test_nothing_is_left_after_an_exception():
    from transformers.modeling_utils import AttentionInterface

    from probe.capture.hooks import hook_tables

    subject = tiny_llava()
    plain = _logits(subject)
    before, look_up = hook_tables(subject.model), AttentionInterface.get_interface

    def fails(error):
        with ablate(subject, heads=[(0, 1)]):
            inputs, _ = inputs_for(subject, picture(), PROMPT)
            subject.model(**inputs)
            raise error

    for error in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error):
            fails(error)
    assert hook_tables(subject.model) == before
    assert AttentionInterface.get_interface is look_up
    assert torch.equal(_logits(subject), plain)


@pytest.mark.parametrize("make", [tiny_clip, lambda: probe.load_model(tiny_sd())])
def test_a_model_without_a_language_model_has_no_heads_to_ablate(make):
    subject = make()
    with pytest.raises(InputError, match="has no language model"), probe.ablate(subject, heads=[(0, 0)]):
        pass
    with pytest.raises(InputError, match="has no language model"):
        mean_outputs(subject, [(picture(), "a", "b")], name="one")
