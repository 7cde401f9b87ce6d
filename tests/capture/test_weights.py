"""Numbers of rows on a device, and how many rows are computed at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from probe.capture.weights import ROWS_AT_ONCE, index_on, rows_at_once


@pytest.mark.parametrize("numbers", [[3], [3, 4, 5], [0, 2, 1], [7, 9], [5, 5], [4, 3, 2]])
def test_numbers_are_kept_in_their_order(numbers):
    assert index_on(numbers, torch.device("cpu")).tolist() == numbers


def test_numbers_that_were_asked_for_under_inference_mode_serve_gradients_later():
    with torch.inference_mode():
        index_on([11, 13], torch.device("cpu"))
    values = torch.ones(14, requires_grad=True)
    (values[index_on([11, 13], torch.device("cpu"))] * 2).sum().backward()
    assert values.grad.nonzero().flatten().tolist() == [11, 13]


def _call(device, keys):
    return SimpleNamespace(query=SimpleNamespace(device=torch.device(device)), key=torch.empty(1, 1, keys, 1))


def test_more_rows_at_a_time_on_a_gpu_but_never_much_beside_what_is_kept():
    layers, heads, patches, keys = 32, 32, 576, 1640
    assert rows_at_once(_call("cpu", keys), heads, kept=10**9) == ROWS_AT_ONCE
    for rows in (1, 64, 1000, 4000):
        kept = layers * heads * rows * patches
        count = rows_at_once(_call("cuda", keys), heads, kept=kept)
        assert count >= ROWS_AT_ONCE
        assert count == ROWS_AT_ONCE or count * heads * keys <= min(kept / 24, 2**25)
    assert count > 500
