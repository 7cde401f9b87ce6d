"""Sinks that were planted are found, by attention and by hidden states; each remedy is what its formula says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probe.analysis.sinks import (
    REMEDIES,
    dimension_sinks,
    norm_sinks,
    redistribute_attention,
    remedied_maps,
    sink_dimensions,
    stable_sinks,
)
from probe.attention import AttentionRecord
from probe.errors import InputError
from tests.records import make_grid, make_record

SINK = (1, 3)
TOKENS = [(1, 2), (5, 6)]


def with_sink(seed: int = 0, *, times: float = 40.0) -> AttentionRecord:
    """Every token looks at one patch; token 2 looks as much at another."""
    record = make_record(seed=seed)
    layers = []
    for layer in record.layers:
        values = layer.values.clone()
        values[..., SINK[0], SINK[1]] = times * values.flatten(-2).median(-1).values
        values[:, :, 2, 3, 0] = values[:, :, 2, SINK[0], SINK[1]]
        total = values.sum((-2, -1)) + layer.rest.sum(-1)
        values = values / total[..., None, None]
        layers.append(replace(layer, values=values, token_mean=values.mean(2), rest=layer.rest / total[..., None]))
    return replace(record, layers=tuple(layers))


def only(*cells: tuple[int, int], shape: tuple[int, int] = (4, 4)) -> torch.Tensor:
    one = torch.zeros(shape, dtype=torch.bool)
    for cell in cells:
        one[cell] = True
    return one


def test_a_sink_is_what_almost_every_token_looks_at() -> None:
    record = with_sink()
    assert torch.equal(stable_sinks(record), only(SINK))
    # One token of eight looks at the other: enough for a share of one in ten.
    assert torch.equal(stable_sinks(record, share=0.1), only(SINK, (3, 0)))
    assert not stable_sinks(record, times=200).any()
    assert not stable_sinks(make_record()).any()
    assert not stable_sinks(replace(record["red"], layers=tuple(
        replace(one, token_mean=one.values[:, :, 0]) for one in record["red"].layers
    ))).any()  # fmt: skip


def test_padding_is_no_sink_and_does_not_move_the_median() -> None:
    record = with_sink()
    edges = tuple(np.linspace(0, 96, 5))  # three of four columns are padding, the sink's too
    grid = replace(make_grid(4, 4, image_size=(32, 24)), row_edges=tuple(np.linspace(0, 32, 5)), col_edges=edges)
    moved = replace(record, image_size=(32, 24), layers=tuple(replace(one, grid=grid) for one in record.layers))
    assert (grid.weight[:, 1:] == 0).all()
    assert not stable_sinks(moved).any()


def test_sinks_by_hidden_states() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn((3, 4, 4, 900), generator=generator)
    states[1, 1, 3, 700] = 500.0
    expected = torch.stack([only(), only(SINK), only()])
    assert torch.equal(norm_sinks(states), expected)
    assert torch.equal(dimension_sinks(states, [3, 700]), expected)
    assert not dimension_sinks(states, [3, 4]).any()
    # 500 / sqrt((500^2 + 899) / 900) is 29.9.
    assert torch.equal(dimension_sinks(states, [700], threshold=29.8), expected)
    assert not dimension_sinks(states, [700], threshold=29.97).any()
    assert sink_dimensions(states[:, 1, 3]) == (700,)
    assert sink_dimensions(states[:, 0, 0]) == ()


@pytest.mark.parametrize(("dimensions", "threshold", "message"), [
    ([], 20, "some of 0 to 899"), ([900], 20, "some of 0 to 899"), ([1], 31, "at most 30.0; give a smaller"),
])  # fmt: skip
def test_dimensions_and_thresholds_that_mean_nothing_are_refused(dimensions, threshold, message) -> None:
    with pytest.raises(InputError, match=message):
        dimension_sinks(torch.ones(2, 2, 900), dimensions, threshold=threshold)


def test_redistribution_keeps_the_sum_and_the_proportions() -> None:
    layer = with_sink().layers[0]
    found = redistribute_attention(layer, only(SINK), kept=0.6)
    bos, text = layer.rest[..., 0], layer.rest[..., 1:].sum(-1)
    torch.testing.assert_close(found.sum((-2, -1)) + 0.6 * bos + text, torch.ones_like(bos))
    # By hand, one row.
    line = layer.values[0, 1, 4]
    budget = 0.4 * (line[SINK] + layer.rest[0, 1, 4, 0])
    others = line.sum() - line[SINK]
    assert float(found[0, 1, 4][SINK]) == pytest.approx(0.6 * float(line[SINK]))
    assert float(found[0, 1, 4, 2, 2]) == pytest.approx(float(line[2, 2] * (1 + budget / others)), rel=1e-5)
    assert torch.equal(redistribute_attention(layer, only(SINK), kept=1), layer.values)
    # Nothing to give it to.
    assert torch.equal(redistribute_attention(layer, ~only()), layer.values)
    with pytest.raises(InputError, match="0 to 1, found 2"):
        redistribute_attention(layer, only(SINK), kept=2)


def test_every_remedy_is_its_formula() -> None:
    record, generic = with_sink(1), make_record(seed=9)
    found = remedied_maps(record, TOKENS, only(SINK), generic=generic)
    assert tuple(found) == tuple(REMEDIES)
    values = record.stack()[:, 0]  # (layer, head, token, row, col)
    for phrase, tokens in enumerate(TOKENS):
        own = values[:, :, list(tokens)].mean((1, 2))  # (layer, row, col)
        divided = own / generic.stack()[:, 0].mean((1, 2))
        dropped = own.mean(0)
        dropped[SINK] = 0
        spread = torch.stack([redistribute_attention(one, only(SINK))[0, :, list(tokens)] for one in record.layers])
        expected = {
            "none": own.mean(0),
            "minus mean": (own - values.mean((1, 2))).mean(0),
            "generic prompt": divided.mean(0),
            "redistribution": spread.mean((0, 1, 2)),
            "dropped sinks": dropped,
        }
        for name, one in expected.items():
            torch.testing.assert_close(found[name][phrase].float(), one, atol=1e-6, rtol=1e-4)
    assert "generic prompt" not in remedied_maps(record, TOKENS, only(SINK))


def test_records_without_one_grid_or_of_another_model_are_refused() -> None:
    record = with_sink()
    odd = replace(record.layers[1], grid=make_grid(4, 4, image_size=(32, 32)), view="thumbnail")
    with pytest.raises(InputError, match="select layers or a view"):
        stable_sinks(replace(record, layers=(record.layers[0], odd)))
    with pytest.raises(InputError, match="minus its mean"):
        stable_sinks(record.minus_mean())
    with pytest.raises(InputError, match=r"sinks have \(row, col\) \(4, 5\)"):
        remedied_maps(record, TOKENS, only(shape=(4, 5)))
    with pytest.raises(InputError, match="the generic record has 3 layers"):
        remedied_maps(record, TOKENS, only(), generic=make_record(layers=3))
