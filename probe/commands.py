"""What each command of the shell does: it computes, writes into ``--out`` and gives back a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.errors import InputError
from probe.files import write_beside
from probe.reports import (
    Report,
    make_table,
    output_folder,
    progress,
    score_data,
    score_table,
    show_interval,
    tracked,
    write_json,
)

if TYPE_CHECKING:
    from probe.evaluation.examples import Example

__all__ = ["LAB_VERBS", "VERBS"]


def demo(*, out: str = "probe-demo", scenes: int = 500, seed: int = 0) -> Report:
    """Show the whole tool on the shipped model: scores, controls and pictures of scenes it has never seen.

    Parameters
    ----------
    out
        Folder for the pictures, the table and a record.
    scenes
        How many unseen scenes are scored.
    seed
        Which scenes; another number gives others.
    """
    from probe.demo import run_demo

    _at_least("--scenes", scenes, 2)  # a best head is chosen on one half and reported on the other
    return run_demo(output_folder(out), scenes=scenes, seed=seed)


def record(
    image: str,
    prompt: str,
    *,
    model: str = "lab/llava",
    answer: str | None = None,
    phrase: Sequence[str] = (),
    out: str = "probe-record",
    max_new_tokens: int = 128,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Record where a model looks while it answers a prompt about an image, and draw it.

    Parameters
    ----------
    image
        The picture's file.
    prompt
        What to ask.
    model
        "lab/llava", a hub name or a local folder.
    answer
        Read this text instead of generating one.
    phrase
        A phrase of the answer to draw, each time it is said; by default the first words with letters.
    out
        Folder for record.safetensors, phrases.png and .pdf, and record.json with the exact settings.
    max_new_tokens
        Where a generated answer is cut off at the latest.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    settings = dict(locals())
    import probe
    from probe.plots import phrases, save_figure

    target = output_folder(out)
    picture = probe.read_image(image)
    subject = probe.load_model(model, dtype=dtype, device=device)
    found = probe.run(subject, picture, prompt, answer=answer, max_new_tokens=max_new_tokens)
    # A phrase that is not there is said before anything is written.
    wanted = [each for one in phrase for each in _each_time(found.record, one)] or _first_words(found.record)
    kept = probe.save(found.record, target / "record.safetensors")
    figures = []
    if wanted:
        figure = phrases(found.record, wanted, picture)[0].get_figure(root=True)
        assert figure is not None  # for the type checker: these Axes were just made
        figures = [str(path) for path in save_figure(figure, target / "phrases")]
    data = {
        "text": found.text,
        "tokens": list(found.record.tokens),
        "record": str(kept),
        "figures": figures,
        "certificate": _certificate(found.record),
        "settings": settings,
    }
    write_json(target / "record.json", data)
    lines = [f"answer       {found.text}", repr(found.record), f"record       {kept}"]
    lines += [f"picture      {one}" for one in figures]
    return Report(data, lines)


def score(
    *,
    data: str = "lab",
    model: str = "lab/llava",
    prompt: str = "Describe the image.",
    metric: Sequence[str] = (),
    limit: int | None = None,
    reading: Literal["minus mean", "attention"] = "minus mean",
    out: str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Score how well every layer and head localises the phrases of a data set, with intervals and controls.

    Parameters
    ----------
    data
        "lab" (unseen scenes; also lab:unseen, lab:plain, lab:occlusion, lab:relations, lab:clutter) or a folder in COCO style.
    model
        "lab/llava", a hub name or a local folder.
    prompt
        What the captions answer.
    metric
        "pointing", "auroc", "lift" or "energy"; by default the first three.
    limit
        At most this many examples; 500 for lab scenes, all of a folder.
    reading
        What a single head's score reads: its map minus its mean over the answer (Eq. 3), or its attention as recorded.
    out
        Folder for scores.parquet and scores.json with the exact settings.
    seed
        For the bootstrap, and for which lab scenes.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    settings = dict(locals())
    import probe
    from probe.analysis.metrics import find_metric
    from probe.runs import score_examples

    target = None if out is None else output_folder(out)
    metrics = list(metric) or ["pointing", "auroc", "lift"]
    for one in metrics:
        find_metric(one)
    examples, total = _examples(data, limit=limit, seed=seed)
    subject = probe.load_model(model, dtype=dtype, device=device)
    followed = tracked(examples, what="scoring", total=total)
    scores = score_examples(subject, followed, prompt=prompt, metric=metrics, reading=reading, seed=seed)
    result = score_data(scores) | {"settings": settings}
    if target is not None:
        frame = scores.to_frame()
        write_beside(target / "scores.parquet", lambda path: frame.to_parquet(path, index=False))
        write_json(target / "scores.json", result)
    return Report(result, [score_table(scores, one) for one in scores.metrics])


def check(model: str, *, image: str | None = None, dtype: str = "auto", device: str | None = None) -> Report:
    """Prove that the recorder tells the truth about a model and leaves it as it was; exit code 1 if anything fails.

    Parameters
    ----------
    model
        "lab/llava", a hub name or a local folder.
    image
        Any picture; by default one that is made up.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    import probe

    report = probe.check(probe.load_model(model, dtype=dtype, device=device), image=image)
    table = make_table(
        f"{report.model}: family {report.family}, kernel {report.kernel}, {report.dtype}",
        "",
        "question",
        "found",
        "allowed",
    )
    for one in report.results:
        table.add_row("ok" if one.passed else "FAILED", one.name, one.found, one.allowed)
    return Report(report.to_dict(), [table], 0 if report.passed else 1)


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
    _at_least("--steps", total, 1)
    _at_least("--measure", measure, 2)  # a best head is chosen on one half and reported on the other
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

    _at_least("--count", count, 1)
    drawn = scenes(count, split="test", seed=seed, settings=lab_settings(data))
    folder = write_folder(out, tracked(drawn, what="drawing", total=count))
    return Report({"out": str(folder), "scenes": count}, [f"{count} scenes in {folder}"])


VERBS: dict[str, Callable[..., Report]] = {"demo": demo, "record": record, "score": score, "check": check}
LAB_VERBS: dict[str, Callable[..., Report]] = {"train": lab_train, "scenes": lab_scenes}


def _certificate(record: Any) -> dict[str, Any]:
    return asdict(record.certificate) | {"passed": record.certificate.passed}


def _examples(data: str, *, limit: int | None, seed: int) -> tuple[Iterable[Example], int | None]:
    if limit is not None:
        _at_least("--limit", limit, 1)
    if data == "lab" or data.startswith("lab:"):
        from probe.evaluation.lab import lab_settings, read_lab

        lab_settings(data)  # an unknown name is said before a model is loaded
        count = limit or 500
        return read_lab(data, limit=count, seed=seed), count
    from probe.evaluation.coco import read_coco_folder

    return read_coco_folder(Path(data), limit=limit), limit


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise InputError(f"{name} must be {low} or more, found {value}.")


def _each_time(record: Any, phrase: str) -> list[Any]:
    """Every occurrence of a phrase in an answer."""
    from probe.text import find_phrase

    count = len(find_phrase(record.text, phrase))
    if count > 1:
        return [(phrase, index) for index in range(count)]
    record[phrase]  # says which phrases there are, if this one is not there
    return [phrase]


def _first_words(record: Any, most: int = 6) -> list[Any]:
    """The first different words of an answer, each by its first occurrence."""
    import re

    from probe.text import find_phrase

    words = dict.fromkeys(re.findall(r"[^\W\d_]{2,}", record.text))
    return [(word, 0) for word in words if find_phrase(record.text, word)][:most]
