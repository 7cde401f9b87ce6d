"""DAAM against a plain line, on maps whose layers differ in grid and heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probe.analysis.aggregates import daam
from probe.attention import AttentionRecord, LayerAttention
from probe.errors import InputError
from probe.layout import PatchGrid
from probe.provenance import Certificate, Source


def _record(shapes, *, steps=2, tokens=3, size=(24, 16), seed=0):
    random = torch.Generator().manual_seed(seed)
    layers = []
    for number, (heads, rows, cols) in enumerate(shapes):
        values = torch.rand(steps, heads, tokens, rows, cols, generator=random) ** 4
        grid = PatchGrid(size, tuple(np.linspace(0, size[0], rows + 1)), tuple(np.linspace(0, size[1], cols + 1)))
        rest = torch.zeros(steps, heads, tokens, 3)
        layers.append(LayerAttention(f"{number}", "image 0", grid, values, values.mean(2), rest))
    return AttentionRecord(
        layers=tuple(layers), quantity="attention", query_kind="text token", tokens=("a", "b", "c"), token_ids=(1, 2, 3),
        spans=((0, 1), (2, 3), (4, 5)), text="a b c", image_size=size, softmax_over="tokens", query_row=None,
        certificate=Certificate("all", 1, 0.0, 1e-5, len(shapes), 3, 1), source=Source("", "", "", "", "", "", "", ""),
    )  # fmt: skip


def _plain(record, token):
    """Enlarged by torch's own bicubic interpolation, cut off at 0, added up."""
    total = torch.zeros(record.image_size, dtype=torch.float64)
    for layer in record.layers:
        for one in layer.values[:, :, token].flatten(0, 1):
            large = torch.nn.functional.interpolate(one[None, None].double(), size=record.image_size, mode="bicubic")
            total += large[0, 0].clamp(min=0)
    return total.numpy()


def test_daam_is_the_sum_of_the_enlarged_maps():
    record = _record([(2, 3, 2), (4, 6, 4), (1, 12, 8)])
    for token, word in enumerate(record.tokens):
        np.testing.assert_allclose(daam(record[word]), _plain(record, token), rtol=1e-5, atol=1e-6)
    both = (_plain(record, 0) + _plain(record, 2)) / 2
    np.testing.assert_allclose(daam(record.select(tokens=[0, 2])), both, rtol=1e-5, atol=1e-6)


def test_undershoot_is_cut_off_before_the_sum_and_not_after():
    record = _record([(2, 6, 4)], seed=1)
    record.layers[0].values[:] = 0
    record.layers[0].values[0, 0, 0, 2, 1] = 1  # rings below 0 around it
    record.layers[0].values[0, 1, 0, 3, 3] = 1
    assert daam(record["a"]).min() >= 0
    np.testing.assert_allclose(daam(record["a"]), _plain(record, 0), atol=1e-6)
    plain = sum(record.layers[0].grid.upsample(one) for one in record.layers[0].values[0, :, 0])
    assert np.abs(np.maximum(plain, 0) - daam(record["a"])).max() > 1e-3


def test_another_size_is_sampled_at_its_own_pixels():
    record = _record([(2, 6, 4)])
    assert daam(record["a"], size=(6, 4)).shape == (6, 4)
    plain = record.layers[0].values[:, :, 0].sum((0, 1))
    np.testing.assert_allclose(daam(record["a"], size=(6, 4)), plain, rtol=1e-5)


def test_what_is_no_attention_to_words_is_refused():
    record = _record([(2, 3, 2)])
    with pytest.raises(InputError, match="holds attention of each patch"):
        daam(replace(record, softmax_over="patches", query_kind="patch"))
    with pytest.raises(InputError, match="without minus_mean"):
        daam(record.minus_mean())
