"""Pairings against plain re-implementations, and against each other."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.evaluation.matching import greedy_pairs, legacy_pairs, optimal_pairs, paired_iou


def random_matrices(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(0, 6, 2)
    ious = np.round(rng.random(shape), int(rng.integers(1, 4)))  # rounded, so that there are ties
    return ious, np.round(rng.random(shape), 1)


def plain_paired_iou(ious):
    pairs = [(ious[i, j], i, j) for i in range(ious.shape[0]) for j in range(ious.shape[1])]
    rows, cols, taken = set(), set(), []
    for value, i, j in sorted(pairs, key=lambda one: (-one[0], one[1], one[2])):
        if value > 0 and i not in rows and j not in cols:
            rows.add(i), cols.add(j), taken.append(value)
    return sum(taken) / len(taken) if taken else 0.0


def plain_legacy(ious, similar):
    pairs = [(ious[i, j], i, j) for i in range(ious.shape[0]) for j in range(ious.shape[1])]
    rows, cols, count = set(), set(), 0
    for value, i, j in sorted(pairs, key=lambda one: (-one[0], one[1], one[2])):
        if i in rows or j in cols:
            continue
        if value < 0.5 or similar[i, j] < 0.5:
            return count
        rows.add(i), cols.add(j)
        count += 1
    return count


def plain_optimal(ious, similar):
    """(number of pairs, summed IoU) of the best of all assignments."""
    if ious.shape[0] > ious.shape[1]:
        ious, similar = ious.T, similar.T
    best = (0, 0.0)
    for cols in permutations(range(ious.shape[1]), ious.shape[0]):
        found = [ious[i, j] for i, j in enumerate(cols) if ious[i, j] >= 0.5 and similar[i, j] >= 0.5]
        best = max(best, (len(found), round(sum(found), 9)))
    return best


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_pairings_equal_plain_ones(seed):
    ious, similar = random_matrices(seed)
    assert paired_iou(ious) == pytest.approx(plain_paired_iou(ious), abs=1e-12)
    assert len(legacy_pairs(ious, similar)) == plain_legacy(ious, similar)
    pairs = optimal_pairs(ious, similar)
    assert (len(pairs), round(sum(ious[one] for one in pairs), 9)) == plain_optimal(ious, similar)


def test_legacy_is_at_most_greedy_is_at_most_optimal():
    strict = [0, 0]
    for seed in range(1000):
        ious, similar = random_matrices(seed)
        given = ious.copy(), similar.copy()
        found = [match(ious, similar) for match in (legacy_pairs, greedy_pairs, optimal_pairs)]
        legacy, greedy, optimal = map(len, found)
        assert legacy <= greedy <= optimal, seed
        strict[0] += legacy < greedy
        strict[1] += greedy < optimal
        for pairs in found:
            assert all(ious[one] >= 0.5 and similar[one] >= 0.5 for one in pairs)
            assert len({row for row, _ in pairs}) == len({col for _, col in pairs}) == len(pairs)
        assert (ious == given[0]).all()
        assert (similar == given[1]).all()
    assert min(strict) > 10  # the cases tell the three apart


def test_what_each_pairing_loses_by_hand():
    ious = np.array([[0.9, 0.0], [0.0, 0.8]])
    assert legacy_pairs(ious, np.array([[0.1, 0], [0, 1.0]])) == []  # it stops at 0.9, whose words differ
    assert greedy_pairs(ious, np.array([[0.1, 0], [0, 1.0]])) == [(1, 1)]
    ious = np.array([[0.9, 0.8], [0.7, 0.0]])
    assert greedy_pairs(ious, np.ones((2, 2))) == [(0, 0)]
    assert optimal_pairs(ious, np.ones((2, 2))) == [(0, 1), (1, 0)]
    assert optimal_pairs(np.array([[0.6, 0.9]]), np.ones((1, 2))) == [(0, 1)]
    assert legacy_pairs(np.array([[0.5]]), np.array([[0.5]])) == [(0, 0)]  # thresholds are included
    for match in (legacy_pairs, greedy_pairs, optimal_pairs):
        assert match(np.zeros((0, 3)), np.zeros((0, 3))) == match(np.zeros((2, 2)), np.ones((2, 2))) == []
