"""``probe compare``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from probe.commands.arguments import at_least, lab_note, read_examples, whole_numbers
from probe.commands.series import TIMESTEPS, read_series, series_data, series_tables
from probe.errors import InputError
from probe.reports import Report, make_table, output_folder, show_interval, tracked, write_json
from probe.writing import write_beside

if TYPE_CHECKING:
    from rich.table import Table

    from probe.analysis.agreement import Agreement
    from probe.analysis.differences import Comparison, SystemScores
    from probe.analysis.stats import Interval
    from probe.seeds import SeedComparison

__all__ = ["compare", "comparison_data", "comparison_tables", "seed_tables"]

DEFAULT_PROMPT = "Describe the image."
#: Controls shown to people; programs get all.
SHOWN = ("chance", "other_phrase", "floor", "oracle_patch")


def compare(
    models: list[str],
    *,
    data: str = "lab",
    metric: Sequence[str] = (),
    limit: int | None = None,
    prompt: str = DEFAULT_PROMPT,
    timestep: Sequence[str] = (),
    over: Literal["timestep", "draw", "training"] | None = None,
    draws: int = 8,
    out: str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
) -> Report:
    """Compare models on the same images and phrases: readings, controls, and paired differences with corrected p-values.

    Parameters
    ----------
    models
        Two or more of "lab/llava", "lab/clip", "lab/diffusion", hub names and local folders.
    data
        "lab" (unseen scenes; also lab:unseen, lab:plain, lab:occlusion, lab:relations, lab:clutter), or a folder in a
        published format, with the format and the split before it where they are not plain: coco, instances, panoptic, captions,
        grandf, refcoco, png, folder, as in refcoco/testA:FOLDER.
    metric
        "pointing", "auroc", "lift" or "energy"; by default the first three.
    limit
        At most this many examples; 500 for lab scenes, all of a folder.
    prompt
        What the captions answer, for language models.
    timestep
        For diffusion models: how much noise is put on the image; 100 by default. Of several the mean is read, but over timesteps
        each by itself.
    over
        Compare along an axis, too: over timesteps (1, 100, 200, 300, 500, 700 and 900 by default), over draws of the noise, or over
        the training of lab models that describe scenes.
    draws
        How many draws of the noise --over draw reads.
    out
        Folder for comparison.json with the exact settings, comparison.parquet, heads.parquet with every layer and head, and
        series.parquet with --over.
    seed
        For which lab scenes, for noise, bootstrap and sign flips.
    dtype
        Number type of the models, such as "float32" or "bfloat16"; "auto" takes each checkpoint's own.
    device
        Such as "cuda" or "cpu"; by default a GPU if there is one.
    """
    settings = dict(locals())
    import probe
    from probe.analysis.metrics import find_metric
    from probe.comparing import compare_examples, require_several
    from probe.evaluation.lab import reword_scene
    from probe.evaluation.sources import is_lab
    from probe.seeds import compare_seeds

    require_several(models)
    target = None if out is None else output_folder(out)
    metrics = list(metric) or ["pointing", "auroc", "lift"]
    for one in metrics:
        find_metric(one)
    timesteps = whole_numbers("--timestep", timestep)
    at_least("--draws", draws, 2)
    examples, total = read_examples(data, limit=limit, seed=seed)
    subjects = [probe.load_model(one, dtype=dtype, device=device) for one in models]
    if timesteps is not None and not any(one.family.kind == "diffusion" for one in subjects):
        raise InputError("--timestep is of diffusion models, and none of these is one; leave it out.")
    options: dict[str, Any] = {
        "reword": reword_scene if is_lab(data) else None, "metric": metrics, "prompt": prompt, "seed": seed
    }  # fmt: skip
    series = None
    if over is not None:
        # First, so that what cannot be read along the axis is said before minutes of work.
        examples = list(examples)
        values = (timesteps or TIMESTEPS) if over == "timestep" else tuple(range(draws))
        series = read_series(models, subjects, examples, over=over, values=values, options=options)
    once = None if over == "timestep" else timesteps
    tracked_examples = tracked(examples, what="comparing", total=total)
    found = compare_examples(subjects, tracked_examples, timesteps=once, **options)
    used: dict[str, Any] = {"metric": metrics, "limit": total, "timestep": timesteps, "groundprobe": probe.__version__}
    comparable = data == "lab" and seed == 0 and timesteps is None and prompt == DEFAULT_PROMPT and dtype == "auto"
    seeds, agreed = compare_seeds(found, models, comparable=comparable)
    result = comparison_data(found, seeds, agreed) | {"settings": settings | used}
    along = [] if series is None else series_tables(series)
    if series is not None:
        result["series"] = series_data(series)
    written = [] if target is None else _write(target, found, result, series)
    notes = sorted({line for one in models for line in lab_note(one, data)})
    return Report(result, [*comparison_tables(found), *seed_tables(seeds, agreed), *along, *written, *notes])


def comparison_data(found: Comparison, seeds: Sequence[SeedComparison], agreed: Sequence[Agreement]) -> dict[str, Any]:
    """The comparison in plain types: systems by name, paired differences, what was refused, and what other seeds say."""
    return {
        "images": found.images,
        "phrases": found.phrases,
        "grids": found.grids,
        "left_out": found.left_out,
        "systems": {name: _system(one) for name, one in found.systems.items()},
        "paired": [
            {"metric": one.metric, "first": one.first, "second": one.second}
            | _bounds(one.difference)
            | {"p_value": one.p_value, "p_holm": one.p_holm, "note": one.note}
            for one in found.paired
        ],
        "refused": [vars(one) for one in found.refused],
        "seeds": [one.to_dict() for one in seeds],
        "agreement": [
            {name: value for name, value in vars(one).items() if name != "trainings"}
            | {
                "trainings": list(one.trainings),
                "same_sign": one.same_sign,
                "claims": one.claims,
                "verdict": one.verdict,
            }
            for one in agreed
        ],
    }


def _system(one: SystemScores) -> dict[str, Any]:
    return {
        "reading": one.reading,
        **{metric: _bounds(interval) for metric, interval in one.scores.items()},
        "own_grid": {metric: _bounds(one.native(metric)) for metric in one.scores} | {"grids": one.grids},
        "best_head_held_out": {
            metric: {key: value for key, value in one.best_head(metric).items() if key != "name"}
            for metric in one.scores
        },
        "controls": {
            metric: {name: _bounds(interval) for name, interval in rows.items()}
            for metric, rows in one.controls.items()
        },
    }


def _bounds(interval: Interval) -> dict[str, Any]:
    return dict(vars(interval))  # value, low, high, images, phrases


def comparison_tables(found: Comparison) -> list[Any]:
    """Tables for people: what is read of each system, its numbers under each metric, and the paired differences."""
    readings = make_table("what is read of each system", "system", "reading", "own grid")
    for name, one in found.systems.items():
        readings.add_row(name, one.reading, ", ".join(f"{rows} x {cols}" for rows, cols in one.grids))
    tables: list[Any] = [readings, *(_metric_table(found, metric) for metric in found.metrics), _pair_table(found)]
    tables += [f"refused      {one.metric} of {one.first} and {one.second}: {one.reason}" for one in found.refused]
    notes = sorted({(one.metric, one.first, one.second, one.note) for one in found.paired if one.note})
    tables += [f"note         {first} and {second}: {note}" for _, first, second, note in notes]
    return [*tables, *(f"left out     {count} - {reason}" for reason, count in found.left_out.items())]


def _metric_table(found: Comparison, metric: str) -> Table:
    shared = ", ".join(f"{rows} x {cols}" for rows, cols in found.grids)
    given = f"{found.images} images, {found.phrases} phrases, common grid {shared}"
    title = f"{metric}: {given}, 95 % intervals by bootstrap over images"
    table = make_table(
        title, "system", "reading", "on own grid", "best head held out", *(name.replace("_", " ") for name in SHOWN)
    )
    for name, one in found.systems.items():
        best = one.best_head(metric)
        place = "" if best["head"] is None else f" ({best['layer']}.{best['head']})"
        beside = (show_interval({"v": value.value, "v_low": value.low, "v_high": value.high}, "v").split(" ")[0]
                  for value in (one.controls[metric][row] for row in SHOWN))  # fmt: skip
        table.add_row(name, *(_shown(_bounds(two)) for two in (one.scores[metric], one.native(metric))),
                      _shown(best) + place, *beside)  # fmt: skip
    return table


def _pair_table(found: Comparison) -> Table:
    title = f"paired differences on the same phrases, sign-flip p-values, Holm-corrected over {len(found.paired)} tests"
    table = make_table(title, "metric", "first - second", "difference", "p", "p (Holm)")
    for one in found.paired:
        p_values = (f"{p:.4f}" if p == p else "-" for p in (one.p_value, one.p_holm))
        table.add_row(one.metric, f"{one.first} - {one.second}", _shown(_bounds(one.difference)), *p_values)
    return table


def seed_tables(seeds: Sequence[SeedComparison], agreed: Sequence[Agreement]) -> list[Any]:
    """What other trainings say, for people: each system's reading from each seed, and on which differences the seeds agree."""
    if len(seeds) < 2:
        return ["note         one training of each system: these numbers are about these models, not about their kinds"]
    metrics = list(dict.fromkeys(one.metric for one in agreed))
    table = make_table("trainings by seed", "seed", "source", "system", *metrics)
    for one in seeds:
        for name, system in one.to_dict()["systems"].items():
            table.add_row(str(one.seed), one.source, name, *(_shown(system[metric]) for metric in metrics))
    title = "differences over trainings, 95 % intervals by Student's t over seeds"
    over = make_table(title, "metric", "first - second", "mean", "what the trainings support")
    for two in agreed:
        over.add_row(two.metric, f"{two.first} - {two.second}", _shown(vars(two) | {"value": two.mean}), two.verdict)
    return [table, over]


def _shown(one: dict[str, Any]) -> str:
    return show_interval({"value": one["value"], "value_low": one["low"], "value_high": one["high"]}, "value")


def _write(target: Any, found: Comparison, result: dict[str, Any], series: Any) -> list[str]:
    """The lines that say what was written."""
    import pandas as pd

    each = [one.heads.to_frame().assign(system=name) for name, one in found.systems.items()]
    for one in each:
        one.attrs.clear()  # they differ from system to system, and the table says what is read of each
    tables = {"comparison.parquet": found.to_frame(), "heads.parquet": pd.concat(each, ignore_index=True)}
    if series is not None:
        tables["series.parquet"] = series
    for name, frame in tables.items():
        write_beside(target / name, lambda path, frame=frame: frame.to_parquet(path, index=False))  # type: ignore[misc]
    write_json(target / "comparison.json", result)
    return [f"table        {target / name}" for name in (*tables, "comparison.json")]
