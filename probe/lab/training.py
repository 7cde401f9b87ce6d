"""Training ``lab/llava`` from scratch, on captions alone: no mask, box or point is ever part of the loss."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from probe.errors import InputError
from probe.lab.captions import Captions, Collator
from probe.lab.llava import LlavaSettings, build, make_processor, save_folder, save_snapshot, without_progress_bars

__all__ = ["OnSnapshot", "OnStep", "snapshot_steps", "train_llava"]

OnSnapshot = Callable[[int, Any, Any, float], None]
OnStep = Callable[[int, float], None]

STEPS = 2500
LEARNING_RATE = 1e-3
WARMUP = 100
LOG_EVERY = 5
# Close to evenly spaced on a log scale, with round numbers.
SPACED = (0, 25, 50, 100, 150, 200, 300, 400, 600, 800, 1000, 1300, 1600, 2000, 2500, 3000, 4000, 6000, 8000, 10000)
# The steps whose weights are exported beside the final ones.
SHIPPED = (100, 200, 400, 800)
RECORD = "training.json"


def snapshot_steps(steps: int) -> tuple[int, ...]:
    """The steps after which a snapshot is taken: roughly log-spaced, from 0 to `steps`."""
    return (*(step for step in SPACED if step < steps), steps)


def train_llava(
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = 64,
    on_snapshot: OnSnapshot | None = None,
    on_step: OnStep | None = None,
    resume: bool = True,
    save_every: int = 100,
    settings: LlavaSettings | None = None,
) -> Path:
    """The folder `out`, with the trained model in the Hugging Face layout, snapshots and the loss curve ``loss.csv``.

    >>> train_llava("runs/llava", on_snapshot=lambda step, model, processor, loss: print(step, loss))  # doctest: +SKIP

    The same seed gives the same weights on the same machine. A run that was killed goes on from its last checkpoint
    and ends with the weights of an unbroken one. Where other programs use the same cores, set the environment variable
    ``OMP_WAIT_POLICY=passive`` before Python starts: the weights are the same, and torch's threads no longer burn the
    time that they wait for each other.

    Parameters
    ----------
    on_snapshot : Called with the step, the model in eval mode, the processor and the loss of that step's batch, at
        the steps of `snapshot_steps` that this call passes.
    on_step : Called with the step and its loss after every step, to show progress.
    resume : Go on from a checkpoint in `out`; otherwise start again.
    save_every : Steps between two checkpoints.
    settings : Another size of model, for tests.

    Raises
    ------
    InputError
        No steps or an empty batch, or `out` holds a run with other settings.
    """
    if min(steps, batch_size, save_every) < 1:
        raise InputError(
            f"steps, batch_size and save_every must be 1 or more, not {steps}, {batch_size}, {save_every}."
        )
    out, settings = Path(out), settings or LlavaSettings()
    plan = {"steps": steps, "seed": seed, "batch_size": batch_size, "model": asdict(settings)}
    if _prepare(out, plan, resume=resume):
        return out
    checkpoint, done = _newest(out / "checkpoints")
    set_seed(seed)
    processor = make_processor(settings)
    model = build(processor, settings=settings, seed=seed)
    callbacks = _Callbacks(out, steps, processor, on_snapshot, on_step)
    trainer = _CaptionTrainer(
        model=model,
        args=_arguments(out, steps=steps, seed=seed, batch_size=batch_size, save_every=save_every),
        train_dataset=Captions(size=settings.image, seed=seed, start=done * batch_size),
        data_collator=Collator(processor),
        callbacks=[callbacks],
    )
    callbacks.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # it prints a dictionary every few steps
    with without_progress_bars():
        trainer.train(resume_from_checkpoint=checkpoint)
    _save_curve(out / "loss.csv", trainer.state.log_history)
    model.config.use_cache = True  # the trainer switches it off, and generation would be slow for everybody
    save_folder(out, model, processor)
    (out / RECORD).write_text(json.dumps(plan | {"finished": True}, indent=2) + "\n")
    shutil.rmtree(out / "checkpoints")
    return out


def _newest(checkpoints: Path) -> tuple[str | None, int]:
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


def _arguments(out: Path, *, steps: int, seed: int, batch_size: int, save_every: int) -> TrainingArguments:
    """The settings of transformers' `Trainer`."""
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=min(WARMUP, steps // 10),
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=seed,
        logging_steps=LOG_EVERY,
        save_steps=save_every,
        save_total_limit=2,  # a run killed while it writes the newest one still has the one before
        ignore_data_skip=True,  # the scenes start where the checkpoint ended; drawing the earlier ones again is slow
        remove_unused_columns=False,
        use_cpu=True,  # so that the same seed gives the same weights whether or not there is an accelerator
        dataloader_pin_memory=False,
        dataloader_num_workers=1,  # one: it keeps the order of the scenes, and draws while the model computes
        disable_tqdm=True,
        report_to=[],
    )


class _CaptionTrainer(Trainer):
    """transformers' Trainer, which also keeps the loss of the batch in hand."""

    last_loss = float("nan")

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.last_loss = float((loss[0] if isinstance(loss, tuple) else loss).detach())
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # LLaVA is saved under the parameter names of older releases. transformers 5.23 loads a checkpoint without
        # translating them back, warns, and goes on from random weights; `from_pretrained` does translate them.
        model = model or self.model
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())


class _Callbacks(TrainerCallback):
    """Weights and the caller's measurements at `snapshot_steps`."""

    def __init__(
        self, out: Path, steps: int, processor: Any, on_snapshot: OnSnapshot | None, on_step: OnStep | None
    ) -> None:
        self.out, self.steps, self.processor = out, snapshot_steps(steps), processor
        self.on_snapshot, self.on_step = on_snapshot, on_step
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:  # not when a run resumes
            model = self.trainer.model
            first = list(islice(self.trainer.train_dataset, self.trainer.args.per_device_train_batch_size))
            batch = self.trainer.data_collator(first)
            with torch.no_grad():
                self.trainer.last_loss = float(model(**batch).loss)
            self._take(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_step is not None:
            self.on_step(state.global_step, self.trainer.last_loss)
        if state.global_step in self.steps:
            self._take(state.global_step, self.trainer.model)

    def _take(self, step: int, model: Any) -> None:
        """Nothing; exports the weights if this step's are shipped, and lets the caller measure."""
        if step in SHIPPED and step != self.steps[-1]:
            save_snapshot(self.out, step, model)
        if self.on_snapshot is not None:
            training = model.training
            model.eval()
            with torch.random.fork_rng():  # whatever the caller draws, the training goes on as it would have
                self.on_snapshot(step, model, self.processor, self.trainer.last_loss)
            model.train(training)


def _save_curve(path: Path, history: list[dict[str, float]]) -> None:
    """Nothing; writes the loss, averaged over the steps since the row before, with the learning rate and gradient norm."""
    columns = ("step", "loss", "learning_rate", "grad_norm")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row[name] for name in columns] for row in history if "loss" in row)
