"""``probe emergence``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.commands.arguments import kind_note, read_examples, whole_numbers
from probe.errors import InputError
from probe.reports import Report, make_table, output_folder, progress, show_interval, tracked, write_json
from probe.writing import write_beside

if TYPE_CHECKING:
    from probe.analysis.profiles import Profile
    from probe.training_curves import TrainingCurve

__all__ = ["emergence"]

#: Examples that are read where no limit is given: five checkpoints of 200 scenes take under a minute on two cores.
LIMIT = 200

#: What the table of a training shows beside the floor that has to be beaten; the best head is read from one half of the examples.
_SCORES, _BEST = ("caption_loss", "minus_mean", "floor"), "best_head_held_out"


def emergence(
    *,
    over: Literal["layer", "timestep", "token", "training"] = "training",
    model: str = "lab/llava",
    checkpoints: str | None = None,
    data: str = "lab",
    prompt: str = "Describe the image.",
    limit: int = LIMIT,
    metric: str = "pointing",
    timestep: Sequence[str] = (),
    out: str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Show how grounding emerges: over layers, over the words around a phrase, or over training, with intervals and floors.

    Parameters
    ----------
    over
        "training" scores every checkpoint beside its caption loss; "layer", "token" and "timestep" look into one model.
    model
        "lab/llava" (or, but for training, "lab/clip" or "lab/diffusion"), a hub name or a local folder; over training, one that
        holds snapshots unless --checkpoints is given.
    checkpoints
        A glob of checkpoint folders of one training, in quotes, such as "runs/mine/checkpoint-*".
    data
        "lab" (unseen scenes; also lab:unseen, lab:plain, lab:occlusion, lab:relations, lab:clutter), or a folder in a
        published format, with the format and the split before it where they are not plain: coco, instances, panoptic, captions,
        grandf, refcoco, png, folder, as in refcoco/testA:FOLDER.
    prompt
        What the captions answer.
    limit
        At most this many examples.
    metric
        "pointing", "auroc", "lift" or "energy".
    timestep
        For a diffusion model: how much noise is put on the image; 100 by default. Over timesteps, several.
    out
        Folder for emergence.parquet, emergence.json with the exact settings, and the picture as PDF and PNG.
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
    from probe.runs import profile_examples

    if checkpoints is not None and over != "training":
        raise InputError(
            f"--checkpoints are of a training, but --over {over} looks into one model; give --model its folder."
        )
    if timestep and over == "training":
        raise InputError("--timestep is of a diffusion model; give --over layer or --over timestep with it.")
    target = None if out is None else output_folder(out)
    find_metric(metric)
    timesteps = whole_numbers("--timestep", timestep)
    examples, total = read_examples(data, limit=limit, seed=seed)
    if over == "training":
        curve = _over_training(model, checkpoints, list(examples), settings)
        return _finish(curve, _training_data(curve) | {"settings": settings}, _training_parts(curve), target)
    subject = probe.load_model(model, dtype=dtype, device=device)
    followed = tracked(examples, what="scoring", total=total)
    found = profile_examples(subject, followed, over=over, prompt=prompt, metric=metric, timesteps=timesteps, seed=seed)
    parts = [*_profile_tables(found), *kind_note(subject, "contribution")]
    return _finish(found, _profile_data(found) | {"settings": settings}, parts, target)


def _over_training(model: str, pattern: str | None, examples: list[Any], settings: dict[str, Any]) -> TrainingCurve:
    from probe.checkpoints import find_checkpoints, lab_checkpoints
    from probe.evaluation.lab import reword_scene
    from probe.training_curves import emergence as measured

    where = {name: settings[name] for name in ("dtype", "device")}
    if pattern is not None:
        found = find_checkpoints(pattern, **where)
    elif model.startswith("lab/") or Path(model).is_dir():
        found = lab_checkpoints(model, **where)
    else:
        raise InputError(
            f"{model!r} brings no checkpoints of its training; give --checkpoints a glob such as 'runs/mine/checkpoint-*', or "
            "look into the model itself with --over layer."
        )
    options: dict[str, Any] = {name: settings[name] for name in ("prompt", "metric", "seed")}
    reword = reword_scene if settings["data"].startswith("lab") else None
    with progress("checkpoints", len(found)) as advance:
        return measured(found, examples, reword=reword, on_checkpoint=advance, **options)


def _finish(found: Any, data: dict[str, Any], parts: list[Any], target: Path | None) -> Report:
    """The report; into the folder, if there is one, go table, numbers and picture."""
    if target is not None:
        from probe.plots import emergence as draw
        from probe.plots import save_figure

        frame = found.to_frame()
        write_beside(target / "emergence.parquet", lambda path: frame.to_parquet(path, index=False))
        figure = draw(frame).get_figure(root=True)
        assert figure is not None  # for the type checker: these Axes were just made
        data["figures"] = [str(path) for path in save_figure(figure, target / "emergence")]
        write_json(target / "emergence.json", data)
        parts += [f"picture      {one}" for one in data["figures"]]
    return Report(data, parts)


def _training_data(curve: TrainingCurve) -> dict[str, Any]:
    """For each step, every measured name with value, low and high; when each curve rises or falls; and what comes first."""
    from probe.measurements import MEASURED

    steps = []
    for step, one in zip(curve.steps, curve.measurements, strict=True):
        row: dict[str, Any] = {"step": step}
        for name, interval in one.intervals.items():
            row[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
        steps.append(row | {"best_head": one.best_head, "beats_floor": one.grounds})
    first = curve.measurements[0]
    return {
        "over": "training",
        "metric": curve.metric,
        "images": first.images,
        "phrases": first.phrases,
        "names": dict(MEASURED),
        "steps": steps,
        "beats_floor_from": curve.beats_floor_from,
        "order": curve.order_rows() if len(curve.steps) > 1 else [],
    }


def _training_parts(curve: TrainingCurve) -> list[Any]:
    from probe.analysis.concentration import PEAKS

    first = curve.measurements[0]
    title = f"{curve.metric} over training: {first.images} images, {first.phrases} phrases, 95 % intervals by bootstrap over images"
    table = make_table(title, "step", *map(_words, _SCORES), "beats floor")
    beside = make_table("where the minus_mean map peaks, and the best head", "step", *map(_words, [*PEAKS, _BEST]))
    for step, one in zip(curve.steps, curve.measurements, strict=True):
        row = {
            f"{name}{end}": bound
            for name, x in one.intervals.items()
            for end, bound in (("", x.value), ("_low", x.low), ("_high", x.high))
        }
        table.add_row(str(step), *(show_interval(row, name) for name in _SCORES), "yes" if one.grounds else "no")
        beside.add_row(str(step), *(show_interval(row, name) for name in (*PEAKS, _BEST)))
    since = curve.beats_floor_from
    lines = ["floor        other phrase's map + what a change of words alone does; " + (
        "the last checkpoint does not beat it" if since is None else f"beaten from step {since} on"
    )]  # fmt: skip
    if len(curve.steps) > 1:
        lines += [_order_line(row) for row in curve.order_rows() if row["score"] == "minus_mean"]
        lines.append(
            "             between checkpoints curves are taken as straight; intervals are over images, of one training"
        )
    return [table, beside, *lines]


def _order_line(row: dict[str, Any]) -> str:
    loss = row["loss"].replace("_", " ")
    if row["order"] == "unknown":
        return (
            f"order        not known: the change of grounding or of the {loss} from the first to the last checkpoint is within its "
            "interval; more images may tell"
        )
    gone = f"{row['share']:.0%} of its way at step {row['score_step']:.0f}, the {loss} at {row['loss_step']:.0f}"
    lag = f"{row['lag']:.0f} [{row['lag_low']:.0f}, {row['lag_high']:.0f}] steps later"
    return f"order        grounding {row['order']} the {loss}: {gone}, {lag}"


def _profile_data(found: Profile) -> dict[str, Any]:
    return {
        "over": found.over,
        "metric": found.metric,
        "images": found.images,
        "phrases": found.phrases,
        "left_out": found.left_out,
        "chance": found.chance.value,
        "positions": found.to_frame().to_dict("records"),
    }


def _profile_tables(found: Profile) -> list[Any]:
    """Scores with their floor, and where the maps peak."""
    from probe.analysis.concentration import PEAKS

    title = (
        f"{found.metric} over {found.over}s: {found.images} images, {found.phrases} phrases, chance {found.chance.value:.3f}, "
        "95 % intervals by bootstrap over images"
    )
    table = make_table(title, "position", found.metric, "floor", "margin", "beats floor")
    beside = make_table("where these maps peak", "position", *map(_words, PEAKS))
    for one in found.to_frame().to_dict("records"):
        row: dict[str, Any] = {str(key): value for key, value in one.items()}
        row |= {"value_low": row["low"], "value_high": row["high"]}
        cells = [show_interval(row, name) for name in ("value", "floor", "margin")]
        table.add_row(row["label"], *cells, "yes" if row["beats_floor"] else "no")
        beside.add_row(row["label"], *(show_interval(row, name) for name in PEAKS))
    return [table, beside]


def _words(name: str) -> str:
    return name.replace("_", " ")
