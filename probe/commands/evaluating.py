"""``probe evaluate gcg``, ``pacc``, ``res`` and ``png``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe.commands.arguments import Words, lab_note
from probe.protocols.plans import EvaluationPlan, Protocol, Shard
from probe.reports import Report, make_table, output_folder, show_interval, tracked, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from probe.evaluation.tallies import Scores
    from probe.protocols.evaluation import Evaluated, Incomplete
    from probe.protocols.plans import ReadOut

__all__ = ["evaluate_gcg", "evaluate_pacc", "evaluate_png", "evaluate_res"]

#: Measures that stand in the table of varied read-outs.
SHOWN = {
    "gcg": ("recall, legacy", "recall, greedy", "recall, optimal", "mIoU", "AP50"),
    "pacc": ("PAcc", "PAcc, silence a miss", "AP50"),
    "res": ("gIoU", "cIoU", "Precision@0.5"),
    "png": ("average recall", "average recall, things", "average recall, stuff"),
}


def evaluate_gcg(
    plan: EvaluationPlan,
    *,
    vary: Words = (),
    chunker: str = "auto",
    similarity: str = "words",
    out: str = "probe-gcg",
) -> Report:
    """Grounded conversation generation: the model describes the picture, and each noun phrase gets a mask.

    Recall by three matchings, mIoU, AP, METEOR and CIDEr, with intervals over pictures and controls. A run that was stopped goes on
    where it was; another combination, reduction, point or refiner never runs the model again.

    Parameters
    ----------
    vary
        Tabulates read-outs, as in --vary combine=mean,first,max refiner=threshold,superpixels: every combination of combine,
        reduction, point and refiner from one pass of the model.
    chunker
        Who finds noun phrases: textblob, spacy:en_core_web_lg as in the paper, or auto, spaCy where a model of it is installed.
    similarity
        How alike words are: words (those shared), exact, bert as published (bert-base-uncased), or bert: and a folder.
    out
        Folder for maps, masks, predictions as GLaMM's scorer reads them, images.parquet, scores.json,
        scores.parquet and index.html.
    """
    return _evaluate(Protocol("gcg", chunker=chunker, similarity=similarity), plan, vary, out)


def evaluate_pacc(
    plan: EvaluationPlan,
    *,
    vary: Words = (),
    chunker: str = "auto",
    category: Literal["named", "similar"] = "named",
    similarity: str = "words",
    out: str = "probe-pacc",
) -> Report:
    """Point accuracy: the model describes the picture, and the points of its phrases must lie in what they name; with COCO's AP.

    Parameters
    ----------
    vary
        Tabulates read-outs, as in --vary combine=mean,first,max refiner=threshold,superpixels: every combination of combine,
        reduction, point and refiner from one pass of the model.
    chunker
        Who finds noun phrases: textblob, spacy:en_core_web_lg as in the paper, or auto, spaCy where a model of it is installed.
    category
        A phrase counts for the category that its last words name, or for the most similar of the picture's, as in the paper's code.
    similarity
        For similar categories, how alike words are: words, exact, bert, or bert: and a folder.
    out
        Folder for maps, masks, predictions as COCO's scorer reads them, images.parquet, scores.json, scores.parquet and index.html.
    """
    return _evaluate(Protocol("pacc", chunker=chunker, category=category, similarity=similarity), plan, vary, out)


def evaluate_res(
    plan: EvaluationPlan,
    *,
    vary: Words = (),
    expressions: Literal["auto", "answer", "expression"] = "auto",
    out: str = "probe-res",
) -> Report:
    """Referring expression segmentation: one mask for each expression, scored by gIoU, cIoU and precision.

    Parameters
    ----------
    vary
        Tabulates read-outs, as in --vary combine=mean,first,max refiner=threshold,superpixels: every combination of combine,
        reduction, point and refiner from one pass of the model.
    expressions
        "answer" asks for a description of the expression and reads the token after its first is, are or be. "expression" lets the
        model read the expression itself and takes the word that its noun phrase hangs on. auto is the second for lab models, which
        can only describe scenes, and else the first.
    out
        Folder for maps, masks, predictions, images.parquet, scores.json, scores.parquet and index.html.
    """
    return _evaluate(Protocol("res", expressions=expressions), plan, vary, out)


def evaluate_png(plan: EvaluationPlan, *, vary: Words = (), out: str = "probe-png") -> Report:
    """Panoptic narrative grounding: the model reads the given caption in one pass, and each of its phrases gets a mask.

    Parameters
    ----------
    vary
        Tabulates read-outs, as in --vary combine=mean,first,max refiner=threshold,superpixels: every combination of combine,
        reduction, point and refiner from one pass of the model.
    out
        Folder for maps, masks, predictions, images.parquet, scores.json, scores.parquet and index.html.
    """
    return _evaluate(Protocol("png"), plan, vary, out)


def _evaluate(protocol: Protocol, plan: EvaluationPlan, vary: Words, out: str) -> Report:
    from probe.protocols.evaluation import Incomplete, evaluate

    target = output_folder(out)

    def follow(examples: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:
        return tracked(examples, what=what, total=total)

    found = evaluate(protocol, plan, target, vary=vary, follow=follow)
    if isinstance(found, Incomplete):
        return _incomplete(found, plan)
    return _varied(protocol, found, plan, target) if vary else _single(protocol, found, plan, target)


def _incomplete(found: Incomplete, plan: EvaluationPlan) -> Report:
    """What is still missing, where shards are made one by one."""
    shard = Shard.of(plan.shard)
    data = {"scored": False, "missing": found.missing, "maps": found.total, "shard": f"{shard.number}/{shard.count}"}
    return Report(
        data,
        [
            f"shard {data['shard']}    its maps are there; {found.missing} of {found.total} are missing, the first {found.first}",
            f"             run the other shards with the same --out: the last of them scores ({shard.count} in all)",
        ],
    )


def _single(protocol: Protocol, found: Evaluated, plan: EvaluationPlan, target: Path) -> Report:
    from probe.protocols.pages import write_page
    from probe.protocols.results import image_rows, score_numbers, verdicts, write_frame, write_protocol_files

    [(read, scores)] = found.scores.items()
    predictions = found.predicted.predictions[read]
    rows = image_rows(scores, predictions, found.predicted.failures)
    warnings = verdicts(scores)
    data = score_numbers(scores) | {
        "protocol": protocol.name,
        "images": int(scores.summary["images"].max()),
        "examples": len(rows),
        "failed": found.predicted.failures,
        "notes": [*scores.notes, *warnings],
        "settings": found.settings,
    }
    written = write_protocol_files(target, scores, found.predicted.truths, predictions, found.rule)
    write_frame(target / "images.parquet", rows)
    write_frame(target / "scores.parquet", scores.summary)
    write_page(target / "index.html", found, plan, rows)
    write_json(target / "scores.json", data)  # last: where it is, all else is
    notes = [f"note         {one}" for one in data["notes"]]
    listed = [*written, "images.parquet", "scores.parquet", "scores.json", "index.html"]
    return Report(
        data,
        [
            _table(scores, len(rows), read),
            *notes,
            f"written      {target}: {', '.join(listed)}",
            *lab_note(plan.model, plan.data),
        ],
    )


def _table(scores: Scores, examples: int, read: ReadOut) -> Table:
    images = int(scores.summary["images"].max())
    title = (
        f"{scores.protocol}: {examples} examples of {images} images; {read.refiner}, {read.reduction}, {read.combine} over tokens, "
        f"{read.point} point; 95 % intervals by bootstrap over images"
    )
    table = make_table(title, "", "value", "low", "high", "paired difference to it")
    for _, row in scores.summary.iterrows():
        name = f"  {row['control']}" if row["control"] else str(row["measure"])
        apart = {"d": row["difference"], "d_low": row["difference_low"], "d_high": row["difference_high"]}
        table.add_row(name, *(_number(row[one]) for one in ("value", "low", "high")), show_interval(apart, "d"))
    return table


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _varied(protocol: Protocol, found: Evaluated, plan: EvaluationPlan, target: Path) -> Report:
    from dataclasses import asdict

    import pandas as pd

    from probe.protocols.results import score_numbers, verdicts, write_frame

    frames, data, notes = [], [], []
    shown = SHOWN[protocol.name]
    table = make_table("read-outs of the same maps, with 95 % intervals over images", *ways(found), *shown)
    for read, scores in found.scores.items():
        options = asdict(read)
        frames.append(scores.summary.assign(**options))
        data.append(options | score_numbers(scores))
        rows = scores.summary[scores.summary["control"] == ""].set_index("measure")
        cells = [
            {"n": row["value"], "n_low": row["low"], "n_high": row["high"]}
            for _, row in rows.loc[list(shown)].iterrows()
        ]
        table.add_row(*(options[one] for one in ways(found)), *(show_interval(one, "n") for one in cells))
        notes += [f"note         {', '.join(options[one] for one in ways(found))}: {one}" for one in verdicts(scores)]
    first = next(iter(found.scores.values()))
    said = [*first.notes, *_without_effect(found)]
    result = {
        "protocol": protocol.name,
        "read_outs": data,
        "examples": len(first.images),
        "failed": found.predicted.failures,
        "notes": said,
        "settings": found.settings,
    }
    write_frame(target / "read-outs.parquet", pd.concat(frames, ignore_index=True))
    write_json(target / "read-outs.json", result)
    written = f"written      {target}: read-outs.parquet, read-outs.json"
    return Report(result, [table, *notes, *(f"note         {one}" for one in said), written])


def _without_effect(found: Evaluated) -> list[str]:
    """The options that change no score, so that equal rows are not taken for a fault."""
    from dataclasses import replace

    notes = []
    for name in ways(found) if len(found.scores) > 1 else ():
        first = getattr(next(iter(found.scores)), name)
        if all(
            one.summary.equals(found.scores[replace(read, **{name: first})].summary)
            for read, one in found.scores.items()
        ):
            why = ": a phrase is read at its head noun, whose tokens are what is combined" if name == "combine" else ""
            notes.append(f"{name} changes no score here{why}")
    return notes


def ways(found: Evaluated) -> list[str]:
    """The options in which the read-outs differ; the refiner where they do not."""
    from dataclasses import fields

    from probe.protocols.plans import ReadOut

    names = [one.name for one in fields(ReadOut)]
    return [one for one in names if len({getattr(read, one) for read in found.scores}) > 1] or ["refiner"]
