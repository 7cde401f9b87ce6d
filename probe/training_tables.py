"""What a model in training is measured to be, step by step, in a CSV file that grows while the training runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probe.errors import InputError
from probe.measurements import MEASURED, measure
from probe.models import load_model
from probe.runs import threads_for
from probe.writing import write_beside

if TYPE_CHECKING:
    from probe.evaluation.examples import Example

__all__ = ["TrainingTable"]

_COUNTS = ("step", "images", "phrases")
_COLUMNS = (*_COUNTS, *(f"{name}{end}" for name in MEASURED for end in ("", "_low", "_high")))


class TrainingTable:
    """Measures a model in training on a fixed set of examples, one row a call, and keeps the rows in a CSV file.

    >>> table = TrainingTable("runs/mine/training.csv", examples)
    >>> table.add(step, model, processor)
    >>> table.rows()[-1]["minus_mean"]

    The training goes on as if nothing had happened: the mode of every module and all random states are put back, and no gradient is
    touched. Rows that are there stay, and a step that is measured again replaces its row, so that a training that resumes goes on.

    Parameters
    ----------
    path : CSV with step, images, phrases and, for each name in ``probe.measurements.MEASURED``, value, low and high.
    examples : read once and kept.
    options : as for ``probe.measurements.measure``.

    Raises
    ------
    InputError
        If there is no example, or the file is there and holds anything but such rows of as many images.
    """

    def __init__(self, path: str | Path, examples: Iterable[Example], **options: Any) -> None:
        self.path, self.examples, self.options = Path(path), list(examples), options
        if not self.examples:
            raise InputError("There is no example to measure the training on.")
        counts = {int(row["images"]) for row in self.rows()} - {len(self.examples)}
        if counts:
            raise InputError(
                f"{self.path} holds measurements on {counts.pop()} images, which cannot stand beside those on "
                f"{len(self.examples)}; measure on as many, or write to another file."
            )

    def rows(self) -> list[dict[str, float]]:
        """All rows so far, by rising step."""
        if not self.path.is_file():
            return []
        try:
            with self.path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                if tuple(reader.fieldnames or ()) != _COLUMNS:
                    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
                    raise InputError(
                        f"{self.path} is no table of these measurements: "
                        + (f"it has no column {missing[0]!r}" if missing else "it has other columns beside them")
                        + "; remove it, or write to another file."
                    )
                return [{key: int(x) if key in _COUNTS else float(x) for key, x in row.items()} for row in reader]
        except (ValueError, TypeError, csv.Error) as error:
            raise InputError(f"{self.path} cannot be read as a table of measurements: {error}") from None

    def add(self, step: int, model: Any, processor: Any) -> dict[str, float]:
        """The new row; the file then holds it."""
        with _undisturbed(model), threads_for(model):
            found = measure(load_model(model, processor), self.examples, **self.options)
        row: dict[str, float] = {"step": step, "images": found.images, "phrases": found.phrases}
        for name in MEASURED:
            one = found.intervals[name]
            row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        rows = sorted([*(one for one in self.rows() if one["step"] != step), row], key=lambda one: one["step"])
        write_beside(self.path, lambda beside: _write(beside, rows))
        return row


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
        writer = csv.DictWriter(file, fieldnames=_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
