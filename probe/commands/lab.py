"""``probe lab train`` and ``probe lab scenes``."""

from __future__ import annotations

from typing import Any, Literal

from probe.commands.arguments import at_least
from probe.reports import Report, make_table, output_folder, progress, show_interval, tracked

__all__ = ["lab_scenes", "lab_train"]

#: What of ``probe.measurements.MEASURED`` a person sees of a training, and in which words.
SHOWN = {
    "caption_loss": "caption loss",
    "minus_mean": "minus mean",
    "floor": "paraphrase floor",
    "best_head_held_out": "best head held out",
}


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
        Folder for the model, its snapshots and training.csv: at each measurement the caption loss, scores, floors and where maps
        peak, with intervals.
    steps
        How many; by default as the shipped model was trained.
    seed
        Of the weights and the scenes.
    measure
        How many unseen scenes are scored at each measurement.
    """
    from probe.evaluation.lab import read_lab, reword_scene
    from probe.lab.training import STEPS, train_llava
    from probe.training_tables import TrainingTable

    target = output_folder(out)
    total = STEPS if steps is None else steps
    at_least("--steps", total, 1)
    at_least("--measure", measure, 2)  # a best head is chosen on one half and reported on the other
    measured = TrainingTable(target / "training.csv", read_lab(limit=measure), reword=reword_scene)
    with progress("training", total) as advance:

        def take(step: int, model: Any, processor: Any, loss: float) -> None:
            row = measured.add(step, model, processor)
            shown = ", ".join(f"{words} {row[name]:.2f}" for name, words in SHOWN.items())
            advance(step, what=f"training (at {step}: {shown})")

        train_llava(target, steps=total, seed=seed, on_snapshot=take, on_step=lambda step, loss: advance(step))
    rows = measured.rows()
    title = f"training of {organism}, pointing on {measure} unseen scenes, 95 % intervals by bootstrap over scenes"
    table = make_table(title, "step", *SHOWN.values())
    for row in rows:
        table.add_row(str(row["step"]), *(show_interval(row, name) for name in SHOWN))
    lines = ["floor        other phrase's map + what a change of words alone does", f"model        {target}"]
    return Report({"out": str(target), "steps": total, "seed": seed, "rows": rows}, [table, *lines])


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
