"""Patches and pixels: every number of a grid against a plain loop over the pixels."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.errors import InputError
from probe.layout import PatchGrid, View, resolve_indices


def _random_grid(rng):
    size = rng.randint(1, 24), rng.randint(1, 24)
    shape = rng.randint(1, 6), rng.randint(1, 6)
    scale = rng.uniform(0.2, 3), rng.uniform(0.2, 3)
    offset = rng.uniform(-9, 9), rng.uniform(-9, 9)
    patch = rng.randint(1, 8)
    return PatchGrid.from_affine(size, shape=shape, patch_size=patch, scale=scale, offset=offset), scale, offset


def _shared(a, b, c, d):
    return max(min(b, d) - max(a, c), 0.0)


def test_affine_edges_follow_the_formula():
    rng = random.Random(0)
    for _ in range(200):
        grid, scale, offset = _random_grid(rng)
        for row in range(grid.shape[0] + 1):
            assert grid.row_edges[row] == pytest.approx((row * grid.patch_size - offset[0]) / scale[0])
        for col in range(grid.shape[1] + 1):
            assert grid.col_edges[col] == pytest.approx((col * grid.patch_size - offset[1]) / scale[1])


def test_shares_weights_boxes_and_centres_against_a_double_loop():
    rng = random.Random(1)
    for _ in range(150):
        grid, _, _ = _random_grid(rng)
        (height, width), (rows, cols) = grid.image_size, grid.shape
        mask = np.random.default_rng(rng.randrange(10**6)).random((height, width)) < 0.5
        share = grid.mask_share(mask)
        for r in range(rows):
            for c in range(cols):
                top, bottom = grid.row_edges[r : r + 2]
                left, right = grid.col_edges[c : c + 2]
                area = (bottom - top) * (right - left)
                inside = whole = 0.0
                for y in range(height):
                    for x in range(width):
                        part = _shared(top, bottom, y, y + 1) * _shared(left, right, x, x + 1)
                        whole += part
                        inside += part * mask[y, x]
                assert grid.weight[r, c] == pytest.approx(whole / area, abs=1e-8)
                assert share[r, c] == pytest.approx(inside / area, abs=1e-8)
                assert 0 <= share[r, c] <= grid.weight[r, c] <= 1
                if whole > 1e-6:
                    box = grid.boxes[r, c]
                    assert box == pytest.approx([max(top, 0), max(left, 0), min(bottom, height), min(right, width)])
                    y, x = grid.centres[r, c]
                    assert y <= (box[0] + box[2]) / 2 <= y + 1
                    assert x <= (box[1] + box[3]) / 2 <= x + 1
                else:
                    assert grid.weight[r, c] == pytest.approx(0, abs=1e-6)
        assert grid.weight.sum() == 0 or set(np.unique(grid.weight == 0)) <= {True, False}
        np.testing.assert_allclose(grid.mask_share(np.ones((height, width))), grid.weight, atol=1e-12)


def test_a_stack_of_masks_is_shared_mask_by_mask():
    grid, _, _ = _random_grid(random.Random(2))
    masks = np.random.default_rng(2).random((3, 2, *grid.image_size)) < 0.5
    found = grid.mask_share(masks)
    assert found.shape == (3, 2, *grid.shape)
    for i in range(3):
        np.testing.assert_array_equal(found[i, 1], grid.mask_share(masks[i, 1]))


def test_seen_pixels_are_those_whose_centre_lies_in_a_patch():
    rng = random.Random(3)
    for _ in range(100):
        grid, _, _ = _random_grid(rng)
        for y in range(grid.image_size[0]):
            for x in range(grid.image_size[1]):
                held = any(a <= y + 0.5 < b for a, b in zip(grid.row_edges, grid.row_edges[1:], strict=False)) and any(
                    a <= x + 0.5 < b for a, b in zip(grid.col_edges, grid.col_edges[1:], strict=False)
                )
                assert grid.seen[y, x] == held


def test_padding_weighs_exactly_nothing_and_inside_exactly_one():
    # 2 x 4 pixels padded to 4 x 4, resized to 8: one row of padding above and below.
    grid = PatchGrid.from_affine((2, 4), shape=(4, 4), patch_size=2, scale=(2, 2), offset=(2, 0))
    np.testing.assert_array_equal(grid.weight, np.array([[0.0], [1], [1], [0]]) * np.ones(4))
    grid = PatchGrid.from_affine((333, 500), shape=(24, 24), patch_size=14, scale=(0.672, 0.672), offset=(55.776, 0))
    np.testing.assert_allclose(grid.weight[4:19], 1, atol=1e-12)
    np.testing.assert_allclose(grid.weight[19], 13.552 / 14, atol=1e-9)
    assert set(np.unique(grid.weight[:3])) == {0.0}


def test_upsampling_is_the_librarys_where_the_grid_covers_the_image():
    rng = random.Random(4)
    for _ in range(20):
        shape, size = (rng.randint(1, 7), rng.randint(1, 7)), (rng.randint(1, 60), rng.randint(1, 60))
        grid = PatchGrid(
            size, tuple(np.linspace(0, size[0], shape[0] + 1)), tuple(np.linspace(0, size[1], shape[1] + 1))
        )
        values = torch.rand(shape)
        expected = torch.nn.functional.interpolate(values[None, None], size=size, mode="bicubic", align_corners=False)
        np.testing.assert_allclose(grid.upsample(values), expected[0, 0], atol=2e-5)


def test_upsampling_gives_what_was_cropped_away_no_number():
    grid = PatchGrid.from_affine((32, 64), shape=(4, 4), patch_size=8, scale=(1, 1), offset=(0, -16))
    found = grid.upsample(torch.rand(4, 4))
    assert np.isnan(found[:, :16]).all()
    assert np.isnan(found[:, 48:]).all()
    assert not np.isnan(found[:, 16:48]).any()
    np.testing.assert_array_equal(np.isnan(found), ~grid.seen)
    # A padded one is the picture's own part of the padded square's map.
    padded = PatchGrid.from_affine((32, 64), shape=(4, 4), patch_size=16, scale=(1, 1), offset=(16, 0))
    square = PatchGrid.from_affine((64, 64), shape=(4, 4), patch_size=16)
    values = torch.rand(4, 4)
    np.testing.assert_allclose(padded.upsample(values), square.upsample(values)[16:48], atol=1e-6)


def test_resampling_averages_by_area():
    rng = random.Random(5)
    for _ in range(60):
        grid, _, _ = _random_grid(rng)
        shape = rng.randint(1, 5), rng.randint(1, 5)
        rows, cols = grid.resampling_to(shape)
        for matrix, edges, count, length in zip(
            (rows, cols), (grid.row_edges, grid.col_edges), shape, grid.image_size, strict=True
        ):
            for i in range(count):
                low, high = i * length / count, (i + 1) * length / count
                parts = np.array([_shared(low, high, *pair) for pair in itertools.pairwise(edges)])
                if parts.sum() > 1e-9:
                    np.testing.assert_allclose(matrix[i], parts / parts.sum(), atol=1e-9)
                else:
                    assert np.isnan(matrix[i]).all()


@given(st.integers(1, 20), st.lists(st.integers(-25, 25), min_size=1, max_size=6))
@settings(deadline=None)
def test_indices_mean_what_they_mean_in_a_list(count, wanted):
    known = list(range(count))
    legal = all(-count <= one < count for one in wanted) and len({one % count for one in wanted}) == len(wanted)
    if legal:
        assert resolve_indices(wanted, count, what="head") == tuple(known[one] for one in wanted)
        assert resolve_indices(np.asarray(wanted)[0], count, what="head") == (known[wanted[0]],)
    else:
        with pytest.raises(InputError, match=r"head"):
            resolve_indices(wanted, count, what="head")
    if part := known[slice(*wanted[:2])]:
        assert resolve_indices(slice(*wanted[:2]), count, what="head") == tuple(part)
    assert resolve_indices(None, count, what="head") == tuple(known)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchGrid((0, 4), (0, 1), (0, 1)), r"image_size \(height, width\) must be positive, found \(0, 4\)"),
        (lambda: PatchGrid((4, 4), (0,), (0, 1)), "row_edges must be at least two finite, increasing"),
        (lambda: PatchGrid((4, 4), (0, 1), (0, 2, 2)), "col_edges must be at least two finite, increasing"),
        (lambda: PatchGrid((4, 4), (0, float("nan")), (0, 2)), "row_edges must be"),
        (lambda: PatchGrid((4, 4), (0, float("inf")), (0, 2)), "row_edges must be"),
        (
            lambda: PatchGrid((4, 5), (0, 4), (0, 5)).mask_share(np.ones((5, 4))),
            r"mask is 5 x 4 but the image is 4 x 5",
        ),
        (lambda: PatchGrid((4, 5), (0, 4), (0, 5)).mask_share(np.ones(5)), r"mask is 5 but the image is 4 x 5"),
        (
            lambda: View("image 0", PatchGrid((4, 4), (0, 4), (0, 4)), (1, 2)),
            "2 image tokens .* grid of 1 x 1 = 1 patches",
        ),
    ],
)
def test_what_is_no_grid_mask_or_view_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
