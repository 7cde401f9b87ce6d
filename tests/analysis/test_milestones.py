"""When curves over training have gone half of their way, against values by hand."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from probe.analysis.milestones import compare_steps, step_interval, steps_reached
from probe.errors import InputError

STEPS = (0, 100, 200, 400)


def test_half_of_the_way_is_read_off_straight_lines():
    rising, falling = np.array([0.0, 0.2, 0.6, 1.0]), np.array([6.0, 2.0, 1.0, 0.0])
    assert steps_reached(STEPS, rising) == pytest.approx(175)  # from 0.2 at 100 to 0.6 at 200
    assert steps_reached(STEPS, falling) == pytest.approx(75)  # from 6 at 0 to 2 at 100
    assert steps_reached(STEPS, rising, share=0.9) == pytest.approx(350)
    assert steps_reached(STEPS, np.stack([rising, falling])).tolist() == pytest.approx([175, 75])
    assert steps_reached(STEPS, np.array([0.0, 0.8, 0.3, 1.0])) == pytest.approx(62.5)  # the first time counts
    # What dips first has gone less than nothing of its way.
    assert steps_reached((0, 10, 20), np.array([1.0, 0.0, 3.0])) == pytest.approx(10 + 10 * 2 / 3)


def test_a_curve_that_goes_nowhere_has_no_half():
    assert isnan(steps_reached(STEPS, np.ones(4)))
    assert isnan(steps_reached(STEPS, np.array([0.0, np.nan, 0.5, 1.0])))
    noise = np.random.default_rng(0).normal(size=(500, 4))
    assert isnan(step_interval(STEPS, np.array([0.0, 0.1, 0.1, 0.05]), noise).value)
    found, order = compare_steps(STEPS, (np.arange(4.0), np.arange(4.0) + noise / 100), (np.zeros(4), noise))
    assert isnan(found.value)
    assert order == "unknown"
    assert str(found) == "-"


def test_the_order_is_told_where_the_interval_leaves_zero_out():
    noise = np.random.default_rng(0).normal(scale=0.02, size=(500, 4))
    early, late = np.array([0.0, 0.9, 0.95, 1.0]), np.array([0.0, 0.05, 0.1, 1.0])
    one, other = (early, early + noise), (late, late + noise)
    lag, order = compare_steps(STEPS, other, one)
    assert order == "after"
    assert lag.value == pytest.approx((200 + 200 * 4 / 9) - 100 * 5 / 9)
    assert 0 < lag.low < lag.value < lag.high
    assert compare_steps(STEPS, one, other)[1] == "before"
    same, order = compare_steps(STEPS, one, (early, early + noise[::-1]))
    assert order == "with"
    assert same.low < 0 < same.high


def test_pairing_by_replicate_narrows_the_interval():
    rng = np.random.default_rng(0)
    common = rng.normal(scale=0.1, size=(500, 1)) * np.array([0, 1, 1, 0])
    one, other = np.array([0.0, 0.3, 0.7, 1.0]), np.array([0.0, 0.4, 0.8, 1.0])
    paired, _ = compare_steps(STEPS, (one, one + common), (other, other + common))
    mixed, _ = compare_steps(STEPS, (one, one + common), (other, other + common[rng.permutation(500)]))
    assert paired.high - paired.low < 0.5 * (mixed.high - mixed.low)


@pytest.mark.parametrize(("steps", "share"), [((0,), 0.5), ((0, 200, 100, 400), 0.5), (STEPS, 0.0), (STEPS, 1.5)])
def test_steps_that_do_not_rise_and_shares_out_of_range_are_refused(steps, share):
    with pytest.raises(InputError, match=r"rising steps|share must lie between 0 and 1"):
        steps_reached(steps, np.zeros(len(steps)), share=share)
