"""``probe lab train`` and ``probe lab scenes``."""

from __future__ import annotations

from typing import Literal

from probe.commands.arguments import at_least
from probe.reports import Report, make_table, output_folder, progress, show_interval, tracked

__all__ = ["lab_scenes", "lab_train"]


def lab_train(
    organism: Literal["llava"],
    *,
    out: str = "runs/lab-llava",
    steps: int | None = None,
    seed: int = 0,
    measure: int = 200,
) -> Report:
    """Train a small model on captions of scenes alone, without a grounding label, and measure how grounding emerges.

    A run that was stopped goes on where it was when the same command is given again.

    Parameters
    ----------
    organism
        Which one.
    out
        Folder for the model, its snapshots and training.csv, the measurements.
    steps
        How many; by default as the shipped model was trained.
    seed
        Of the weights and the scenes.
    measure
        How many unseen scenes are scored at each measurement.
    """
    from probe.lab.training import STEPS, train_llava
    from probe.runs import TrainingMeasurements

    target = output_folder(out)
    total = STEPS if steps is None else steps
    at_least("--steps", total, 1)
    at_least("--measure", measure, 2)  # a best head is chosen on one half and reported on the other
    measured = TrainingMeasurements(target / "training.csv", count=measure)
    with progress("training", total) as advance:
        train_llava(target, steps=total, seed=seed, on_snapshot=measured, on_step=lambda step, loss: advance(step))
    rows = measured.rows()
    table = make_table(
        f"training of {organism}, {measure} unseen scenes", "step", "loss", "mean map", "minus mean", "best head"
    )
    for row in rows:
        shown = [show_interval(row, name) for name in ("mean_map", "minus_mean", "best_head_held_out")]
        table.add_row(str(row["step"]), f"{row['loss']:.3f}", *shown)
    return Report({"out": str(target), "steps": total, "seed": seed, "rows": rows}, [table, f"model        {target}"])


def lab_scenes(*, out: str = "runs/scenes", data: str = "lab", count: int = 100, seed: int = 0) -> Report:
    """Write scenes with captions and exact masks as a folder in COCO style.

    Parameters
    ----------
    out
        The folder to be made; it must not exist yet.
    data
        "lab", lab:unseen, lab:plain, lab:occlusion, lab:relations or lab:clutter.
    count
        How many scenes.
    seed
        Which scenes.
    """
    from probe.evaluation.lab import lab_settings
    from probe.lab.folders import write_folder
    from probe.lab.scenes import scenes

    at_least("--count", count, 1)
    drawn = scenes(count, split="test", seed=seed, settings=lab_settings(data))
    folder = write_folder(out, tracked(drawn, what="drawing", total=count))
    return Report({"out": str(folder), "scenes": count}, [f"{count} scenes in {folder}"])
