"""``probe lab train`` and ``probe lab scenes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from probe.commands.arguments import at_least
from probe.commands.twins import SHOWN, train_all
from probe.reports import Report, make_table, output_folder, progress, show_interval, tracked

__all__ = ["lab_scenes", "lab_train"]


def lab_train(
    organism: Literal["llava", "clip", "diffusion", "sam", "twins"],
    *,
    out: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    measure: int = 200,
    seeds: int = 3,
    clip: str = "lab/clip",
    diffusion: str = "lab/diffusion",
) -> Report:
    """Train a small model on scenes and their captions alone, without a grounding label; or a segmenter, on masks alone.

    A run that was stopped goes on where it was when the same command is given again. For llava and twins, how grounding
    emerges is measured while they train.

    Parameters
    ----------
    organism
        Which one: llava describes scenes, clip tells which caption belongs to which scene, diffusion draws scenes. sam finds an
        object's outline from a point; alone of them it learns from masks, and without a word. twins are four that describe scenes
        with one and the same language model, on frozen features: a LLaVA on clip, a DiffLMM on both, and that DiffLMM blind to
        either.
    out
        Folder for the model, its snapshots and the measurements; runs/lab-ORGANISM by default. For llava these are training.csv:
        at each measurement the caption loss, scores, floors and where maps peak, with intervals; for sam scores.csv, the IoU of
        its masks at the end. Twins have a folder each, such as seed-0/llava-clip.
    steps
        How many; by default as the shipped model was trained.
    seed
        Of the weights and the scenes; for twins the first one.
    measure
        How many unseen scenes are scored at each measurement, or of sam at the end; not for clip and diffusion.
    seeds
        How many seeds each of the twins is trained from.
    clip
        For twins: lab/clip, or a folder made with probe lab train clip.
    diffusion
        For twins: lab/diffusion, or a folder made with probe lab train diffusion.
    """
    target = output_folder(out or f"runs/lab-{organism}")
    if steps is not None:
        at_least("--steps", steps, 1)
    if organism == "clip":
        return _train_clip(target, steps, seed)
    if organism == "diffusion":
        return _train_diffusion(target, steps, seed)
    if organism == "sam":
        return _train_sam(target, steps, seed, measure)
    if organism == "twins":
        at_least("--seeds", seeds, 1)
        return train_all(target, steps, range(seed, seed + seeds), measure, clip=clip, diffusion=diffusion)
    return _train_llava(target, steps, seed, measure)


def _train_llava(target: Path, steps: int | None, seed: int, measure: int) -> Report:
    from probe.evaluation.lab import read_lab, reword_scene
    from probe.lab.training import STEPS, train_llava
    from probe.training_tables import TrainingTable

    total = STEPS if steps is None else steps
    at_least("--measure", measure, 2)  # a best head is chosen on one half and reported on the other
    measured = TrainingTable(target / "training.csv", read_lab(limit=measure), reword=reword_scene)
    with progress("training", total) as advance:

        def take(step: int, model: Any, processor: Any, loss: float) -> None:
            row = measured.add(step, model, processor)
            shown = ", ".join(f"{words} {row[name]:.2f}" for name, words in SHOWN.items())
            advance(step, what=f"training (at {step}: {shown})")

        train_llava(target, steps=total, seed=seed, on_snapshot=take, on_step=lambda step, loss: advance(step))
    rows = measured.rows()
    title = f"training of llava, pointing on {measure} unseen scenes, 95 % intervals by bootstrap over scenes"
    table = make_table(title, "step", *SHOWN.values())
    for row in rows:
        table.add_row(str(row["step"]), *(show_interval(row, name) for name in SHOWN))
    lines = ["floor        other phrase's map + what a change of words alone does", f"model        {target}"]
    return Report({"out": str(target), "steps": total, "seed": seed, "rows": rows}, [table, *lines])


def _train_clip(target: Path, steps: int | None, seed: int) -> Report:
    from probe.lab.contrastive import STEPS, train_clip

    total = STEPS if steps is None else steps
    with progress("training", total) as advance:
        train_clip(target, steps=total, seed=seed, on_step=lambda step, loss: advance(step))
    return _curve_report("clip", target, total, seed, ("loss", "accuracy"))


def _train_diffusion(target: Path, steps: int | None, seed: int) -> Report:
    from probe.lab.autoencoding import AUTOENCODER_STEPS, train_autoencoder
    from probe.lab.denoising import STEPS, train_diffusion

    total = STEPS if steps is None else steps
    with progress("autoencoder", AUTOENCODER_STEPS) as advance:
        train_autoencoder(target / "autoencoder", seed=seed, on_step=lambda step, loss: advance(step))
    with progress("U-Net", total) as advance:
        train_diffusion(target, steps=total, seed=seed, on_step=lambda step, loss: advance(step))
    return _curve_report("diffusion", target, total, seed, ("loss", "squared_error"))


def _train_sam(target: Path, steps: int | None, seed: int, measure: int) -> Report:
    import pandas as pd

    from probe.evaluation.lab import read_lab
    from probe.grounding.prompted import score_prompts
    from probe.grounding.sam import SamRefiner
    from probe.lab.segmenting import STEPS, train_sam

    total = STEPS if steps is None else steps
    at_least("--measure", measure, 2)  # of one scene there is no interval
    with progress("training", total) as advance:
        train_sam(target, steps=total, seed=seed, on_step=lambda step, loss: advance(step))
    file = target / "scores.csv"
    if not file.is_file() or int(pd.read_csv(file)["images"].iloc[0]) != measure:
        parts = []
        for choice in ("best", "last"):
            scenes = tracked(read_lab(limit=measure), what=f"scoring the {choice} mask", total=measure)
            parts.append(score_prompts(SamRefiner(target, mask=choice), scenes).assign(mask=choice))
        pd.concat(parts, ignore_index=True).to_csv(file, index=False, lineterminator="\n")
    scores = pd.read_csv(file)
    report = _curve_report("sam", target, total, seed, ("loss", "iou_best", "iou_chosen", "iou_last"))
    title = f"IoU on {measure} unseen scenes, 95 % intervals by bootstrap over scenes"
    table = make_table(title, "asked with", "mask", "taken", "best of the three, by the truth")
    for (mask, prompt), rows in scores.groupby(["mask", "prompt"], sort=False):
        table.add_row(str(prompt), str(mask), *(_interval(row) for _, row in rows.iterrows()))
    return Report(report.data | {"scores": scores.to_dict("records")}, [report.parts[0], table, *report.parts[1:]])


def _interval(row: Any) -> str:
    return show_interval({"value": row["value"], "value_low": row["low"], "value_high": row["high"]}, "value")


def _curve_report(organism: str, target: Path, steps: int, seed: int, names: tuple[str, ...]) -> Report:
    """The rows of ``loss.csv`` that stand at snapshot steps, as a table."""
    from probe.lab.trainers import read_curve, snapshot_steps

    rows = [row for row in read_curve(target / "loss.csv") if row["step"] in snapshot_steps(steps)]
    table = make_table(f"training of {organism}", "step", *(name.replace("_", " ") for name in names))
    for row in rows:
        table.add_row(str(row["step"]), *(f"{row[name]:.3f}" for name in names))
    return Report({"out": str(target), "steps": steps, "seed": seed, "rows": rows}, [table, f"model        {target}"])


def lab_scenes(
    *,
    out: str = "runs/scenes",
    data: str = "lab",
    format: Literal["coco", "panoptic", "grandf", "refcoco", "png"] = "coco",
    count: int = 100,
    seed: int = 0,
) -> Report:
    """Write scenes with captions and exact masks as a folder in the format of a published data set.

    Parameters
    ----------
    out
        The folder to be made; it must not exist yet.
    data
        "lab", lab:unseen, lab:plain, lab:occlusion, lab:relations or lab:clutter.
    format
        coco (instances, captions and phrases), panoptic, grandf (grounded conversations), refcoco (referring expressions)
        or png (Panoptic Narrative Grounding). Read it back with --data FORMAT:FOLDER.
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
    folder = write_folder(out, tracked(drawn, what="drawing", total=count), format=format)
    return Report({"out": str(folder), "scenes": count, "format": format}, [f"{count} scenes in {folder}"])
