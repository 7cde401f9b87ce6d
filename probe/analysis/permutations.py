"""Tests of a difference by flipping signs at random, in one pass over the images, and their correction for being many."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probe.errors import InputError

__all__ = ["SignFlips", "holm", "random_signs"]

#: Sums of the same numbers in another order differ by rounding; what is as large as the truth up to that counts as a tie.
ROUNDING = 1e-9


def random_signs(index: int, *, permutations: int, seed: int = 0) -> NDArray[np.float64]:
    """(permutation,) -1 or 1 with equal chance, by which the image of this index is flipped in each permutation.

    The generator is keyed by (seed, index), so an image is flipped alike whoever works on it, and whenever; it starts 2^128 draws
    after that of ``probe.analysis.stats.poisson_weights``, with which it shares nothing.
    """
    key = np.array([seed, index], dtype=np.uint64)
    bits = np.random.Generator(np.random.Philox(key=key).jumped()).integers(0, 2, permutations, dtype=np.int8)
    return 2 * bits.astype(np.float64) - 1


class SignFlips:
    """Running sums from which the two-sided p-value of "these two do not differ" is read at any time.

    >>> flips = SignFlips(cells=18)
    >>> flips.add(0, sums)                                 # image 0: (cell,) sum over its phrases of first - second
    >>> flips.p_values()                                   # (cell,)

    With d_i the summed difference of image i: if it does not matter which of the two systems is which, d_i is as likely as -d_i.
    Images are flipped whole, because phrases of one image are not independent. The statistic is T = |sum d_i|; the mean difference
    is T over the number of phrases, which no flip changes, so it has the same p-value. With B random flips,

        p = (1 + number of b with |sum s_ib d_i| >= T) / (1 + B),

    which is never 0: the flip that changes nothing is one of the flips. Ties count. Of n images that differ p is about 2^(1 - n) at
    the least; no number of flips gets below.

    Memory is permutations x cells numbers, whatever the number of images.

    References
    ----------
    Phipson and Smyth, Permutation P-values Should Never Be Zero, Statistical Applications in Genetics and Molecular Biology 2010.
    """

    def __init__(self, cells: int, *, permutations: int = 9999, seed: int = 0) -> None:
        if permutations < 1 or seed < 0:
            raise InputError(f"permutations must be at least 1 and seed at least 0, found {permutations} and {seed}.")
        self.cells, self.permutations, self.seed = cells, permutations, seed
        self._total = np.zeros(cells)
        self._size = np.zeros(cells)
        self._flipped = np.zeros((permutations, cells))

    def add(self, index: int, sums: NDArray[np.float64]) -> None:
        """Adds the image of this index: (cell,) sums of its phrases' differences, 0 where it has none."""
        self._total += sums
        self._size += np.abs(sums)
        self._flipped += np.outer(random_signs(index, permutations=self.permutations, seed=self.seed), sums)

    def p_values(self) -> NDArray[np.float64]:
        """(cell,) p-values in (0, 1]; 1 where no image differs."""
        least = np.abs(self._total) - ROUNDING * self._size
        return (1 + (np.abs(self._flipped) >= least).sum(0)) / (1 + self.permutations)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """The same p-values corrected for being that many, so that the chance of any false claim stays below the level: Holm's steps.

    The k-th smallest of m is multiplied by m - k + 1, and made no smaller than those before it, and no larger than 1. NaN is no
    test: it stays, and does not count.

    References
    ----------
    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.
    """
    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(given.shape, np.nan)
    order = np.argsort(given, kind="stable")[: int((~np.isnan(given)).sum())]  # NaN goes last
    steps = given[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
