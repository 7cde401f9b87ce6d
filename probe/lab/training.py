"""Training ``lab/llava`` from scratch, on captions alone: no mask, box or point is ever part of the loss."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from probe.lab.captions import Captions, Collator
from probe.lab.llava import LlavaSettings, build, make_processor, save_folder, save_snapshot
from probe.lab.trainers import Course, OnSnapshot, OnStep, fit, snapshot_steps

__all__ = ["OnSnapshot", "OnStep", "snapshot_steps", "train_llava"]

STEPS = 2500
# The steps whose weights are exported beside the final ones.
SHIPPED = (100, 200, 400, 800)


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
    settings = settings or LlavaSettings()
    out = Path(out)

    def make() -> tuple[Any, Any]:
        processor = make_processor(settings)
        return build(processor, settings=settings, seed=seed), processor

    def export(step: int, model: Any) -> None:
        if step in SHIPPED and step != steps:
            save_snapshot(out, step, model)

    def save(model: Any, processor: Any) -> None:
        model.config.use_cache = True  # the trainer switches it off, and generation would be slow for everybody
        save_folder(out, model, processor)

    return fit(
        out,
        Course(steps=steps, seed=seed, batch_size=batch_size, save_every=save_every),
        plan={"steps": steps, "seed": seed, "batch_size": batch_size, "model": asdict(settings)},
        make=make,
        examples=lambda start: Captions(size=settings.image, seed=seed, start=start),
        collator=Collator,
        save=save,
        export=export,
        on_snapshot=on_snapshot,
        on_step=on_step,
        resume=resume,
    )
