"""The metrics against the plainest independent line: double loops, hand-made 4 x 4 grids, and what must not change them."""

from __future__ import annotations

from math import inf, isnan, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.analysis import metrics
from probe.analysis.metrics import METRICS, degenerate_reason, score
from probe.analysis.targets import Target
from probe.errors import InputError
from probe.layout import PatchGrid
from tests.records import make_grid

# An image of 20 x 32 pixels in the frames that preparations make: squashed, padded above and below, cropped left and right.
GRIDS = {
    "squash": make_grid(4, 4, image_size=(20, 32)),
    "pad": PatchGrid.from_affine((20, 32), shape=(8, 8), patch_size=4, offset=(5.5, 0.0)),
    "crop": PatchGrid.from_affine((20, 32), shape=(5, 5), patch_size=4, offset=(0.0, -6.0)),
}


def random_case(seed: int, name: str, *, phrases: int = 3, ties: bool = False) -> tuple[torch.Tensor, Target]:
    rng = np.random.default_rng(seed)
    masks = np.zeros((phrases, 20, 32), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, 14), rng.integers(6, 20)
        mask[top : top + rng.integers(3, 12), left : left + rng.integers(3, 12)] = True
    grid = GRIDS[name]
    values = rng.integers(-2, 4, (2, phrases, *grid.shape)) if ties else rng.normal(size=(2, phrases, *grid.shape))
    return torch.as_tensor(values.astype(np.float32)), Target.from_masks(grid, masks)


def cells(maps: torch.Tensor, target: Target, at: tuple[int, int]) -> list[tuple[float, float, float, bool]]:
    """(value, m, w, hit) of every patch of one head's map of one phrase."""
    head, phrase = at
    tensors = maps[head, phrase], target.share[phrase], target.weight, target.hit[phrase]
    return list(zip(*(one.flatten().tolist() for one in tensors), strict=True))


def plain_pointing(patches: list) -> float:
    best = max(a for a, _, w, _ in patches if w > 0)
    hits = [hit for a, _, w, hit in patches if w > 0 and a == best]
    return sum(hits) / len(hits)


def plain_auroc(patches: list) -> float:
    won = pairs = 0.0
    for a, m, _, _ in patches:
        for b, n, w, _ in patches:
            won += m * (w - n) * ((a > b) + 0.5 * (a == b))
            pairs += m * (w - n)
    return won / pairs


def plain_energy(patches: list) -> float:
    return sum(max(a, 0) * m for a, m, _, _ in patches) / sum(max(a, 0) * w for a, _, w, _ in patches)


def plain_lift(patches: list) -> float:
    return plain_energy(patches) / (sum(m for _, m, _, _ in patches) / sum(w for _, _, w, _ in patches))


def plain_average_precision(patches: list) -> float:
    total, mass = 0.0, sum(m for _, m, _, _ in patches)
    for level in sorted({a for a, _, w, _ in patches if w > 0}, reverse=True):
        inside = sum(m for a, m, _, _ in patches if a >= level)
        covered = sum(w for a, _, w, _ in patches if a >= level)
        total += sum(m for a, m, _, _ in patches if a == level) / mass * inside / covered
    return total


def plain_nss(patches: list) -> float:
    area = sum(w for _, _, w, _ in patches)
    mean = sum(a * w for a, _, w, _ in patches) / area
    spread = (sum(w * (a - mean) ** 2 for a, _, w, _ in patches) / area) ** 0.5
    return sum(m * (a - mean) / spread for a, m, _, _ in patches) / sum(m for _, m, _, _ in patches)


