"""Sign flips against plain permutation lines and full enumeration, and Holm's steps by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from probe.analysis.permutations import SignFlips, holm, random_signs
from probe.analysis.stats import poisson_weights
from probe.errors import InputError


def p_of(sums: np.ndarray, **options: int) -> np.ndarray:
    flips = SignFlips(sums.shape[1], **options)
    for index, one in enumerate(sums):
        flips.add(index, one)
    return flips.p_values()


def test_streamed_p_values_are_those_of_the_plain_test_with_the_same_signs() -> None:
    sums = np.random.default_rng(0).normal(0.2, 1, (40, 3))
    signs = np.stack([random_signs(i, permutations=499, seed=7) for i in range(40)])
    assert set(np.unique(signs)) == {-1.0, 1.0}
    plain = [(1 + sum(abs(flip @ one) >= abs(one.sum()) for flip in signs.T)) / 500 for one in sums.T]
    assert p_of(sums, permutations=499, seed=7) == pytest.approx(plain)


def test_random_flips_approach_all_flips() -> None:
    sums = np.random.default_rng(3).normal(0.5, 1, (10, 4))
    every = np.array(list(itertools.product((-1, 1), repeat=10)))
    exact = [(np.abs(every @ one) >= abs(one.sum()) - 1e-9).mean() for one in sums.T]
    assert min(exact) < 0.1 < max(exact)
    assert p_of(sums) == pytest.approx(exact, abs=0.02)


def test_ties_count_however_sums_are_rounded() -> None:
    # Of 6 images that all agree only 2 of 64 flips are as extreme, and 0.1 + 0.1 + ... is rounded differently in each of them.
    found = p_of(np.full((6, 1), 0.1))[0]
    signs = np.stack([random_signs(i, permutations=9999) for i in range(6)])
    assert found == (1 + (np.abs(signs.sum(0)) == 6).sum()) / 10000
    assert found == pytest.approx(2 / 64, abs=0.01)


def test_one_image_and_no_difference_prove_nothing() -> None:
    assert p_of(np.array([[5.0]])) == 1
    assert p_of(np.zeros((20, 1))) == 1
    assert p_of(np.zeros((0, 1))) == 1


def test_few_false_alarms_and_a_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    null = p_of(rng.normal(0, 1, (30, 600)), permutations=999)
    assert (null <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (null <= 0.5).mean() == pytest.approx(0.5, abs=0.08)
    assert p_of(rng.normal(1, 1, (30, 1)))[0] < 0.002


def test_order_does_not_matter_and_signs_are_not_those_of_the_bootstrap() -> None:
    sums = np.random.default_rng(2).normal(0.3, 1, (25, 2))
    backward = SignFlips(2)
    for index in range(24, -1, -1):
        backward.add(index, sums[index])
    assert np.array_equal(backward.p_values(), p_of(sums))
    assert not np.array_equal(p_of(sums), p_of(sums, seed=1))
    weights, signs = poisson_weights(3, replicates=20000), random_signs(3, permutations=20000)
    assert abs(np.corrcoef(weights, signs)[0, 1]) < 0.03


def test_holm_by_hand() -> None:
    # Smallest first: 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == pytest.approx([0.02])
    assert len(holm([])) == 0
    with_gap = holm([np.nan, 0.02, 0.01])
    assert np.isnan(with_gap[0])
    assert with_gap[1:] == pytest.approx([0.02, 0.02])


def test_impossible_settings_are_refused() -> None:
    for options in ({"permutations": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="at least"):
            SignFlips(1, **options)
