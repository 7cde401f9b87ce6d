"""R4: faults that recorders really had, planted one at a time: each is caught, and without it the same recording passes."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest
import torch

from probe.capture import diffusion, reduce, reproduction, tracks, weights
from probe.capture import recorder as recorder_module
from probe.capture.diffusion import DiffusionRecorder
from probe.capture.weights import attention_rows, reproduction_error
from probe.errors import CertificateError
from tests.capture.reference import eager_maps, inputs_of, largest_difference, random_answer, read, with_answer
from tests.capture.test_diffusion import generate
from tests.capture.test_diffusion import largest_difference as largest_difference_of_unet
from tests.tiny import picture, tiny_llava
from tests.tiny_diffusion import heard, tiny_sd

pytestmark = pytest.mark.promises("R4", target="each of 15 faults is caught, wherever it can be planted")


def _turned_back(states, module):
    """Queries or keys as they were before rotary embedding, by turning each back by its position's angle."""
    base, half = 10000.0, states.shape[-1] // 2
    angles = torch.arange(states.shape[2])[:, None] / base ** (torch.arange(half) / half)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = states.chunk(2, dim=-1)
    return states * cos - torch.cat([-second, first], dim=-1) * sin


def _no_mask(call):
    return replace(call, mask=None, options=call.options | {"is_causal": False})


def _full_window(call):
    length = call.key.shape[2]
    return replace(call, mask=torch.ones(length, length, dtype=torch.bool).tril()[None, None])


# What the recorder would have worked with, had it made this mistake: name -> (model, wrong call).
WRONG_CALLS = {
    "absent mask": ({}, lambda call, module: _no_mask(call)),
    "absent mask, eager": ({"attention": "eager"}, lambda call, module: _no_mask(call)),
    "pre-rotary query": ({}, lambda call, module: replace(call, query=_turned_back(call.query, module))),
    "pre-rotary key": ({}, lambda call, module: replace(call, key=_turned_back(call.key, module))),
    "missing scale": ({}, lambda call, module: replace(call, options=call.options | {"scaling": 1.0})),
    "ignored soft cap": (
        {"text": "gemma2", "attention": "eager", "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 5},
        lambda call, module: replace(call, options=call.options | {"softcap": None}),
    ),
    "ignored window": ({"text": "mistral", "sliding_window": 7}, lambda call, module: _full_window(call)),
    "ignored window, gemma": (
        {"text": "gemma2", "attention": "eager", "sliding_window": 7},
        lambda call, module: _full_window(call),
    ),
    "transposed query and key": (
        {"num_key_value_heads": 4},
        lambda call, module: replace(call, query=call.key, key=call.query),
    ),
    "stale cache": ({}, lambda call, module: replace(call, key=call.key.roll(1, dims=2))),
    "queries of other heads": ({}, lambda call, module: replace(call, query=call.query.flip(1))),
}


def _setting(options):
    subject = tiny_llava(seed=11, **options)
    inputs = inputs_of(subject, picture(seed=3))
    return subject, inputs, random_answer(subject, random.Random(11), longest=6) * 2


@pytest.mark.parametrize("verify", ["sample", "all"])
@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_misread_call_fails_its_certificate(name, verify, monkeypatch):
    options, misread = WRONG_CALLS[name]
    subject, inputs, ids = _setting(options)
    assert read(subject, inputs, ids, verify=verify).certificate.passed

    def wrong(module, call, *, rows, heads):
        return attention_rows(module, misread(call, module), rows=rows, heads=heads)

    monkeypatch.setattr(tracks, "attention_rows", wrong)
    with pytest.raises(CertificateError, match=r"does not rebuild what the model computed: largest error .*self_attn"):
        read(subject, inputs, ids, verify=verify)
    # It is an error of its own, not an effect of the plant on the model: unchecked, the wrong maps would come out.
    maps, start = eager_maps(subject, with_answer(inputs, ids)), inputs["input_ids"].shape[1]
    record = read(subject, inputs, ids, verify="off")
    rows = [start + i - 1 for i in range(len(ids))]
    assert largest_difference(record, maps, rows, with_answer(inputs, ids)) > 1e-2


def test_dropout_left_on_fails_the_certificate_where_the_call_does_not_say_so(monkeypatch):
    subject, inputs, ids = _setting({"attention_dropout": 0.3})
    plain = read(subject, inputs, ids, verify="sample")
    subject.model.train()

    def silent(module, call, **chosen):
        return attention_rows(module, replace(call, options=call.options | {"dropout": 0.0}), **chosen)

    # Without this the recorder refuses at once, since the kernel is told of its dropout.
    monkeypatch.setattr(tracks, "attention_rows", silent)
    for verify in ("sample", "all"):
        torch.manual_seed(0)
        with pytest.raises(CertificateError, match="does not rebuild"):
            read(subject, inputs, ids, verify=verify)
    subject.model.eval()
    assert torch.equal(read(subject, inputs, ids).layers[0].values, plain.layers[0].values)


def test_tiled_instead_of_repeated_key_heads_fail_the_certificate(monkeypatch):
    subject, inputs, ids = _setting({})
    monkeypatch.setattr(weights, "_key_heads", lambda call, heads: tuple(head % call.key.shape[1] for head in heads))
    with pytest.raises(CertificateError, match="does not rebuild"):
        read(subject, inputs, ids)


def test_swapped_heads_fail_the_certificate(monkeypatch):
    subject, inputs, ids = _setting({})
    monkeypatch.setattr(tracks, "attention_rows", lambda *a, **k: attention_rows(*a, **k).flip(0))
    with pytest.raises(CertificateError, match="does not rebuild"):
        read(subject, inputs, ids)


def test_a_row_off_by_one_fails_the_certificate(monkeypatch):
    subject, inputs, ids = _setting({})

    def late(module, call, *, rows, heads):
        return attention_rows(module, call, rows=rows - 1, heads=heads)

    monkeypatch.setattr(tracks, "attention_rows", late)
    with pytest.raises(CertificateError, match="does not rebuild"):
        read(subject, inputs, ids)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1.0001])
