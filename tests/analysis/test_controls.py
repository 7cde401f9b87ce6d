"""The controls on cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.analysis import controls
from probe.analysis.metrics import METRICS
from probe.analysis.targets import Target
from probe.layout import PatchGrid
from tests.records import make_grid

GRID = make_grid(4, 4, image_size=(8, 8))


def squares(*corners: tuple[int, int, int]) -> np.ndarray:
    """(phrase, 8, 8) masks of squares given by top, left and side."""
    masks = np.zeros((len(corners), 8, 8), dtype=bool)
    for mask, (top, left, side) in zip(masks, corners, strict=True):
        mask[top : top + side, left : left + side] = True
    return masks


def test_chance_is_what_random_patches_score() -> None:
    grid = PatchGrid.from_affine((20, 32), shape=(8, 8), patch_size=4, offset=(5.5, 0.0))
    masks = np.zeros((2, 20, 32), dtype=bool)
    masks[0, 3:13, 5:20], masks[1, :, :9] = True, True
    target = Target.from_masks(grid, masks)
    seen = grid.weight > 0
    centres = grid.centres[seen]
    for phrase, expected in enumerate(controls.chance(METRICS["pointing"], target)):
        assert expected.item() == np.mean([masks[phrase, row, col] for row, col in centres])
    shares = target.positive / target.weight.sum()
    assert torch.allclose(controls.chance(METRICS["energy"], target), shares)
    assert torch.allclose(controls.chance(METRICS["average_precision"], target), shares)
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand((20000, 1, 8, 8), generator=rng)
    for name in ("pointing", "auroc"):
        played = METRICS[name](noise, target).mean(0)
        assert torch.allclose(played, controls.chance(METRICS[name], target), atol=0.01)


def test_chance_of_a_mask_that_cannot_be_scored_is_nan() -> None:
    target = Target.from_masks(GRID, np.stack([np.zeros((8, 8), bool), np.ones((8, 8), bool)]))
    assert controls.chance(METRICS["auroc"], target).isnan().all()
    assert controls.chance(METRICS["pointing"], target)[0].isnan()
    assert controls.chance(METRICS["pointing"], target)[1] == 1


def test_centre_prior_points_at_the_middle_without_choosing_among_equals() -> None:
    # All four middle patches are equally near; the mask holds the centre of one of them.
    target = Target.from_masks(GRID, squares((4, 4, 2), (0, 0, 4)))
    assert METRICS["pointing"](controls.centre_prior(GRID), target).tolist() == [0.25, 0.25]
    odd = make_grid(5, 3, image_size=(50, 30))
    values = controls.centre_prior(odd)
    assert divmod(int(values.argmax()), 3) == (2, 1)
    assert values.min() == 0
    # Linear in the distance: one patch away is 10 pixels away.
    assert (values[2, 1] - values[2, 0]).item() == pytest.approx(10)
    assert METRICS["lift"](values, Target.from_masks(odd, np.ones((50, 30), bool))) == pytest.approx(1)


def test_centre_prior_follows_the_image_not_the_frame() -> None:
    grid = PatchGrid.from_affine(
        (40, 40), shape=(8, 8), patch_size=5, offset=(0.0, -10.0)
    )  # ten columns cropped on the left
    best = controls.centre_prior(grid) == controls.centre_prior(grid).max()
    assert best.nonzero().tolist() == [[3, 1], [3, 2], [4, 1], [4, 2]]


def test_object_size_prior_is_the_largest_mask_for_every_phrase() -> None:
    target = Target.from_masks(GRID, squares((0, 0, 2), (4, 4, 4), (4, 0, 2)))
    assert torch.equal(controls.object_size_prior(target), target.share[1])
    assert METRICS["pointing"](controls.object_size_prior(target), target).tolist() == [0, 1, 0]


def test_oracle_patch_says_what_patches_allow() -> None:
    masks = squares((1, 1, 2), (2, 2, 1))
    masks[1, 2, 2], masks[1, 3, 2] = False, True  # touches a patch but not its centre pixel
    target = Target.from_masks(GRID, np.stack([*masks, np.zeros((8, 8), bool)]))
    assert controls.oracle_patch(METRICS["pointing"], target)[:2].tolist() == [1, 0]
    for name in ("pointing", "auroc", "lift"):
        assert controls.oracle_patch(METRICS[name], target)[2].isnan()
    random = torch.rand((500, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    assert bool((METRICS["auroc"](random, target)[:, :2] <= controls.oracle_patch(METRICS["auroc"], target)[:2]).all())


def test_oracle_patch_of_a_mask_over_everything_is_a_hit() -> None:
    target = Target.from_masks(GRID, np.ones((1, 8, 8), bool))
    assert controls.oracle_patch(METRICS["pointing"], target) == 1


def test_other_phrase_uses_the_others_and_not_the_same_mask() -> None:
    masks = squares((0, 0, 4), (4, 4, 4), (0, 0, 4))
    target = Target.from_masks(GRID, masks)
    maps = target.share.clone()
    maps[2] = target.share[1]  # the third phrase names the first one's object but its map looks at the second one's
    found = controls.other_phrase(METRICS["pointing"], maps, target)
    # First and third: only the second phrase is another. The second is judged by the maps of the first (miss) and third (hit).
    assert found.tolist() == [0, 0.5, 0]
    alone = Target.from_masks(GRID, masks[:1])
    assert controls.other_phrase(METRICS["pointing"], alone.share, alone).isnan().all()


def test_shuffled_averages_over_the_other_image() -> None:
    here = Target.from_masks(GRID, squares((0, 0, 4), (4, 4, 4)))
    there = Target.from_masks(GRID, squares((0, 0, 4), (0, 4, 2), (6, 0, 2), (0, 0, 2)))
    assert controls.shuffled(METRICS["pointing"], here.share, there).tolist() == [(1 + 0 + 0 + 0.25) / 4, 0]


def test_centre_prior_is_exactly_symmetric() -> None:
    for seed in range(40):
        rows, cols, height, width = (int(one) for one in np.random.default_rng(seed).integers(2, 30, 4))
        values = controls.centre_prior(make_grid(rows, cols, image_size=(height, width)))
        for dims in ((0,), (1,)):
            assert torch.equal(values.flip(dims), values), (rows, cols, height, width)


def test_oracle_patch_does_not_count_patches_of_padding() -> None:
    grid = PatchGrid.from_affine((20, 32), shape=(8, 8), patch_size=4, offset=(5.5, 0.0))
    mask = np.zeros((1, 20, 32), dtype=bool)
    mask[0, 0] = True  # the nearest pixel to the padding above, but not the centre of any patch that shows the image
    assert controls.oracle_patch(METRICS["pointing"], Target.from_masks(grid, mask)) == 0


def test_the_paraphrase_is_the_distance_and_the_floor_adds_the_other_phrase():
    from probe.analysis.metrics import METRICS

    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 0, 0] = masks[1, 3, 3] = True
    target = Target.from_masks(make_grid(4, 4, image_size=(4, 4)), masks)
    maps, reworded = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    maps[0, 0, 0] = maps[1, 0, 0] = 1  # the first phrase's map hits, the second one's points at the first's mask
    reworded[0, 3, 3] = reworded[1, 0, 0] = 1  # other words: the first one misses, the second stays
    metric = METRICS["pointing"]
    assert controls.paraphrase(metric, maps, reworded, target).tolist() == [1, 0]
    assert controls.other_phrase(metric, maps, target).tolist() == [1, 0]
    assert controls.paraphrase_floor(metric, maps, reworded, target).tolist() == [2, 0]
    assert controls.paraphrase_floor(metric, maps, maps, target).tolist() == [1, 0]
