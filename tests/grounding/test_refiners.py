"""Refiners: a point or a box becomes a mask in original pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.filters import threshold_otsu

from probe.errors import InputError
from probe.grounding.refiners import REFINERS, Refiner, SuperpixelRefiner, ThresholdRefiner, find_refiner

GREY = Image.new("RGB", (9, 6), "grey")
# Two hills with the same height, apart from each other, on a low plain.
HILLS = np.zeros((6, 9))
HILLS[1:3, 1:4] = 4.0
HILLS[4:6, 6:9] = 4.0
HILLS[0, 0] = 1.0


@pytest.mark.parametrize(
    ("threshold", "level"),
    [("mean", HILLS.mean()), ("otsu", threshold_otsu(HILLS)), ("quantile", np.quantile(HILLS, 0.9))],
)
def test_the_part_above_the_threshold_that_holds_the_point(threshold, level):
    masks, scores = ThresholdRefiner(threshold).encode(GREY).prompt(points=[(1, 1), (5, 8)], maps=[HILLS, HILLS])
    first, second = np.array([HILLS, HILLS]) >= level
    first[3:], second[:3] = False, False
    # Cells 1 above the plain touch the first hill at a corner alone, which does not connect.
    first[0, 0] = False
    assert np.array_equal(masks, [first, second])
    assert scores == pytest.approx([24 / 49, 24 / 49])


def test_a_point_below_the_threshold_is_cut_at_its_own_height():
    [mask], _ = ThresholdRefiner("otsu").encode(GREY).prompt(points=[(0, 0)], maps=[HILLS])
    assert mask.sum() == 1
    assert mask[0, 0]
    low = HILLS.copy()
    low[4, :3] = 1.0, 1.5, 0.5
    [mask], _ = ThresholdRefiner("otsu").encode(GREY).prompt(points=[(4, 0)], maps=[low])
    assert np.argwhere(mask).tolist() == [[4, 0], [4, 1]]


def test_what_is_avoided_counts_as_nothing():
    # Without it, Otsu would tell the one deep hole from everything else.
    plain = HILLS + 0.5
    holed = plain.copy()
    holed[2:6, 4:5] = -90.0
    masks = [ThresholdRefiner("otsu").encode(GREY).prompt(points=[(1, 1)], maps=[one])[0] for one in (plain, holed)]
    assert np.array_equal(*masks)
    [mask], _ = ThresholdRefiner("quantile").encode(GREY).prompt(points=[(3, 3)], maps=[-HILLS])
    assert np.argwhere(mask).tolist() == [[3, 3]]


def test_pixels_that_no_patch_sees_are_never_in_the_mask():
    unseen = HILLS.copy()
    unseen[:, :3] = np.nan
    [mask], _ = ThresholdRefiner("mean").encode(GREY).prompt(points=[(1, 2)], maps=[unseen])
    assert np.argwhere(mask).tolist() == [[1, 3], [2, 3]]  # what is nearest to the point
    [mask], [score] = ThresholdRefiner().encode(GREY).prompt(points=[(0, 0)], maps=[np.full((6, 9), np.nan)])
    assert (mask.any(), np.isnan(score)) == (False, True)


def test_the_threshold_refiner_inside_a_box():
    [mask], _ = ThresholdRefiner("mean").encode(GREY).prompt(boxes=[(0, 0, 2, 9)], maps=[HILLS])
    assert np.argwhere(mask).tolist() == [[0, 0], [1, 1], [1, 2], [1, 3]]
    # Where nine tenths of the map are nothing, the threshold is 0, but nothing is no region.
    lone = np.where(HILLS == 1, 1.0, 0.0)
    [mask], _ = ThresholdRefiner("quantile").encode(GREY).prompt(boxes=[(0, 0, 2, 9)], maps=[lone])
    assert np.argwhere(mask).tolist() == [[0, 0]]


def test_the_highest_share_of_the_pixels():
    slope = np.arange(54.0).reshape(6, 9)
    [mask], _ = ThresholdRefiner("quantile", quantile=0.75).encode(GREY).prompt(points=[(5, 8)], maps=[slope])
    assert np.array_equal(mask, slope >= np.quantile(slope, 0.75))
    assert mask.sum() == 14


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
@pytest.mark.parametrize("size", [(120, 160), (600, 900)])
def test_superpixels_find_a_plain_shape(method, size):
    height, width = size
    row, col = np.mgrid[:height, :width]
    shape = (row - height / 2) ** 2 + (col - width / 3) ** 2 < (height / 4) ** 2
    image = Image.fromarray(np.where(shape[..., None], (200, 30, 30), (40, 90, 200)).astype(np.uint8))
    encoded = SuperpixelRefiner(method).encode(image)
    asked = [(height // 2, width // 3), (2, width - 2)]
    (inside, outside), scores = encoded.prompt(points=asked)
    for mask, truth in ((inside, shape), (outside, ~shape)):
        assert (mask & truth).sum() / (mask | truth).sum() > 0.93
    assert (scores > 0.3).all()
    box = height // 4 - 2, width // 3 - height // 4 - 2, 3 * height // 4 + 2, width // 3 + height // 4 + 2
    [boxed], _ = encoded.prompt(boxes=[box])
    assert (boxed & shape).sum() / (boxed | shape).sum() > 0.93


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (9, 6)])
def test_superpixels_of_one_colour_are_all_of_the_picture(size):
    [mask], [score] = SuperpixelRefiner().encode(Image.new("RGB", size[::-1])).prompt(points=[(0, 0)])
    assert mask.shape == size
    assert mask.all()
    assert np.isnan(score)


def test_superpixels_of_one_region_that_do_not_touch_are_told_apart():
    encoded = SuperpixelRefiner().encode(GREY)
    encoded.regions = np.repeat([[0] * 3 + [1] * 3 + [0] * 3], 6, axis=0)  # grown round a bar, say
    [mask], _ = encoded.prompt(points=[(2, 1)])
    assert np.array_equal(mask, np.arange(9) < np.full((6, 1), 3))


@pytest.mark.parametrize("name", REFINERS)
def test_every_refiner_keeps_to_the_protocol(name):
    found = find_refiner(name)
    assert isinstance(found, Refiner)
    assert find_refiner(found) is found
    masks, scores = found.encode(GREY).prompt(points=np.zeros((0, 2)), maps=np.zeros((0, 6, 9)))
    assert (masks.shape, masks.dtype, scores.shape) == ((0, 6, 9), bool, (0,))


def test_what_cannot_be_asked():
    with pytest.raises(InputError, match=r"no refiner 'treshold'.*Did you mean 'threshold'"):
        find_refiner("treshold")
    with pytest.raises(InputError, match="found int"):
        find_refiner(3)
    with pytest.raises(InputError, match="Did you mean 'otsu'"):
        ThresholdRefiner("otsou")
    with pytest.raises(InputError, match="Did you mean 'slic'"):
        SuperpixelRefiner("slik")
    with pytest.raises(InputError, match="quantile must lie"):
        ThresholdRefiner("quantile", quantile=90)
    with pytest.raises(InputError, match="tolerance must be"):
        SuperpixelRefiner(tolerance=-1)
    encoded = ThresholdRefiner().encode(GREY)
    with pytest.raises(InputError, match="reads maps"):
        encoded.prompt(points=[(0, 0)])
    with pytest.raises(InputError, match=r"points=.* or boxes="):
        encoded.prompt()
    for point in ((8, 2), (6, 2), (2, 9), (-1, 2)):
        with pytest.raises(InputError, match=rf"point \({point[0]}, {point[1]}\) does not lie in the image of 6 x 9"):
            encoded.prompt(points=[point], maps=[HILLS])
    encoded.prompt(points=[(5, 8)], maps=[HILLS])
    encoded.prompt(boxes=[(0, 0, 6, 9)], maps=[HILLS])  # the end of a box is the pixel behind it
    with pytest.raises(InputError, match=r"box \(0, 0, 7, 9\) does not lie"):
        encoded.prompt(boxes=[(0, 0, 7, 9)], maps=[HILLS])
    for box in ((3, 0, 3, 9), (0, 5, 6, 2), (4, 0, 2, 9)):
        with pytest.raises(InputError, match="holds no pixel"):
            encoded.prompt(boxes=[box], maps=[HILLS])
    for maps in ([HILLS.T], [HILLS, HILLS]):
        with pytest.raises(InputError, match=r"need maps of shape \(1, 6, 9\)"):
            encoded.prompt(points=[(0, 0)], maps=maps)
