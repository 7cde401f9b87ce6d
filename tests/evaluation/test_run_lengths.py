"""Run lengths against the same masks drawn out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from probe.errors import InputError
from probe.evaluation import run_lengths
from probe.grounding.scores import _centre_box

seeds = st.integers(0, 2**32 - 1)


def drawn(encoded):
    return coco_mask.decode(encoded).astype(bool)


def random_masks(seed, count):
    rng = np.random.default_rng(seed)
    size = tuple(int(one) for one in rng.integers(1, 12, 2))
    return size, [rng.random(size) < rng.choice([0, 0.2, 0.5, 1]) for _ in range(count)]


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_boxes_equal_drawn_boxes(seed):
    size, [mask] = random_masks(seed, 1)
    rng = np.random.default_rng(seed)
    top, bottom = sorted(int(one) for one in rng.integers(0, size[0] + 1, 2))
    left, right = sorted(int(one) for one in rng.integers(0, size[1] + 1, 2))
    expected = np.zeros(size, bool)
    expected[top:bottom, left:right] = True
    assert (drawn(run_lengths.box(top, left, bottom, right, size)) == expected).all()
    around = np.zeros(size, bool)
    if mask.any():
        rows, cols = np.nonzero(mask)
        around[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] = True
    assert (drawn(run_lengths.bounding_box(run_lengths.encode(mask))) == around).all()


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_the_centre_box_is_that_of_drawn_masks(seed):
    rng = np.random.default_rng(seed)
    size = tuple(int(one) for one in rng.integers(1, 30, 2))
    pixels = int(rng.integers(0, size[0] * size[1] + 1))
    assert (drawn(run_lengths.centre_box(pixels, size)) == _centre_box(pixels, size)).all()


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_empty_runs_change_nothing(seed):
    # Two masks with an empty run at one place make pycocotools stop there: 0 where 1 is right.
    size, [mask] = random_masks(seed, 1)
    counts = []
    flat = mask.T.ravel()
    inside = False
    rng = np.random.default_rng(seed)
    for pixel in flat:
        if pixel != inside or not counts:
            counts += [0] if pixel and not counts else []
            counts.append(0)
            inside = bool(pixel)
        counts[-1] += 1
        if rng.random() < 0.3:
            counts += [0, 0]
    for _ in range(int(rng.integers(0, 3))):
        counts.append(0)
    encoded = run_lengths.checked({"size": [*size], "counts": counts}, size)
    assert encoded == run_lengths.encode(mask)
    assert run_lengths.ious([encoded], [encoded])[0, 0] == mask.any()


def test_compressed_empty_runs_are_joined_too():
    raw = {
        "size": [2, 4],
        "counts": coco_mask.frPyObjects({"size": [2, 4], "counts": [2, 2, 0, 1, 3]}, 2, 4)["counts"].decode(),
    }
    mask = np.zeros((2, 4), bool)
    mask.T.ravel()[:] = False
    mask[:, 1] = True
    mask[0, 2] = True
    assert run_lengths.checked(raw, (2, 4)) == run_lengths.encode(mask)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (None, "its mask is None; run lengths are needed"),
        ({"size": [2, 3]}, "its 'counts' are None"),
        ({"size": [3, 2], "counts": [6]}, r"are for size \[3, 2\], and the picture is \[2, 3\]"),
        ({"size": [2, 3], "counts": [5]}, "sum to 5, and the picture has 2 x 3 = 6 pixels"),
        ({"size": [2, 3], "counts": [-1, 7]}, "hold -1"),
        ({"size": [2, 3], "counts": "~"}, "not in COCO's encoding"),
    ],
)
def test_other_run_lengths_are_refused(encoded, message):
    with pytest.raises(InputError, match=message):
        run_lengths.checked(encoded, (2, 3))
