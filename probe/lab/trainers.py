"""What the trainings of all lab models share: checkpoints, resuming, snapshots and the curve of the loss."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from probe.errors import InputError
from probe.lab.storage import without_progress_bars

__all__ = ["Course", "OnSnapshot", "OnStep", "fit", "newest", "read_curve", "save_curve", "snapshot_steps"]

OnSnapshot = Callable[[int, Any, Any, float], None]
OnStep = Callable[[int, float], None]

LEARNING_RATE = 1e-3
WARMUP = 100  # steps in which the learning rate rises; at most a tenth of all
LOG_EVERY = 5
# Close to evenly spaced on a log scale, with round numbers.
SPACED = (0, 25, 50, 100, 150, 200, 300, 400, 600, 800, 1000, 1300, 1600, 2000, 2500, 3000, 4000, 6000, 8000, 10000)
RECORD = "training.json"


def snapshot_steps(steps: int) -> tuple[int, ...]:
    """The steps after which a snapshot is taken: roughly log-spaced, from 0 to `steps`."""
    return (*(step for step in SPACED if step < steps), steps)


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a training runs, whatever it trains.

    Raises
    ------
    InputError
        No steps, an empty batch, or no steps between two checkpoints.
    """

    steps: int
    seed: int
    batch_size: int
    save_every: int
    """Steps between two checkpoints."""
    measures: tuple[str, ...] = ()
    """What the model's output holds beside the loss and the curve shows: each of them one number."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.save_every) < 1:
            raise InputError(
                "steps, batch_size and save_every must be 1 or more, "
                f"not {self.steps}, {self.batch_size}, {self.save_every}."
            )


def fit(
    out: str | Path,
    course: Course,
    *,
    plan: dict[str, Any],
    make: Callable[[], tuple[Any, Any]],
    examples: Callable[[int], IterableDataset],
    collator: Callable[[Any], Callable[[Any], dict[str, Any]]],
    save: Callable[[Any, Any], None],
    export: Callable[[int, Any], None] | None = None,
    on_snapshot: OnSnapshot | None = None,
    on_step: OnStep | None = None,
    resume: bool = True,
) -> Path:
    """The folder `out` with what `save` wrote there and the loss curve ``loss.csv``; at once if that run is finished.

    A run that was killed goes on from its last checkpoint and ends with the weights of an unbroken one, because
    nothing that is drawn depends on more than the seed and the number of the example.

    Parameters
    ----------
    plan : What tells this run from another: kept in ``training.json``.
    make : Called when there is something to train, after the seeds are set: model and processor.
    examples : Given the number of the first one: the examples from there on, without end.
    collator : Given the processor: what makes a batch of examples.
    save : Called with the trained model and the processor.
    export : Called with the step and the model at each of `snapshot_steps`.

    Raises
    ------
    InputError
        `out` holds a run with other settings.
    """
    out = Path(out)
    if _prepare(out, plan, resume=resume):
        return out
    checkpoint, done = newest(out / "checkpoints")
    set_seed(course.seed)
    model, processor = make()
    callbacks = _Callbacks(course, processor, export, on_snapshot, on_step)
    trainer = _LabTrainer(
        model=model,
        args=_arguments(out, course),
        train_dataset=examples(done * course.batch_size),
        data_collator=collator(processor),
        callbacks=[callbacks],
        measures=course.measures,
    )
    callbacks.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # it prints a dictionary every few steps
    with without_progress_bars():
        trainer.train(resume_from_checkpoint=checkpoint)
    save_curve(out / "loss.csv", trainer.state.log_history, course.measures)
    save(model.eval(), processor)
    (out / RECORD).write_text(json.dumps(plan | {"finished": True}, indent=2) + "\n")
    shutil.rmtree(out / "checkpoints")
    return out


def newest(checkpoints: Path) -> tuple[str | None, int]:
    """The newest whole checkpoint and its step; None and 0 when there is none."""
    for step in sorted((int(path.name.split("-")[1]) for path in checkpoints.glob("checkpoint-*")), reverse=True):
        place = checkpoints / f"checkpoint-{step}"
        # Trainer writes its state last: where that is missing or cut short, the run was killed while it saved.
        with suppress(OSError, ValueError):
            json.loads((place / "trainer_state.json").read_text())
            return str(place), step
    return None, 0


def _prepare(out: Path, plan: dict[str, Any], *, resume: bool) -> bool:
    """Whether the very same run is already finished in `out`; otherwise `out` is ready for it."""
    record = out / RECORD
    if not resume:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    elif record.is_file():
        found = json.loads(record.read_text())
        finished = found.pop("finished")
        if found != plan:
            different = ", ".join(f"{name}={found.get(name)!r}" for name in plan if found.get(name) != plan[name])
            raise InputError(f"{out} holds a run with {different}. Give another folder, or empty this one first.")
        if finished:
            return True
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(plan | {"finished": False}, indent=2) + "\n")
    return False


def _arguments(out: Path, course: Course) -> TrainingArguments:
    """The settings of transformers' `Trainer`."""
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=course.steps,
        per_device_train_batch_size=course.batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=min(WARMUP, course.steps // 10),
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=course.seed,
        logging_steps=LOG_EVERY,
        save_steps=course.save_every,
        save_total_limit=2,  # a run killed while it writes the newest one still has the one before
        ignore_data_skip=True,  # the scenes start where the checkpoint ended; drawing the earlier ones again is slow
        remove_unused_columns=False,
        use_cpu=True,  # so that the same seed gives the same weights whether or not there is an accelerator
        dataloader_pin_memory=False,
        dataloader_num_workers=1,  # one: it keeps the order of the scenes, and draws while the model computes
        disable_tqdm=True,
        report_to=[],
    )


