"""Bytes that the browser reads: what comes back, how far off, and how many levels each map gets."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from probe.errors import InputError
from probe.widgets.packing import (
    FINEST,
    MISSING,
    choose_levels,
    deflate,
    exact_heads,
    pack_heads,
    pack_heads_quickly,
    pack_means,
    quantise,
)
from probe.widgets.sheets import make_sheet
from tests.records import make_grid
from tests.widgets.made import padded_grid, ragged_record

GRID = make_grid(4, 4, image_size=(32, 32))


def unpacked(content: bytes, shapes: list[tuple[int, int]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Maps and steps from their bytes, number by number as the module in the browser reads them."""
    count = len(shapes)
    scales = np.frombuffer(content[: 8 * count], dtype="<f4").reshape(count, 2).astype(np.float64)
    levels, commonest = (np.frombuffer(content[(8 + i) * count : (9 + i) * count], dtype=np.uint8) for i in (0, 1))
    at, maps = 10 * count, []
    for (low, high), level, start, (rows, cols) in zip(scales, levels, commonest, shapes, strict=True):
        step = (high - low) / level
        numbers = content[at : at + rows * cols]
        values = [np.nan if one == MISSING else low + (one + int(start)) % MISSING * step for one in numbers]
        maps.append(np.reshape(values, (rows, cols)))
        at += rows * cols
    assert at == len(content)
    return maps, (scales[:, 1] - scales[:, 0]) / levels


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, (3, 4, 4), elements=st.floats(-100, 100, width=32)), st.sampled_from([FINEST, 63, 7, 2])
)
def test_no_patch_is_off_by_more_than_half_a_step(maps, levels):
    whole, scales = quantise(maps, GRID, levels=levels)
    assert whole.max() <= levels
    width = scales[:, 1].astype(np.float64) - scales[:, 0]
    back = scales[:, 0, None, None] + whole * (width / levels)[:, None, None]
    assert (np.abs(back - maps) <= (width / levels / 2)[:, None, None] * (1 + 1e-5) + 1e-5 * np.abs(maps)).all()
    assert np.array_equal(scales, np.stack([maps.min((1, 2)), maps.max((1, 2))], axis=1))


def test_padding_stretches_no_scale_and_what_is_no_number_stays_so():
    grid = padded_grid()
    assert (grid.weight[0] == 0).all()
    maps = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    maps[0, 0, 0], maps[0, 4, 4] = 1e6, np.nan  # a sink in the padding; a patch that no layer covers
    whole, scales = quantise(maps, grid)
    seen = np.where(grid.weight > 0, maps[0], np.nan)
    np.testing.assert_array_equal(scales, [[np.nanmin(seen), np.nanmax(seen)]])
    assert (whole[0, 0, 0], whole[0, 4, 4]) == (0, MISSING)
    assert not (whole[0][grid.weight > 0] == MISSING).sum() - 1


def test_a_constant_map_and_one_of_nothing_come_back():
    maps = np.stack([np.full((4, 4), 0.25, np.float32), np.full((4, 4), np.nan, np.float32)])
    whole, scales = quantise(maps, GRID)
    assert scales.tolist() == [[0.25, 0.25], [0, 0]]
    assert (whole[0] == 0).all()
    assert (whole[1] == MISSING).all()


@pytest.mark.parametrize("levels", [0, 255, np.array([7, 0], np.uint8)])
def test_levels_that_do_not_exist_are_refused(levels):
    with pytest.raises(InputError, match="levels must be 1 to 254"):
        quantise(np.zeros((2, 4, 4), np.float32), GRID, levels=levels)


def test_what_is_packed_comes_back_with_its_own_levels():
    record = ragged_record()
    sheet, grids = make_sheet(record, [2]), [one.grid for one in record.layers]
    shapes = [(8, 8)] * 2 + [(4, 4)] * 3
    heads = [head for layer in sheet.heads for head in layer]
    levels = [np.array([254, 7], np.uint8), np.array([2, 63, 31], np.uint8)]
    maps, steps = unpacked(pack_heads(sheet, grids, levels), shapes)
    for back, head, step in zip(maps, heads, steps, strict=True):
        assert 0 < np.abs(back - head).max() <= step / 2 * (1 + 1e-4)
    quick, steps = unpacked(pack_heads_quickly(sheet, grids), shapes)
    for back, head, step in zip(quick, heads, steps, strict=True):
        assert step <= np.ptp(head) / 253
        assert np.abs(back - head).max() <= step / 2 * (1 + 1e-4)
    exact = np.frombuffer(exact_heads(sheet), dtype="<f4")
    assert np.array_equal(exact, np.concatenate([one.ravel() for one in heads]))


def test_means_begin_with_the_exact_mean_of_all():
    record = ragged_record()
    sheet, grids = make_sheet(record, [2]), [one.grid for one in record.layers]
    content = pack_means(sheet, grids)
    assert np.array_equal(np.frombuffer(content[:256], dtype="<f4").reshape(8, 8), sheet.overall)
    maps, steps = unpacked(content[256:], [(8, 8), (4, 4)])
    assert all(np.abs(a - b).max() <= c / 2 * (1 + 1e-4) for a, b, c in zip(maps, sheet.means, steps, strict=True))
    exact = np.frombuffer(pack_means(sheet, grids, exact=True)[256:], dtype="<f4")
    assert np.array_equal(exact, np.concatenate([one.ravel() for one in sheet.means]))


def test_peaks_keep_every_level_and_noise_keeps_few():
    rng = np.random.default_rng(0)
    grid = make_grid(24, 24, image_size=(336, 336))
    noise = rng.normal(size=(24, 24))
    peak = 1e-4 * rng.random((24, 24))
    peak[3, 5] = 1
    maps = np.stack([noise, peak]).astype(np.float32)
    few, every = choose_levels(maps, grid, bits=2.0)
    assert few < 20
    assert every == FINEST
    # The bits are kept: the entropy of what is written, counted anew.
    for bits in (1.25, 2.0, 3.0):
        chosen = choose_levels(maps, grid, bits=bits)
        whole = quantise(maps, grid, levels=chosen)[0]
        for one in whole:
            share = np.unique(one, return_counts=True)[1] / one.size
            assert -(share * np.log2(share)).sum() <= bits + 0.15  # it is chosen on the finest numbers, merged
    assert (choose_levels(maps, grid, bits=8.0) == FINEST).all()


def test_either_strategy_is_a_stream_that_anybody_reads():
    rng = np.random.default_rng(0)
    noise, blank = rng.integers(0, 200, 5000, dtype=np.uint8).tobytes(), bytes(5000)
    assert zlib.decompress(deflate(noise)) == noise
    assert zlib.decompress(deflate(blank)) == blank
    assert len(deflate(blank)) < 60  # repeats were searched for
