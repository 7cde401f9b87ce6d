"""Insertion and deletion against a picture that is painted by hand, and on a model that only one patch matters to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.capture.passes import inputs_with_answer
from probe.errors import InputError
from probe.insertion import curve_areas, patch_curves
from tests.tiny import picture, tiny_llava

PROMPT, ANSWER = "Describe the image.", "a man with a red ball"


def _setting():
    subject = tiny_llava(preparation="squash")
    image = picture(32, 32)
    record = probe.run(subject, image, PROMPT, answer=ANSWER).record
    return subject, image, record.layers[0].grid, record.tokens_of(13, 21)


def _plain(subject, image, tokens):
    record = probe.run(subject, image, PROMPT, answer=ANSWER).record
    inputs, start = inputs_with_answer(subject, image, PROMPT, ANSWER)
    with torch.no_grad():
        rows = torch.log_softmax(subject.model(**inputs).logits[0].double(), -1)[start - 1 : -1]
    return sum(float(rows[one, record.token_ids[one]]) for one in tokens)


def test_patches_appear_and_vanish_in_the_order_of_the_map():
    subject, image, grid, tokens = _setting()
    patches = torch.zeros(4, 4)
    patches[2, 1], patches[0, 3] = 2, 1
    curves = patch_curves(
        subject, image, PROMPT, ANSWER, tokens=tokens, patches=patches, grid=grid, steps=8, fill="mean", random_orders=0
    )
    # By hand: after one of eight shares of sixteen patches, those two are shown, or hidden.
    pixels = np.asarray(image).copy()
    grey = pixels.mean((0, 1)).round().astype(np.uint8)
    two = np.zeros((32, 32), bool)
    two[16:24, 8:16] = two[0:8, 24:32] = True
    pictures = {
        ("insertion", 0.0): np.broadcast_to(grey, pixels.shape),
        ("insertion", 0.125): np.where(two[..., None], pixels, grey),
        ("insertion", 1.0): pixels,
        ("deletion", 0.0): pixels,
        ("deletion", 0.125): np.where(two[..., None], grey, pixels),
    }
    for (direction, share), painted in pictures.items():
        row = curves[(curves["direction"] == direction) & np.isclose(curves["share"], share)].iloc[0]
        wanted = _plain(subject, Image.fromarray(np.ascontiguousarray(painted)), tokens)
        assert row["log_probability"] == pytest.approx(wanted, abs=1e-5), (direction, share)
    assert len(curves) == 2 * 9
    areas = curve_areas(curves)
    first = curves[curves["direction"] == "insertion"]["log_probability"].to_numpy()
    assert list(areas["order"]) == ["map", "map"]
    assert areas["area"][0] == pytest.approx((first[1:] + first[:-1]).sum() / 16)


def test_random_orders_stand_beside_the_map_and_are_seeded():
    subject, image, grid, tokens = _setting()
    options = {"tokens": tokens, "patches": torch.arange(16.0).view(4, 4), "grid": grid, "steps": 2, "random_orders": 2}
    first, again = (patch_curves(subject, image, PROMPT, ANSWER, seed=1, **options) for _ in range(2))
    other = patch_curves(subject, image, PROMPT, ANSWER, seed=2, **options)
    assert first.equals(again)
    assert not first.equals(other)
    # The map's own curve does not hang on the seed, and all curves share their ends.
    assert first[first["order"] == "map"].equals(other[other["order"] == "map"])
    assert first[first["share"] == 0.0].groupby("direction")["log_probability"].nunique().eq(1).all()
    assert list(curve_areas(first)["order"]) == ["map", "random", "map", "random"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patches": torch.zeros(3, 4)}, r"grid's shape \(4, 4\), found \(3, 4\)"),
        ({"patches": torch.full((4, 4), torch.nan)}, "NaN or infinite"),
        ({"steps": 0}, "steps must be between 1 and the 16"),
        ({"random_orders": -1}, "random_orders must be 0 or more"),
        ({"fill": "black"}, "fill must be 'blur' or 'mean'"),
        ({"tokens": []}, r"tokens=\[\] must name one or more"),
        ({"tokens": [99]}, r"tokens=\[99\] must name"),
    ],
)
def test_bad_requests_are_refused(changes, message):
    subject, image, grid, tokens = _setting()
    options = {"tokens": tokens, "patches": torch.zeros(4, 4), "grid": grid} | changes
    with pytest.raises(InputError, match=message):
        patch_curves(subject, image, PROMPT, ANSWER, **options)
