"""How concentrated maps are, against loops over patches and values by hand."""

from __future__ import annotations

from math import inf, log, nan

import pytest
import torch

from probe.analysis.concentration import (
    argmax_share,
    border_cells,
    concentration,
    entropy,
    gini,
    peaks,
    sink_cells,
    top1_share,
)
from probe.errors import InputError

ONES = torch.ones(4, 4)


def one_patch(row: int, col: int, *, value: float = 1.0) -> torch.Tensor:
    found = torch.zeros(4, 4)
    found[row, col] = value
    return found


def test_a_uniform_map_and_one_patch_have_the_values_of_the_formulas():
    flat = torch.full((4, 4), 3.0)
    assert entropy(flat, ONES).item() == pytest.approx(log(16))
    assert gini(flat, ONES).item() == pytest.approx(0)
    assert entropy(one_patch(1, 2), ONES).item() == pytest.approx(0)
    assert gini(one_patch(1, 2), ONES).item() == pytest.approx(15 / 16)
    # One patch off a flat map: its deviation is 15/16, the other fifteen have -1/16 each.
    assert top1_share(one_patch(1, 2), ONES).item() == pytest.approx((15 / 16) ** 2 / ((15 / 16) ** 2 + 15 / 256))


def test_variance_spread_evenly_gives_one_over_n():
    board = torch.tensor([[1.0, -1.0] * 2, [-1.0, 1.0] * 2] * 2)
    assert top1_share(board, ONES).item() == pytest.approx(1 / 16)
    assert top1_share(7 * board + 100, ONES).item() == pytest.approx(1 / 16)


def test_random_maps_agree_with_plain_loops_over_patches():
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(3, 5, generator=generator).double()
    weight[0, :2] = 0
    maps = torch.randn(6, 3, 5, generator=generator).double()
    found = concentration(maps, weight)
    for number, one in enumerate(maps):
        pairs = [(a, w) for a, w in zip(one.flatten().tolist(), weight.flatten().tolist(), strict=True) if w > 0]
        total = sum(max(a, 0) * w for a, w in pairs)
        area = sum(w for _, w in pairs)
        shares = [(max(a, 0) * w / total, w) for a, w in pairs]
        assert found["entropy"][number].item() == pytest.approx(-sum(p * log(p / w) for p, w in shares if p > 0))
        apart = sum(w * v * abs(max(a, 0) - max(b, 0)) for a, w in pairs for b, v in pairs)
        assert found["gini"][number].item() == pytest.approx(apart / (2 * area * total))
        mean = sum(a * w for a, w in pairs) / area
        squares = [w * (a - mean) ** 2 for a, w in pairs]
        assert found["top1_share"][number].item() == pytest.approx(max(squares) / sum(squares))


def test_the_border_is_the_outer_ring_of_what_is_seen():
    ring = border_cells(ONES)
    assert int(ring.sum()) == 12
    assert not ring[1:3, 1:3].any()
    padded = ONES.clone()
    padded[0] = padded[3] = 0  # bars above and below: all that is left lies on the border
    assert border_cells(padded).tolist() == (padded > 0).tolist()
    maps = torch.stack([one_patch(0, 3), one_patch(1, 1), one_patch(2, 0)])
    assert argmax_share(maps, ONES, ring).tolist() == [1, 0, 1]
    tied = one_patch(0, 0) + one_patch(1, 1)
    assert argmax_share(tied, ONES, ring).item() == 0.5
    padding = one_patch(0, 0, value=9.0) + one_patch(1, 1)
    hidden = ONES.clone()
    hidden[0] = 0
    assert argmax_share(padding, hidden, border_cells(hidden)).item() == 1  # (1, 1) is now in the first seen row
    assert argmax_share(padding, hidden, torch.zeros(4, 4, dtype=torch.bool)).item() == 0


def test_a_sink_is_what_every_word_looks_at():
    mean_map = torch.full((4, 4), 0.01)
    mean_map[2, 2] = 0.11
    assert sink_cells(mean_map, ONES).nonzero().tolist() == [[2, 2]]
    assert not sink_cells(mean_map, ONES, times=12).any()
    found = concentration(one_patch(2, 2), ONES, mean_map)
    assert found["sink_share"].item() == 1


def test_each_map_is_held_to_its_own_sinks_and_none_tell_nothing():
    mean_maps = torch.full((2, 1, 4, 4), 0.01)  # (layer, 1, row, col)
    mean_maps[0, 0, 2, 2] = mean_maps[1, 0, 0, 3] = 0.5
    maps = torch.stack([one_patch(2, 2), one_patch(0, 3), one_patch(1, 1)]).expand(
        2, 3, 4, 4
    )  # (layer, phrase, row, col)
    found = peaks(maps, ONES, mean_maps)
    assert found["sink_share"].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert found["border_share"].tolist() == [[0, 1, 0], [0, 1, 0]]
    bars = ONES.clone()
    bars[0] = 0  # what is not seen is neither
    assert peaks(maps, bars, mean_maps)["sink_share"].nan_to_num(9).tolist() == [[1, 9, 0], [0, 9, 0]]
    assert peaks(maps, ONES, None)["sink_share"].isnan().all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_small_spread_on_a_large_offset_keeps_its_digits(scale):
    spread = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    maps = scale * (1 + spread / 2**10)
    exact = maps.double().flatten() - maps.double().mean()
    assert top1_share(maps, ONES).item() == pytest.approx(
        (exact.square().max() / exact.square().sum()).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("maps", "weight", "undefined"),
    [
        (torch.full((4, 4), 0.1), ONES, {"top1_share", "border_share", "sink_share"}),
        (-ONES - one_patch(1, 1), ONES, {"entropy", "gini"}),
        (one_patch(1, 1, value=nan), ONES, {"entropy", "gini", "top1_share", "border_share", "sink_share"}),
        (one_patch(1, 1, value=inf), ONES, {"entropy", "gini", "top1_share", "border_share", "sink_share"}),
        (one_patch(1, 1), torch.zeros(4, 4), {"entropy", "gini", "top1_share", "border_share", "sink_share"}),
    ],
    ids=["constant", "nothing positive", "not a number", "infinite", "unseen"],
)
def test_what_allows_no_answer_is_nan(maps, weight, undefined):
    found = concentration(maps, weight, ONES)
    assert {name for name, one in found.items() if one.isnan()} == undefined


def test_nan_in_padding_is_never_read():
    weight = ONES.clone()
    weight[0, 0] = 0
    found = concentration(one_patch(0, 0, value=nan) + one_patch(2, 2), weight, ONES)
    assert not any(one.isnan() for one in found.values())


def test_another_grid_is_refused():
    with pytest.raises(InputError, match=r"\(3, 4\) but the weight has \(4, 4\)"):
        entropy(torch.ones(3, 4), ONES)
    with pytest.raises(InputError, match=r"cells have \(row, col\) \(2, 2\)"):
        argmax_share(ONES, ONES, torch.ones(2, 2, dtype=torch.bool))
