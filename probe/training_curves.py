"""How grounding emerges while a model is trained: scores, losses and floors at every checkpoint, and which came first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.analysis.metrics import find_metric
from probe.analysis.milestones import Order, StepInterval, compare_steps, step_interval
from probe.analysis.stats import Interval
from probe.checkpoints import Checkpoint
from probe.errors import InputError, ProbeError
from probe.measurements import MEASURED, Measurement, Reword, measure
from probe.runs import threads_for

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.examples import Example

__all__ = ["GROUNDING", "LOSSES", "TrainingCurve", "emergence"]

#: What is called grounding, and what its rise is compared with.
GROUNDING = ("minus_mean", "margin", "best_head_held_out")
LOSSES = ("caption_loss", "phrase_loss")

#: Shares of its way at which a curve is timed.
SHARES = (0.5, 0.9)


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """Measurements at the steps of one training: what ``emergence`` gives.

    Attributes
    ----------
    metric : what was scored.
    steps : of training, rising.
    measurements : one for each step; see ``probe.measurements.MEASURED`` for what they hold.
    confidence : of all intervals.
    """

    metric: str
    steps: tuple[int, ...]
    measurements: tuple[Measurement, ...]
    confidence: float = 0.95

    def curve(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(step,) values of one of ``MEASURED`` and their (replicate, step) replicates, of the same images at every step."""
        if name not in MEASURED:
            raise InputError(f"There is no curve {name!r}; there are {', '.join(MEASURED)}.")
        values = np.array([one.intervals[name].value for one in self.measurements])
        return values, np.stack([one.replicated[name] for one in self.measurements], axis=1)

    def reached(self, name: str, *, share: float = 0.5) -> StepInterval:
        """The step at which a curve has gone that share of its way from its first to its last checkpoint, with its interval."""
        return step_interval(self.steps, *self.curve(name), share=share, confidence=self.confidence)

    def lag(
        self, name: str = "minus_mean", loss: str = "caption_loss", *, share: float = 0.5
    ) -> tuple[StepInterval, Order]:
        """How many steps after the loss a score has gone that share of its way, and "before", "with", "after" or "unknown"."""
        return compare_steps(self.steps, self.curve(name), self.curve(loss), share=share, confidence=self.confidence)

    @property
    def beats_floor_from(self) -> int | None:
        """The first step from which on every checkpoint beats the paraphrase floor with its whole interval, or None."""
        first = None
        for step, one in zip(self.steps, self.measurements, strict=True):
            first = (step if first is None else first) if one.grounds else None
        return first

    def order_rows(self) -> list[dict[str, Any]]:
        """One row for each score, loss and share: when each is reached, the lag with its interval, and the order in a word."""
        rows = []
        for share in SHARES:
            for loss in LOSSES:
                for name in GROUNDING:
                    lag, order = self.lag(name, loss, share=share)
                    row: dict[str, Any] = {"share": share, "score": name, "loss": loss, "order": order}
                    for key, one in (
                        ("score", self.reached(name, share=share)),
                        ("loss", self.reached(loss, share=share)),
                    ):
                        row |= {f"{key}_step": one.value, f"{key}_step_low": one.low, f"{key}_step_high": one.high}
                    rows.append(row | {"lag": lag.value, "lag_low": lag.low, "lag_high": lag.high})
        return rows

    def to_frame(self) -> pd.DataFrame:
        """One row for each step and name in ``MEASURED``, with its interval and what it rests on.

        Columns: step, metric, name, value, low, high, images, phrases, layer, head, grounds. ``phrases`` counts tokens in the
        rows of the losses; ``layer`` and ``head`` tell which head was chosen.
        """
        import pandas as pd

        rows = []
        for step, one in zip(self.steps, self.measurements, strict=True):
            for name, found in one.intervals.items():
                chosen = one.best_head if name == "best_head_held_out" and one.best_head else (None, None)
                row: dict[str, Any] = {"step": step, "metric": self.metric, "name": name} | _bounds(found)
                rows.append(row | {"layer": chosen[0], "head": chosen[1], "grounds": one.grounds})
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})

    def __repr__(self) -> str:
        lines = [f"TrainingCurve({self.metric}, {len(self.steps)} checkpoints, {self.measurements[0].images} images)"]
        for step, one in zip(self.steps, self.measurements, strict=True):
            found = one.intervals
            lines.append(
                f"  step {step:<8}minus_mean {found['minus_mean'].value:.3f}, floor {found['floor'].value:.3f}, "
                f"caption loss {found['caption_loss'].value:.3f}"
            )
        return "\n".join(lines)


def _bounds(found: Interval) -> dict[str, Any]:
    return {
        "value": found.value, "low": found.low, "high": found.high, "images": found.images, "phrases": found.phrases
    }  # fmt: skip


def emergence(
    checkpoints: Sequence[Checkpoint],
    examples: Iterable[Example],
    *,
    prompt: str = "Describe the image.",
    metric: str = "pointing",
    reword: Reword | None = None,
    replicates: int = 1000,
    seed: int = 0,
    on_checkpoint: Callable[[int], None] | None = None,
) -> TrainingCurve:
    """Grounding over a training, every checkpoint on the same examples: a ``TrainingCurve``.

    >>> curve = emergence(find_checkpoints("runs/mine/checkpoint-*"), examples)
    >>> curve.to_frame(), curve.lag("minus_mean", "caption_loss")

    Captions are read, not generated, so that loss and maps are of the same words at every step. Intervals are over images: one
    training says nothing about another run of it. Models are loaded one after the other; the examples are kept in memory.

    Parameters
    ----------
    checkpoints : from ``find_checkpoints`` or ``lab_checkpoints``, with rising steps.
    reword : gives an example in other words, for the paraphrase floor; see ``probe.measurements.measure``.
    on_checkpoint : called with the number of checkpoints done, to show progress.

    Raises
    ------
    InputError
        If there is no checkpoint or example, the steps do not rise, or checkpoints differ in layers or heads.
    ModelError
        If a checkpoint does not load; the message names it.
    CaptureError
        If one cannot be recorded; the message names it.
    """
    find_metric(metric)
    kept = list(examples)
    steps = tuple(one.step for one in checkpoints)
    if not steps or any(low >= high for low, high in pairwise(steps)):
        raise InputError(f"The checkpoints' steps must rise, and there must be one at least; found {list(steps)}.")
    found: list[Measurement] = []
    for number, checkpoint in enumerate(checkpoints, start=1):
        subject = checkpoint.load()
        try:
            with threads_for(subject.model):
                measured = measure(
                    subject, kept, prompt=prompt, metric=metric, reword=reword, replicates=replicates, seed=seed
                )
            if found:
                measured.structure.require_like(found[0].structure)
        except ProbeError as error:
            raise type(error)(f"{checkpoint.name}: {error}") from None
        found.append(measured)
        if on_checkpoint is not None:
            on_checkpoint(number)
    return TrainingCurve(metric, steps, tuple(found))