PLAIN = {
    "pointing": plain_pointing,
    "auroc": plain_auroc,
    "energy": plain_energy,
    "lift": plain_lift,
    "average_precision": plain_average_precision,
    "nss": plain_nss,
}


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("metric", PLAIN)
def test_equals_the_plain_definition(metric: str, name: str, ties: bool) -> None:
    for seed in range(8):
        maps, target = random_case(seed, name, ties=ties)
        found = score([metric], maps, target)[metric]
        for at in np.ndindex(2, 3):
            assert found[at].item() == pytest.approx(PLAIN[metric](cells(maps, target, at)), abs=1e-11), (seed, at)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(2, 6)),
    offset=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    levels=st.integers(2, 40),
    seed=st.integers(0, 10**6),
)
def test_auroc_on_any_shape_padding_and_ties(
    shape: tuple[int, int], offset: tuple[float, float], levels: int, seed: int
) -> None:
    grid = PatchGrid.from_affine((9, 11), shape=shape, patch_size=3, offset=offset)
    rng = np.random.default_rng(seed)
    target = Target.from_masks(grid, rng.random((1, 9, 11)) < rng.random())
    maps = torch.as_tensor(rng.integers(0, levels, (1, 1, *shape)), dtype=torch.float64)
    found = metrics.auroc(maps, target)[0, 0].item()
    if not isnan(found):
        assert found == pytest.approx(plain_auroc(cells(maps, target, (0, 0))), abs=1e-9)
    else:
        assert degenerate_reason("auroc", maps, target)[0, 0]


def test_pointing_by_hand() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[5, 3] = True  # the centre of patch (2, 1): rows 4 and 5, columns 2 and 3
    target = Target.from_masks(make_grid(4, 4, image_size=(8, 8)), mask)
    hit, miss = torch.zeros(4, 4), torch.zeros(4, 4)
    hit[2, 1] = miss[1, 2] = 1
    assert metrics.pointing(hit, target) == 1
    assert metrics.pointing(miss, target) == 0
    # Two best patches, one in the mask: the first in reading order would say 0, an honest coin says one half.
    assert metrics.pointing(hit + miss, target) == 0.5


def test_a_mask_between_the_centres_is_a_miss_not_a_gap() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[4, 2] = True
    target = Target.from_masks(make_grid(4, 4, image_size=(8, 8)), mask)
    best = torch.zeros(4, 4)
    best[2, 1] = 1
    assert metrics.pointing(best, target) == 0
    assert metrics.lift(best, target) == 16


def test_padding_never_wins() -> None:
    maps, target = random_case(0, "pad")
    padding = target.weight == 0
    assert padding.any()
    expected = score(list(PLAIN), maps, target)
    for value in (1e6, -1e6, nan, inf):
        for name, found in score(list(PLAIN), maps.masked_fill(padding, value), target).items():
            assert torch.allclose(found, expected[name], atol=1e-12), (name, value)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("metric", METRICS)
def test_invariances_are_as_the_table_says(metric: str, name: str) -> None:
    maps, target = random_case(3, name)
    maps = maps.double()
    before = METRICS[metric](maps, target)
    low, high = METRICS[metric].range
    assert bool(((before >= low) & (before <= high)).all())
    for changed, claimed in (
        (maps * 3e-4, METRICS[metric].scale_invariant),
        (maps + 0.7, METRICS[metric].offset_invariant),
    ):
        assert torch.allclose(METRICS[metric](changed, target), before, atol=1e-9) == claimed


@pytest.mark.parametrize("metric", [name for name in METRICS if METRICS[name].chance is not None])
def test_a_uniform_map_has_the_chance_value_of_the_table(metric: str) -> None:
    _, target = random_case(1, "pad")
    uniform = torch.full(target.grid.shape, 0.1, dtype=torch.float64)
    assert METRICS[metric].raw(uniform, target).tolist() == pytest.approx([METRICS[metric].chance] * 3)
    assert METRICS[metric](uniform, target).isnan().all()


def test_one_mask_without_a_phrase_dimension() -> None:
    maps, target = random_case(2, "squash")
    single = Target.from_masks(target.grid, target.masks[1])
    for name in METRICS:
        assert torch.equal(METRICS[name](maps[:, 1], single), METRICS[name](maps, target)[:, 1])


def test_bicubic_pointing_crops_padding_and_maps_back() -> None:
    grid = PatchGrid.from_affine((40, 80), shape=(8, 8), patch_size=10, offset=(20.0, 0.0))
    maps = torch.zeros(8, 8, dtype=torch.float64)
    maps[3, 5], maps[0, 0] = 1.0, 50.0  # the second lies in the padding
    large = torch.nn.functional.interpolate(maps[None, None], scale_factor=10, mode="bicubic", align_corners=False)[
        0, 0
    ]
    row, col = divmod(int(large[20:60].argmax()), 80)
    pixels = np.zeros((2, 40, 80), dtype=bool)
    pixels[0, row, col] = True
    pixels[1] = ~pixels[0]
    # Between four equal pixels at most; the point found by hand is one of them.
    found = metrics.pointing_bicubic(maps, Target.from_masks(grid, pixels))
    best = (large[20:60] >= large[20:60].max() - 1e-12).sum().item()
    assert found.tolist() == pytest.approx([1 / best, 1 - 1 / best])
    # The patch's own centre, cropped frame: patch (3, 5) starts at original row 10, column 50.
    assert 10 <= row < 20
    assert 50 <= col < 60


