"""Mean IoU of masks, by hand on small images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError
from probe.grounding.scores import MEASURES, iou, score_masks
from probe.grounding.segment import attend_and_segment
from tests.records import make_record

IMAGE = Image.new("RGB", (32, 32), "grey")


def _found(seed=0, phrases=("red circle", "blue square")):
    return attend_and_segment(make_record(seed=seed), IMAGE, phrases=phrases)


def _box(top, left, bottom, right):
    mask = np.zeros((32, 32), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _values(table):
    return dict(zip(table["name"], table["value"], strict=True))


def test_every_measure_equals_a_plain_line():
    found, truth = (
        [_found(0), _found(1)],
        [[_box(0, 0, 16, 8), _box(8, 8, 32, 30)], [_box(4, 4, 20, 20), _box(0, 0, 9, 32)]],
    )

    def line(one, two):
        return (one & two).sum() / (one | two).sum()

    masks = [[part.mask for part in one.phrases] for one in found]
    own = [line(masks[i][j], truth[i][j]) for i in (0, 1) for j in (0, 1)]
    values = _values(score_masks(found, truth))
    assert values["iou"] == pytest.approx(np.mean(own))
    assert values["iou at 0.5"] == np.mean([one >= 0.5 for one in own])
    points = [truth[i][j][found[i].phrases[j].point] for i in (0, 1) for j in (0, 1)]
    assert values["point"] == np.mean(points)
    assert values["other phrase"] == pytest.approx(
        np.mean([line(masks[i][1 - j], truth[i][j]) for i in (0, 1) for j in (0, 1)])
    )
    assert values["shuffled"] == pytest.approx(np.mean([line(one, two) for one in masks[1] for two in truth[0]]))
    assert 0 < values["centre box"] < 1
    # Patches of 8 pixels that are at least half inside, counted by hand.
    patches = [_box(0, 0, 16, 8), _box(8, 8, 32, 32), _box(8, 8, 16, 16) | _box(4, 4, 4, 4), _box(0, 0, 8, 32)]
    patches[2] = _box(0, 0, 24, 24) & ~_corners()
    assert values["oracle patches"] == pytest.approx(
        np.mean([line(patch, mask) for patch, mask in zip(patches, [*truth[0], *truth[1]], strict=True)])
    )


def _corners():
    """Of the 3 x 3 patches that a box of half-patch borders touches, the corners are a quarter inside."""
    return _box(0, 0, 8, 8) | _box(0, 16, 8, 24) | _box(16, 0, 24, 8) | _box(16, 16, 24, 24)


def test_perfect_and_empty_masks():
    found = _found()
    values = _values(score_masks([found], [found.masks]))
    assert (values["iou"], values["iou at 0.5"], values["point"]) == (1, 1, 1)
    assert np.isnan(values["shuffled"])  # no previous image
    away = [~one.mask for one in found.phrases]
    assert _values(score_masks([found], [away]))["iou"] == 0


def test_intervals_hold_the_value_and_shrink():
    found = [_found(seed) for seed in range(12)]
    truth = [[_box(0, 0, 16, 16), _box(16, 16, 32, 32)]] * 12
    table = score_masks(found, truth)
    assert list(table["name"]) == list(MEASURES)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table.set_index("name").loc["iou", ["images", "phrases"]].tolist() == [12, 24]
    many = score_masks(found * 9, truth * 9)
    width = (table["high"] - table["low"])[0], (many["high"] - many["low"])[0]
    assert width[1] < 0.5 * width[0]


def test_one_thing_under_two_names_is_no_other_phrase():
    found = _found(phrases=("circle", "red circle"))
    assert np.isnan(_values(score_masks([found], [[_box(0, 0, 9, 9)] * 2]))["other phrase"])


def test_what_does_not_match():
    found = _found()
    for masks in ([_box(0, 0, 9, 9)], [_box(0, 0, 9, 9), np.zeros((32, 32), bool)], [np.ones((8, 8), bool)] * 2):
        with pytest.raises(InputError, match="Image 0 has 2 phrases"):
            score_masks([found], [masks])
    with pytest.raises(InputError, match="no image to score"):
        score_masks([], [])
    assert np.isnan(iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)))
