"""Mean IoU of masks, by hand on small images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError
from probe.grounding.scores import MEASURES, iou, score_masks
from probe.grounding.segment import attend_and_segment
from probe.layout import PatchGrid
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


def _with_masks(found, masks):
    return replace(
        found, phrases=tuple(replace(one, mask=mask) for one, mask in zip(found.phrases, masks, strict=True))
    )


def test_the_centre_box_is_as_large_as_the_mask_and_the_oracle_takes_whole_patches():
    found = _with_masks(_found(phrases=["circle"]), [_box(0, 0, 16, 16)])
    values = _values(score_masks([found], [[_box(0, 0, 32, 16)]]))
    assert values["centre box"] == pytest.approx(128 / (256 + 512 - 128))  # rows and cols 8 to 24
    # No patch lies half in such a mask, so the best one is taken.
    assert _values(score_masks([found], [[_box(0, 0, 4, 4)]]))["oracle patches"] == pytest.approx(16 / 64)
    # Of the first row of patches the image holds the lower third, all of which is in the mask.
    record = make_record(grid=PatchGrid((16, 32), (-8.0, 4.0, 12.0, 24.0), (0.0, 8.0, 16.0, 24.0, 32.0), 8))
    found = attend_and_segment(record, Image.new("RGB", (32, 16)), phrases=["circle"])
    truth = np.zeros((16, 32), dtype=bool)
    truth[:12, :8] = True
    assert _values(score_masks([found], [[truth]]))["oracle patches"] == 1


def test_controls_are_of_other_things_and_of_the_image_before():
    def line(one, two):
        return (one & two).sum() / (one | two).sum()

    found = _found(phrases=("circle", "red circle", "blue square"))
    same, other = _box(0, 0, 20, 12), _box(8, 8, 32, 30)
    masks = [one.mask for one in found.phrases]
    expected = [line(masks[2], same), line(masks[2], same), (line(masks[0], other) + line(masks[1], other)) / 2]
    assert _values(score_masks([found], [[same, same, other]]))["other phrase"] == pytest.approx(np.mean(expected))
    several = [_found(seed, phrases) for seed, phrases in enumerate((["circle"], ["square"], [], ["circle"]))]
    truth = [[_box(0, 0, 32, 20)], [_box(0, 6, 30, 32)], [], [_box(9, 9, 30, 30)]]
    shuffled = [line(several[1].masks[0], truth[0][0]), line(several[3].masks[0], truth[1][0])]  # over the one without
    assert shuffled[1] != line(several[3].masks[0], truth[0][0])
    assert _values(score_masks(several, truth))["shuffled"] == pytest.approx(np.mean(shuffled))


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
