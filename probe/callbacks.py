"""Grounding measured while somebody's own training runs: a callback for transformers' ``Trainer``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from probe.analysis.metrics import find_metric
from probe.errors import InputError
from probe.files import write_beside
from probe.measurements import MEASURED, Reword, measure
from probe.models import load_model
from probe.runs import threads_for

if TYPE_CHECKING:
    from probe.evaluation.examples import Example

__all__ = ["GroundingCallback"]


class GroundingCallback(TrainerCallback):
    """Records and scores a fixed set of examples at the start and every n steps of a training, one row a time in a CSV file.

    >>> trainer = Trainer(..., callbacks=[GroundingCallback(examples, processor, every=100, out="grounding.csv")])

    The training goes on as if nothing had happened: the mode of every module and all random states are put back, and no gradient is
    touched. Where several processes train, the first one measures; models that are sharded over processes cannot be read this way.

    Parameters
    ----------
    examples : read once and kept.
    processor : of the model; by default the trainer's own ``processing_class``.
    every : steps between two measurements; the last step is measured too.
    out : CSV with step and, for each name in ``probe.measurements.MEASURED``, value, low and high. Rows that are there stay, and a
        step that is measured again replaces its row, so that a training that resumes goes on.
    prompt, metric, reword, replicates, seed : as for ``probe.measurements.measure``.

    Raises
    ------
    InputError
        If there is no example, ``every`` is below 1 or the metric is unknown.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        processor: Any = None,
        *,
        every: int = 100,
        out: str | Path = "grounding.csv",
        prompt: str = "Describe the image.",
        metric: str = "pointing",
        reword: Reword | None = None,
        replicates: int = 1000,
        seed: int = 0,
    ) -> None:
        self.examples, self.processor = list(examples), processor
        if every < 1 or not self.examples:
            raise InputError(
                f"every must be 1 or more and there must be an example, found every={every} and {len(self.examples)} examples."
            )
        find_metric(metric)
        self.every, self.out = every, Path(out)
        self.options: dict[str, Any] = {
            "prompt": prompt, "metric": metric, "reword": reword, "replicates": replicates, "seed": seed
        }  # fmt: skip

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures step 0; a training that resumes was measured before."""
        if state.global_step == 0:
            self._measure(state, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures every n steps."""
        if state.global_step % self.every == 0:
            self._measure(state, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures the last step, if it was not."""
        if state.global_step % self.every:
            self._measure(state, **kwargs)

    def rows(self) -> list[dict[str, float]]:
        """All rows so far, by rising step."""
        if not self.out.is_file():
            return []
        with self.out.open(encoding="utf-8", newline="") as file:
            return [
                {key: int(value) if key == "step" else float(value) for key, value in row.items()}
                for row in csv.DictReader(file)
            ]

    def _measure(self, state: Any, *, model: Any = None, processing_class: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        with _undisturbed(model):
            subject = load_model(model, self.processor if self.processor is not None else processing_class)
            with threads_for(model):
                found = measure(subject, self.examples, **self.options)
        row: dict[str, float] = {"step": state.global_step}
        for name in MEASURED:
            one = found.intervals[name]
            row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        rows = [*(one for one in self.rows() if one["step"] != state.global_step), row]
        rows.sort(key=lambda one: one["step"])
        write_beside(self.out, lambda beside: _write(beside, rows))


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode and random numbers of one's own; every module's mode and all random states are put back."""
    import random

    import numpy as np

    modes = {name: one.training for name, one in model.named_modules()}
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            model.eval()
            yield
    finally:
        # One by one: a frozen part that its owner keeps in evaluation mode must not wake up with the rest.
        for name, one in model.named_modules():
            one.training = modes[name]
        random.setstate(python)
        np.random.set_state(numpy_state)


def _write(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
