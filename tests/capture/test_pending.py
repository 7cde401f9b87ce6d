"""Rows of decode steps are computed together afterwards, from keys that are shown to be those of their own step."""

from __future__ import annotations

import pytest
import torch

import probe
from probe.capture import tracks
from probe.capture.pending import PendingRows, keeps_keys
from probe.errors import CaptureError, CertificateError
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _generated(subject, *, padding=0, steps=9, verify="sample", **options):
    inputs = inputs_of(subject, picture(), padding=padding)
    with probe.record(subject, verify=verify) as recorder:
        subject.model.generate(**inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, **options)
    return recorder.result()


def _alike(one, other):
    for first, second in zip(one.layers, other.layers, strict=True):
        for part in ("values", "token_mean", "rest"):
            torch.testing.assert_close(getattr(first, part), getattr(second, part), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("cache", [None, "static"])
def test_rows_computed_together_are_those_computed_one_by_one(monkeypatch, attention, padding, cache):
    subject = tiny_llava(seed=3, attention=attention)
    options = {} if cache is None else {"cache_implementation": cache, "disable_compile": True}
    together = _generated(subject, padding=padding, **options)
    monkeypatch.setattr("probe.capture.recorder.keeps_keys", lambda cache: False)
    one_by_one = _generated(subject, padding=padding, **options)
    assert together.token_ids == one_by_one.token_ids
    _alike(together, one_by_one)


def test_several_rounds_of_waiting_rows_keep_their_order(monkeypatch):
    subject = tiny_llava(seed=4)
    whole = _generated(subject, steps=11)
    monkeypatch.setattr(tracks, "ROWS_AT_ONCE", 4)
    _alike(whole, _generated(subject, steps=11))


def test_every_row_that_waited_is_held_against_the_kernel():
    record = _generated(tiny_llava(seed=5), steps=20)
    layers = len(record.layers)
    # The prefill has one wanted row, the one that predicts the first token; 19 more were decoded.
    assert record.certificate.rows == 20 * layers
    assert _generated(tiny_llava(seed=5), steps=20, verify="off").certificate.rows == 0


def test_a_cache_that_changes_keys_behind_the_recorder_is_caught(monkeypatch):
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    def changed(self, key_states, value_states, *args, **kwargs):
        keys, values = original(self, key_states, value_states, *args, **kwargs)
        if key_states.shape[-2] == 1:
            keys[..., 0, :] += 0.5  # in place: what this step sees differs from what the step before saw
        return keys, values

    original = DynamicLayer.update
    subject = tiny_llava(seed=6)
    monkeypatch.setattr(DynamicLayer, "update", changed)
    assert keeps_keys(DynamicCache(config=subject.model.config.get_text_config()))
    with pytest.raises(CertificateError, match="does not rebuild"):
        _generated(subject)


def test_keys_that_are_quantised_rotated_or_offloaded_are_not_waited_for():
    from transformers import DynamicCache, StaticCache
    from transformers.cache_utils import QuantizedLayer

    config = tiny_llava().model.config.get_text_config()
    assert keeps_keys(DynamicCache(config=config))
    assert keeps_keys(StaticCache(config=config, max_cache_len=32))
    assert not keeps_keys(None)
    assert not keeps_keys(DynamicCache())  # has no layers yet: the first pass is computed at once in any case
    moved = DynamicCache(config=config)
    moved.offloading = True
    assert not keeps_keys(moved)
    quantised = DynamicCache(config=config)
    quantised.layers[1] = type("Quantised", (QuantizedLayer,), {"_quantize": None, "_dequantize": None})()
    assert not keeps_keys(quantised)


def test_dropout_is_refused_when_the_row_is_seen():
    subject = tiny_llava(seed=7, attention_dropout=0.5)
    subject.model.train()
    with pytest.raises(CaptureError, match="dropout"):
        _generated(subject)


def test_a_failed_generation_leaves_no_keys_held():
    subject = tiny_llava(seed=8)

    def stop(ids, scores):
        if ids.shape[1] > stop.length + 3:
            raise RuntimeError("stopped")
        return scores

    inputs = inputs_of(subject, picture())
    stop.length = inputs["input_ids"].shape[1]
    with probe.record(subject) as recorder, pytest.raises(RuntimeError, match="stopped"):
        subject.model.generate(**inputs, max_new_tokens=9, min_new_tokens=9, logits_processor=[stop])
    assert not recorder.tracks
    with pytest.raises(CaptureError, match="did not come to its end"):
        recorder.result()


def test_what_cannot_wait_is_computed_at_once():
    class Call:
        kernel, options = "flash_attention_2", {"sliding_window": 8}
        query = key = torch.zeros(1, 2, 1, 4)
        mask = None

    assert not PendingRows().fits(Call)
    Call.options = {}
    assert PendingRows().fits(Call)
    Call.mask = torch.ones(1, 1, dtype=torch.bool)
    assert not PendingRows().fits(Call)  # flash attention's own padding mask
    Call.mask, Call.query = None, torch.zeros(1, 2, 3, 4)
    assert not PendingRows().fits(Call)