class _LabTrainer(Trainer):
    """transformers' Trainer, which also keeps the loss of the batch in hand and the measures of those not yet logged."""

    def __init__(self, *args: Any, measures: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last_loss = float("nan")
        self._measured: dict[str, list[float]] = {name: [] for name in measures}

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.last_loss = float(loss.detach())
        for name, values in self._measured.items():
            values.append(float(outputs[name]))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, values in self._measured.items():
                logs[name] = sum(values) / len(values)
                values.clear()
        super().log(logs, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = model or self.model
        if isinstance(model, PreTrainedModel):
            # LLaVA is saved under the parameter names of older releases. transformers 5.23 loads a checkpoint without
            # translating them back, warns, and goes on from random weights; `from_pretrained` does translate them.
            saved = type(model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
            model.load_state_dict(saved.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class _Callbacks(TrainerCallback):
    """Weights and the caller's measurements at `snapshot_steps`."""

    def __init__(
        self,
        course: Course,
        processor: Any,
        export: Callable[[int, Any], None] | None,
        on_snapshot: OnSnapshot | None,
        on_step: OnStep | None,
    ) -> None:
        self.steps, self.processor = snapshot_steps(course.steps), processor
        self.export, self.on_snapshot, self.on_step = export, on_snapshot, on_step
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:  # not when a run resumes
            model = self.trainer.model
            first = list(islice(self.trainer.train_dataset, self.trainer.args.per_device_train_batch_size))
            batch = self.trainer.data_collator(first)
            with torch.no_grad():
                self.trainer.last_loss = float(model(**batch)["loss"])
            self._take(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_step is not None:
            self.on_step(state.global_step, self.trainer.last_loss)
        if state.global_step in self.steps:
            self._take(state.global_step, self.trainer.model)

    def _take(self, step: int, model: Any) -> None:
        """Nothing; exports the weights, and lets the caller measure."""
        if self.export is not None:
            self.export(step, model)
        if self.on_snapshot is not None:
            training = model.training
            model.eval()
            with torch.random.fork_rng():  # whatever the caller draws, the training goes on as it would have
                self.on_snapshot(step, model, self.processor, self.trainer.last_loss)
            model.train(training)


def read_curve(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a curve that a training left: "step" as a whole number, everything else as floats."""
    with Path(path).open(newline="") as file:
        return [
            {name: int(value) if name == "step" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def save_curve(path: Path, history: list[dict[str, float]], measures: tuple[str, ...] = ()) -> None:
    """Nothing; writes the loss and the measures, each averaged over the steps since the row before, and the step sizes."""
    columns = ("step", "loss", *measures, "learning_rate", "grad_norm")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row[name] for name in columns] for row in history if "loss" in row)
