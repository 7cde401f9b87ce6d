"""What a sweep will take: its cells counted, and a few of them timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from probe.errors import InputError
from probe.sweep.assembly import SweepEngine, load_engine
from probe.sweep.identity import outline_of

if TYPE_CHECKING:
    from probe.sweep.ablations import Ablation
    from probe.sweep.plan import SweepPlan

__all__ = ["Estimate", "estimate_sweep", "spread"]

# So many ablations are timed, first the few and then all of them: the difference is what each costs, the rest what an example does.
_FEW, _MANY = 4, 12


@dataclass(frozen=True)
class Estimate:
    """What a sweep will take.

    Attributes
    ----------
    ablations : of each example.
    examples : how many; ``None`` where the data does not say.
    seconds_per_cell : of one ablation of one example.
    seconds_per_example : what an example takes besides: its picture, its unablated pass and checks.
    timed : ablations that were timed.
    """

    ablations: int
    examples: int | None
    seconds_per_cell: float
    seconds_per_example: float
    timed: int

    @property
    def cells(self) -> int | None:
        """Ablations of all examples."""
        return None if self.examples is None else self.examples * self.ablations

    @property
    def seconds(self) -> float | None:
        """Of one process for all of it, the loading of weights not counted."""
        each = self.seconds_per_example + self.ablations * self.seconds_per_cell
        return None if self.examples is None else self.examples * each


def spread(ablations: Sequence[Ablation], number: int) -> list[Ablation]:
    """So many of the ablations, or all where there are fewer, at even distances over all layers."""
    number = min(number, len(ablations))
    return [ablations[(2 * place + 1) * len(ablations) // (2 * number)] for place in range(number)]


def estimate_sweep(
    plan: SweepPlan,
    *,
    load: Callable[..., SweepEngine] = load_engine,
    clock: Callable[[], float] = time.perf_counter,
) -> Estimate:
    """What the plan will take on this machine, from a few ablations of the data's first examples; nothing is stored.

    Parameters
    ----------
    load : makes the engine, see ``probe.sweep.assembly.load_engine``.
    clock : seconds.

    Raises
    ------
    InputError
        If the plan asks for what the model has not, or the data is empty.
    ModelError
        If the model cannot be loaded.
    """
    from probe.evaluation.sources import read_data

    outline = outline_of(plan.model)
    ablations = plan.ablations(layers=outline.layers, heads=outline.heads)
    examples, total = read_data(plan.data, limit=plan.limit, seed=plan.seed)
    some = [one for one in islice(examples, 8) if one.phrases][:2]
    if not some:
        raise InputError(f"data={plan.data!r} has no example with a phrase among its first; there is nothing to time.")
    timed = spread(ablations, _MANY)
    engine = load(plan, outline, ablations=timed)
    engine(some[:1])  # the first call checks more than any later one
    most = _seconds(engine, some[-1:], clock)
    if len(timed) <= _FEW:
        return Estimate(len(ablations), total, most / len(timed), 0.0, len(timed))
    few = spread(ablations, _FEW)
    engine = load(plan, outline, ablations=few)
    engine(some[:1])
    least = _seconds(engine, some[-1:], clock)
    each = max(0.0, (most - least) / (len(timed) - len(few)))
    return Estimate(len(ablations), total, each, max(0.0, most - each * len(timed)), len(timed))


def _seconds(engine: SweepEngine, examples: Sequence[object], clock: Callable[[], float]) -> float:
    """The median of three calls."""
    found = []
    for _ in range(3):
        begin = clock()
        engine(examples)  # type: ignore[arg-type]
        found.append(clock() - begin)
    return sorted(found)[1]
