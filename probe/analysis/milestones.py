"""When a curve over training has gone half of its way, and whether one does so before another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from probe.errors import InputError

__all__ = ["Order", "StepInterval", "compare_steps", "step_interval", "steps_reached"]

Order = Literal["before", "with", "after", "unknown"]


@dataclass(frozen=True)
class StepInterval:
    """A number of training steps with its percentile interval over images.

    NaN where the curve has no way to go: its change from the first checkpoint to the last is not told from 0.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "-" if isnan(self.value) else f"{self.value:.0f} [{self.low:.0f}, {self.high:.0f}]"


def steps_reached(steps: Sequence[int], curves: NDArray[np.float64], *, share: float = 0.5) -> NDArray[np.float64]:
    """(...) the step at which each (..., step) curve has first gone that share of its way from its first to its last value.

    Between two checkpoints the curve is taken as straight, so the answer is no finer than the checkpoints are dense. NaN for a
    curve that ends where it began, or holds NaN.

    Raises
    ------
    InputError
        If there are fewer than two steps, they do not rise, or ``share`` does not lie between 0 and 1.
    """
    places = np.asarray(steps, dtype=np.float64)
    if len(places) < 2 or not (np.diff(places) > 0).all() or curves.shape[-1] != len(places):
        raise InputError(
            f"A curve over training needs two or more rising steps, one for each value; found {list(steps)}."
        )
    if not 0 < share < 1:
        raise InputError(f"share must lie between 0 and 1, for example 0.5; found {share}.")
    way = curves[..., -1:] - curves[..., :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        gone = (curves - curves[..., :1]) / way  # 0 at the first checkpoint and 1 at the last
    after = np.argmax(gone >= share, axis=-1)[..., None]  # at least 1: the first is 0
    before = np.maximum(after - 1, 0)
    low, high = np.take_along_axis(gone, before, -1), np.take_along_axis(gone, after, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = places[before] + (share - low) / (high - low) * (places[after] - places[before])
    known = np.isfinite(gone).all(-1)
    return np.where(known, found[..., 0], nan)


def step_interval(
    steps: Sequence[int],
    curve: NDArray[np.float64],
    replicated: NDArray[np.float64],
    *,
    share: float = 0.5,
    confidence: float = 0.95,
) -> StepInterval:
    """The step at which a curve has gone that share of its way, with the interval over replicates.

    Parameters
    ----------
    curve : (step,) values.
    replicated : (replicate, step) the same in each replicate of a bootstrap that draws the same images at every step.
    """
    change = replicated[:, -1] - replicated[:, 0]
    low, high = _percentiles(change, confidence)
    if not (low > 0 or high < 0):
        return StepInterval(nan, nan, nan)
    found = steps_reached(steps, np.concatenate([curve[None], replicated]), share=share)
    return StepInterval(float(found[0]), *_percentiles(found[1:], confidence))


def compare_steps(
    steps: Sequence[int],
    one: tuple[NDArray[np.float64], NDArray[np.float64]],
    other: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    share: float = 0.5,
    confidence: float = 0.95,
) -> tuple[StepInterval, Order]:
    """How many steps later the one curve has gone that share of its way than the other, and what that means.

    "before" or "after" where the interval of the difference, paired by replicate, leaves 0 out; "with" where it does not, which
    also is what few images give; "unknown" where one of the curves goes nowhere. The images are drawn again, the training is not:
    it says nothing about another run of the same training.

    Parameters
    ----------
    one, other : (step,) values and (replicate, step) replicates of each.
    """
    if any(isnan(step_interval(steps, *each, share=share, confidence=confidence).value) for each in (one, other)):
        return StepInterval(nan, nan, nan), "unknown"
    both = [steps_reached(steps, np.concatenate([value[None], drawn]), share=share) for value, drawn in (one, other)]
    later = both[0] - both[1]
    low, high = _percentiles(later[1:], confidence)
    order: Order = "after" if low > 0 else "before" if high < 0 else "with"
    return StepInterval(float(later[0]), low, high), order


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return nan, nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
