"""Agreement over trainings against hand-made differences and the textbook's interval."""

from __future__ import annotations

from math import isnan, nan, sqrt

import pytest

from probe.analysis.agreement import agreements
from probe.analysis.differences import PairedDifference
from probe.analysis.stats import Interval


def differ(value: float, *, first: str = "a", second: str = "b", metric: str = "pointing") -> PairedDifference:
    return PairedDifference(metric, first, second, Interval(value, value - 1, value + 1, 9, 18), 0.5, 0.5, "")


def agreed(*values: float, trained: tuple[str, ...] = ("a", "b")):
    (one,) = agreements({seed: [differ(value)] for seed, value in enumerate(values)}, trained=trained)
    return one


def test_the_interval_is_students() -> None:
    one = agreed(0.10, 0.20, 0.30)
    # t of 2 degrees of freedom at 97.5 % is 4.3027, from any table; the standard deviation is 0.1.
    half = 4.302653 * 0.1 / sqrt(3)
    assert (one.mean, one.low, one.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)
    assert one.differences == {0: 0.10, 1: 0.20, 2: 0.30}


@pytest.mark.parametrize(
    ("values", "claims", "verdict"),
    [
        ((0.1, 0.2, 0.3), True, "a is higher in all 3 trainings"),
        ((-0.1, -0.2, -0.3), True, "b is higher in all 3 trainings"),
        ((0.1, -0.2, 0.3), False, "no claim: a is higher in 2 of 3 trainings"),
        ((-0.1, -0.2, 0.3), False, "no claim: b is higher in 2 of 3 trainings"),
        ((0.1, 0.0, 0.3), False, "no claim: a is higher in 2 of 3 trainings"),
        ((0.1, 0.2), False, "no claim: too few trainings (2 of a and 2 of b); here a is higher"),
    ],
)
def test_no_claim_unless_all_trainings_have_one_sign(values: tuple[float, ...], claims: bool, verdict: str) -> None:
    one = agreed(*values)
    assert (one.claims, one.verdict) == (claims, verdict)


def test_a_system_that_is_trained_once_carries_no_claim() -> None:
    one = agreed(0.1, 0.2, 0.3, trained=("a",))
    assert one.trainings == (3, 1)
    assert one.same_sign
    assert not one.claims
    assert one.verdict == (
        "no claim between kinds of model: a is higher in 3 of 3 trainings, against one training of b"
    )
    both = agreed(0.1, 0.1, 0.1, trained=())
    assert both.trainings == (1, 1)
    assert isnan(both.low)
    assert "too few trainings (1 of a and 1 of b)" in both.verdict


def test_only_what_every_seed_has_is_compared() -> None:
    other = differ(0.5, first="a", second="c")
    found = agreements({0: [differ(0.1), other], 1: [differ(0.2)], 2: [differ(0.3)]}, trained=("a", "b", "c"))
    assert [(one.first, one.second) for one in found] == [("a", "b")]
    assert agreements({}, trained=()) == ()
    assert agreements({0: [differ(nan)], 1: [differ(0.1)]}, trained=("a",)) == ()
    (single,) = agreements({0: [differ(0.1)]}, trained=("a", "b"))
    assert (single.mean, isnan(single.low)) == (0.1, True)
