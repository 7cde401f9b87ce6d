"""A generated answer and the same answer read in one pass have the same maps: the first token included."""

from __future__ import annotations

import pytest
import torch

import probe
from tests.capture.reference import inputs_of
from tests.tiny import picture, tiny_llava

# The model's own RMSNorm and softmax round to float32, and cached and whole passes add up in another order.
ALLOWED = {torch.float64: 2e-6, torch.float32: 2e-5}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _same(generated, taught, allowed):
    assert generated.token_ids == taught.token_ids
    assert (generated.tokens, generated.spans, generated.text) == (taught.tokens, taught.spans, taught.text)
    assert generated.query_row == taught.query_row
    for one, other in zip(generated.layers, taught.layers, strict=True):
        assert one.name == other.name
        for part in ("values", "token_mean", "rest"):
            torch.testing.assert_close(getattr(one, part), getattr(other, part), atol=allowed, rtol=0)


def test_own_rows_of_run_cover_the_last_token_too():
    subject = tiny_llava(seed=1)
    predicting = probe.run(subject, picture(), "a dog", max_new_tokens=5).record
    own = probe.run(subject, picture(), "a dog", max_new_tokens=5, query_row="own").record
    assert own.token_ids == predicting.token_ids
    # The own row of a token is the row that predicts the one after it.
    for one, other in zip(own.layers, predicting.layers, strict=True):
        torch.testing.assert_close(one.values[:, :, :-1], other.values[:, :, 1:], atol=2e-5, rtol=0)


def test_a_static_cache_changes_nothing():
    subject = tiny_llava(seed=2)
    inputs = inputs_of(subject, picture())
    with probe.record(subject, verify="all") as plain:
        subject.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    with probe.record(subject, verify="all") as other:
        subject.model.generate(**inputs, max_new_tokens=6, do_sample=False, cache_implementation="static")
    _same(plain.result(), other.result(), 2e-5)


def test_dictionary_output_and_positional_ids_are_read_alike():
    subject = tiny_llava(seed=3)
    inputs = inputs_of(subject, picture())
    with probe.record(subject) as plain:
        subject.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    rest = {name: one for name, one in inputs.items() if name != "input_ids"}
    with probe.record(subject) as other:
        subject.model.generate(
            inputs["input_ids"], **rest, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
        )
    _same(plain.result(), other.result(), 0)


def test_an_answer_that_ends_at_once_is_called_empty():
    subject = tiny_llava(seed=4)
    with probe.record(subject) as recorder:
        subject.model.generate(
            **inputs_of(subject, picture()), max_new_tokens=5, do_sample=False, suppress_tokens=[0, 1, *range(3, 330)]
        )
    with pytest.raises(probe.ProbeError, match=r"The answer is empty: the model gave only \['</s>'\]"):
        recorder.result()