@pytest.mark.parametrize("part", [0, slice(None)])
def test_another_output_fails_the_certificate_also_where_it_is_nan_or_zero(value, part, monkeypatch):
    subject, inputs, ids = _setting({})

    def wrong(call, *args, **kwargs):
        output = call.output.clone()
        output[:, :, :, part] *= value
        return reproduction_error(replace(call, output=output), *args, **kwargs)

    monkeypatch.setattr(reproduction, "reproduction_error", wrong)
    with pytest.raises(CertificateError, match="does not rebuild"):
        read(subject, inputs, ids)


def _difference(subject, inputs, ids):
    maps, start = eager_maps(subject, with_answer(inputs, ids)), inputs["input_ids"].shape[1]
    record = read(subject, inputs, ids)
    return largest_difference(record, maps, [start + i - 1 for i in range(len(ids))], with_answer(inputs, ids))


# What the kernel computed is right in these, but put in the wrong place: no certificate can see it, the parity test must.


def test_parity_sees_tokens_given_their_neighbours_rows(monkeypatch):
    setting = _setting({})
    assert _difference(*setting) <= 1e-6
    real = reduce.Queries.wanted
    for shift in (-1, 1):
        wrong = functools.partialmethod(lambda self, first, rows, shift: real(self, first + shift, rows), shift=shift)
        monkeypatch.setattr(reduce.Queries, "wanted", wrong)
        assert _difference(*setting) > 1e-2


def test_parity_sees_columns_off_by_one(monkeypatch):
    real = reduce._columns_on
    shifted = lambda layout, device: [slice(one.start + 1, one.stop + 1) for one in real(layout, device)]  # noqa: E731
    monkeypatch.setattr(reduce, "_columns_on", shifted)
    assert _difference(*_setting({})) > 1e-2


def test_parity_sees_layers_given_each_others_maps(monkeypatch):
    real = recorder_module.attention_modules

    def swapped(model, family):
        names, modules = zip(*real(model, family), strict=True)
        return list(zip(names, modules[::-1], strict=True))

    monkeypatch.setattr(recorder_module, "attention_modules", swapped)
    assert _difference(*_setting({})) > 1e-2


def test_a_layer_that_is_not_seen_or_seen_twice_is_named():
    subject, inputs, ids = _setting({})
    layer = subject.model.get_decoder().layers[1].self_attn
    real = layer.forward

    def again(*args, **kwargs):
        real(*args, **kwargs)
        return real(*args, **kwargs)

    for forward in (again, lambda hidden_states, **kwargs: (torch.zeros_like(hidden_states), None)):
        layer.forward = forward
        with pytest.raises(recorder_module.CaptureError, match=r"layers\.1\.self_attn \([02] times\)"):
            read(subject, inputs, ids)
    del layer.forward
    assert read(subject, inputs, ids).certificate.passed


# Of a guided batch only the conditional half is about the prompt. ------------------------------------------------------


def _unet_difference(pipeline):
    """How far a recording is from the plain maps of the conditional half."""
    with heard(pipeline.unet) as calls, DiffusionRecorder(pipeline, timesteps="all") as recorder:
        generate(pipeline, steps=2)
    return largest_difference_of_unet(recorder.result(), calls, pipeline, row=1)


def test_averaged_halves_fail_the_certificate(monkeypatch):
    pipeline, halves = tiny_sd(seed=4), {}
    real = diffusion._of_batch

    def both(call, row):
        halves["call"] = call
        return real(call, row)

    def averaged(module, call, **chosen):
        rows = [attention_rows(module, real(halves["call"], row), **chosen) for row in (0, 1)]
        return (rows[0] + rows[1]) / 2

    monkeypatch.setattr(diffusion, "_of_batch", both)
    monkeypatch.setattr(diffusion, "attention_rows", averaged)
    with DiffusionRecorder(pipeline) as recorder:
        generate(pipeline, steps=1)
    with pytest.raises(CertificateError, match="does not rebuild"):
        recorder.result()


def test_parity_sees_the_wrong_half(monkeypatch):
    pipeline, real = tiny_sd(seed=4), diffusion._of_batch
    assert _unet_difference(pipeline) <= 1e-6
    monkeypatch.setattr(diffusion, "_of_batch", lambda call, row: real(call, 1 - row))
    assert _unet_difference(pipeline) > 1e-2
