"""Whether a difference between systems holds from training to training: the same sign in all of them, or no claim."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np

from probe.analysis.differences import PairedDifference

__all__ = ["LEAST_TRAININGS", "Agreement", "agreements"]

#: With fewer trainings of either kind nothing is said about encoders: two of two is what a coin does half of the time.
LEAST_TRAININGS = 3


@dataclass(frozen=True)
class Agreement:
    """One difference between two systems over several trainings.

    Attributes
    ----------
    metric, first, second : what was compared; differences are first - second.
    differences : seed of the training -> difference on the same images and phrases.
    mean, low, high : over trainings, with the interval of Student's t; NaN for a single one. An interval over images, which
        every ``PairedDifference`` has, says nothing about another training; this one does.
    trainings : of first and of second; 1 for a system that is the same whatever the seed.
    """

    metric: str
    first: str
    second: str
    differences: dict[int, float]
    mean: float
    low: float
    high: float
    trainings: tuple[int, int]

    @property
    def same_sign(self) -> bool:
        """True if the difference is above 0 for every seed, or below 0 for every seed."""
        signs = {float(np.sign(one)) for one in self.differences.values()}
        return signs in ({1.0}, {-1.0})

    @property
    def claims(self) -> bool:
        """True if the trainings carry a claim: at least ``LEAST_TRAININGS`` of each system, all of one sign."""
        return min(self.trainings) >= LEAST_TRAININGS and self.same_sign

    @property
    def verdict(self) -> str:
        """What the trainings support, in words."""
        of_all = len(self.differences)
        above = sum(one > 0 for one in self.differences.values())
        higher, count = (self.first, above) if 2 * above >= of_all else (self.second, of_all - above)
        counted = f"{higher} is higher in {count} of {of_all} trainings" if of_all > 1 else f"{higher} is higher"
        if self.claims:
            return f"{higher} is higher in all {of_all} trainings"
        if max(self.trainings) < LEAST_TRAININGS:
            few = " and ".join(
                f"{times} of {name}" for name, times in zip((self.first, self.second), self.trainings, strict=True)
            )
            return f"no claim: too few trainings ({few}); here {higher} is higher"
        if min(self.trainings) < LEAST_TRAININGS:
            single = self.first if self.trainings[0] < self.trainings[1] else self.second
            return f"no claim between kinds of model: {counted}, against one training of {single}"
        return f"no claim: {counted}"


def agreements(
    paired: Mapping[int, Sequence[PairedDifference]], *, trained: Collection[str], confidence: float = 0.95
) -> tuple[Agreement, ...]:
    """For each pair of systems and metric that every seed has, what the trainings agree on.

    Parameters
    ----------
    paired : seed of the training -> differences, all on the same images.
    trained : names of the systems that were trained anew from each of these seeds; the others are the same in all of them.
    """
    if not paired:
        return ()
    by_seed = {
        seed: {(one.metric, one.first, one.second): one.difference.value for one in some}
        for seed, some in paired.items()
    }
    common = [key for key in next(iter(by_seed.values())) if all(key in one for one in by_seed.values())]
    found = []
    for metric, first, second in common:
        values = {seed: one[metric, first, second] for seed, one in by_seed.items()}
        if any(isnan(one) for one in values.values()):
            continue
        times = tuple(len(values) if name in trained else 1 for name in (first, second))
        mean, low, high = _over_trainings(list(values.values()), confidence)
        # Two systems that are the same from seed to seed are compared once, on the same images each time.
        if max(times) == 1:
            low, high = nan, nan
        found.append(Agreement(metric, first, second, values, mean, low, high, (times[0], times[1])))
    return tuple(found)


def _over_trainings(values: list[float], confidence: float) -> tuple[float, float, float]:
    """Mean and its interval by Student's t."""
    from scipy import stats

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, nan, nan
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * float(np.std(values, ddof=1)) / sqrt(count)
    return mean, mean - half, mean + half
