"""Which predicted phrase is which true one: the pairings that grounded conversation generation is scored with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["greedy_pairs", "legacy_pairs", "optimal_pairs", "paired_iou"]

Pairs = list[tuple[int, int]]
Matrix = NDArray[np.float64]


def paired_iou(ious: Matrix) -> float:
    """The mean IoU of the pairs taken one by one, the largest left first, until none is above 0; 0 where there is none.

    ``ious`` is (predicted, true). What is left without a partner is not punished.
    """
    taken = []
    left = ious.copy()
    while left.size and left.max() > 0:
        row, col = np.unravel_index(int(left.argmax()), left.shape)
        taken.append(left[row, col])
        left[row], left[:, col] = 0, 0
    return float(np.mean(taken)) if taken else 0.0


def legacy_pairs(ious: Matrix, similarities: Matrix, *, least: float = 0.5) -> Pairs:
    """(true, predicted) pairs as published: the largest IoU left first, *stopping* at the first pair that does not pass.

    Both matrices are (true, predicted); a pair passes if both its IoU and its similarity are at least ``least``. Stopping
    loses pairs that would pass later: see ``greedy_pairs``.
    """
    pairs: Pairs = []
    left = ious.copy()
    while left.size:
        row, col = (int(one) for one in np.unravel_index(int(left.argmax()), left.shape))
        if left[row, col] < least or similarities[row, col] < least:
            break
        pairs.append((row, col))
        left[row], left[:, col] = 0, 0
    return pairs


def greedy_pairs(ious: Matrix, similarities: Matrix, *, least: float = 0.5) -> Pairs:
    """(true, predicted) pairs taken one by one among those that pass, the largest IoU left first."""
    passing = np.where((ious >= least) & (similarities >= least), ious, 0.0)
    return legacy_pairs(passing, np.ones_like(passing), least=least)


def optimal_pairs(ious: Matrix, similarities: Matrix, *, least: float = 0.5) -> Pairs:
    """(true, predicted) pairs that pass, as many as possible, and among as many those with the largest summed IoU."""
    passing = (ious >= least) & (similarities >= least)
    if not passing.any():
        return []
    # All IoUs together weigh less than one pair.
    weights = passing * (1 + ious / (1 + min(ious.shape)))
    rows, cols = linear_sum_assignment(weights, maximize=True)
    return [(int(row), int(col)) for row, col in zip(rows, cols, strict=True) if passing[row, col]]