def test_bicubic_pointing_may_leave_the_best_patch() -> None:
    maps = torch.zeros(6, 6, dtype=torch.float64)
    maps[1, 1] = 1.0
    maps[3:5, 3:5] = 0.97  # four good patches overshoot one that is slightly better
    grid = PatchGrid.from_affine((60, 60), shape=(6, 6), patch_size=10)
    mask = np.zeros((60, 60), dtype=bool)
    mask[30:50, 30:50] = True
    target = Target.from_masks(grid, mask)
    assert metrics.pointing(maps, target) == 0
    assert metrics.pointing_bicubic(maps, target) == 1


def test_degenerate_input_is_nan_with_its_reason() -> None:
    grid = GRIDS["crop"]
    inside, everything, unseen = (np.zeros((20, 32), dtype=bool) for _ in range(3))
    inside[4:10, 10:18], everything[:], unseen[:, :6] = True, True, True
    good = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    broken = good.clone()
    broken[2, 2] = nan
    cases = [
        ("empty mask", np.zeros((20, 32), dtype=bool), good, list(METRICS)),
        ("unseen mask", unseen, good, list(METRICS)),
        ("full mask", everything, good, ["auroc"]),
        ("constant map", inside, torch.full((5, 5), 0.1), list(METRICS)),
        ("not finite", inside, broken, list(METRICS)),
        ("not finite", inside, good.masked_fill(good == good.max(), inf), list(METRICS)),
        ("no positive value", inside, -good, ["energy", "lift"]),
    ]
    for reason, mask, values, names in cases:
        target = Target.from_masks(grid, mask)
        for name in names:
            assert METRICS[name](values, target).isnan(), (reason, name)
            assert degenerate_reason(name, values, target) == reason
            assert reason in metrics.REASONS
    target = Target.from_masks(grid, inside)
    for name in METRICS:
        assert not METRICS[name](good, target).isnan()
        assert degenerate_reason(name, good, target) == ""


def test_an_image_outside_all_patches_is_nan() -> None:
    grid = PatchGrid((8, 8), (8.0, 12.0, 16.0), (0.0, 4.0, 8.0))
    target = Target.from_masks(grid, np.ones((8, 8), dtype=bool))
    for name in METRICS:
        assert METRICS[name](torch.rand(2, 2), target).isnan()
        assert degenerate_reason(name, torch.rand(2, 2), target) == "unseen image"


def test_a_strip_thinner_than_a_processed_pixel_has_no_bicubic_point() -> None:
    grid = PatchGrid.from_affine((8000, 8), shape=(4, 4), patch_size=14, scale=(56 / 8000,) * 2, offset=(0.0, 27.972))
    target = Target.from_masks(grid, np.arange(8000)[:, None].repeat(8, 1) < 2000)
    maps = torch.rand(4, 4)
    assert degenerate_reason("pointing_bicubic", maps, target) == "no pixel"
    assert not metrics.pointing(maps, target).isnan()


def test_many_masks_covering_everything_are_exactly_full() -> None:
    for seed in range(50):
        size = tuple(int(one) for one in np.random.default_rng(seed).integers(3, 60, 2))
        scale = 28 / max(size)
        grid = PatchGrid.from_affine(size, shape=(4, 4), patch_size=7, scale=(scale, scale), offset=(1.3, 0.7))
        target = Target.from_masks(grid, np.ones(size, dtype=bool))
        assert degenerate_reason("auroc", torch.rand(4, 4), target) == "full mask", size


def test_unknown_metric_and_wrong_grid_are_named() -> None:
    maps, target = random_case(0, "squash")
    with pytest.raises(InputError, match=r"No metric 'aurok'.*Did you mean 'auroc'"):
        score(["aurok"], maps, target)
    with pytest.raises(InputError, match=r"\(3, 4\) but the masks' grid is \(4, 4\)"):
        score(["auroc"], maps[..., 1:, :], target)
