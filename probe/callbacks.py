"""Grounding measured while somebody's own training runs: a callback for transformers' ``Trainer``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from probe.analysis.metrics import find_metric
from probe.errors import InputError
from probe.measurements import Reword
from probe.training_tables import TrainingTable

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
    out : CSV, see ``probe.training_tables.TrainingTable``. Rows that are there stay, and a step that is measured again replaces its
        row, so that a training that resumes goes on.
    prompt, metric, reword, replicates, seed : as for ``probe.measurements.measure``.

    Raises
    ------
    InputError
        If there is no example, ``every`` is below 1, the metric is unknown, or ``out`` is there and holds anything else.
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
        kept = list(examples)
        if every < 1 or not kept:
            raise InputError(
                f"every must be 1 or more and there must be an example, found every={every} and {len(kept)} examples."
            )
        find_metric(metric)
        self.every, self.processor = every, processor
        self.table = TrainingTable(
            out, kept, prompt=prompt, metric=metric, reword=reword, replicates=replicates, seed=seed
        )

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
        return self.table.rows()

    def _measure(self, state: Any, *, model: Any = None, processing_class: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.table.add(state.global_step, model, self.processor if self.processor is not None else processing_class)
