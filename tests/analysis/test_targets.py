"""Reading masks: which tokens a key names, what a mask may hold, and resizing between images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.analysis.targets import Target, phrase_tokens, read_masks, resize_masks
from probe.errors import InputError
from tests.records import make_grid, make_record

RECORD = make_record(text="a red circle and a blue circle")
EMPTY = np.zeros((32, 32), dtype=bool)


@pytest.mark.parametrize(
    ("key", "tokens"),
    [
        ("red circle", (1, 2)),
        ("Blue", (5,)),
        (("circle", 0), (2,)),
        (("circle", 1), (6,)),
        (("circle", -1), (6,)),
        ((2, 12), (1, 2)),
        ((np.int64(19), np.int64(23)), (5,)),
    ],
)
def test_keys_name_tokens(key: object, tokens: tuple[int, ...]) -> None:
    assert phrase_tokens(RECORD, key) == tokens  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("red circel", "not in the text.*Did you mean 'red circle'"),
        ("circle", r"2 times.*\('circle', 0\) to \('circle', 1\).*\(6, 12\)"),
        (("circle", 2), "occurrence of 'circle' 2 does not exist"),
        ((5, 99), "Characters 5 to 99 are not a span.*30 characters"),
        ((5, 5), "not a span"),
        ((1.0, 5.0), r"found \(1.0, 5.0\)"),
        (3, "A mask's key is a phrase"),
    ],
)
def test_unusable_keys_say_what_to_do(key: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        phrase_tokens(RECORD, key)  # type: ignore[arg-type]


def test_pairs_and_mappings_are_read_alike() -> None:
    mask = EMPTY.copy()
    mask[3] = True
    as_tensor = torch.as_tensor(mask) * 1
    for given in (
        {"red": mask, "blue": EMPTY},
        [("red", mask), ("blue", EMPTY)],
        [("red", as_tensor), ("blue", EMPTY)],
    ):
        tokens, masks = read_masks(RECORD, given)
        assert tokens == [(1,), (5,)]
        assert np.array_equal(masks, [mask, EMPTY])
    assert read_masks(RECORD, {})[1].shape == (0, 32, 32)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"red": np.zeros((32, 30), bool)}, "mask of 'red' is 32 x 30 but the image is 32 x 32"),
        ({"red": np.zeros((1, 32, 32), bool)}, "mask of 'red' is 1 x 32 x 32"),
        ({"red": EMPTY * 1 + 254}, "mask of 'red' holds values other than 0 and 1"),
        ({"red": np.full((32, 32), np.nan)}, "mask of 'red' holds values other than 0 and 1"),
        (np.zeros((2, 32, 32)), "mapping phrase -> mask or pairs.*ndarray"),
        (None, "found NoneType"),
    ],
)
def test_unusable_masks_are_named(masks: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_masks(RECORD, masks)  # type: ignore[arg-type]


def test_shares_stay_within_weights() -> None:
    target = Target.from_masks(make_grid(3, 5, image_size=(17, 23)), np.random.default_rng(0).random((4, 17, 23)) < 0.5)
    assert bool((target.share >= 0).all())
    assert bool((target.share <= target.weight).all())
    assert torch.allclose(target.positive + target.negative, target.weight.sum())


def test_resizing_takes_the_nearest_pixel() -> None:
    mask = np.array([[[True, False], [False, True]]])
    assert np.array_equal(resize_masks(mask, (4, 4)), np.kron(mask, np.ones((1, 2, 2), bool)))
    assert np.array_equal(resize_masks(resize_masks(mask, (6, 10)), (2, 2)), mask)
    assert resize_masks(mask, (1, 3)).shape == (1, 1, 3)
