"""One page of an evaluation, whole in its file: scores with controls, and the worst, median and best images with their outlines."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from pycocotools import mask as coco_mask

from probe.errors import ProbeError
from probe.evaluation.predictions import Prediction
from probe.evaluation.run_lengths import RunLengths, ious
from probe.evaluation.tallies import Scores
from probe.evaluation.truths import Truth
from probe.images import read_image
from probe.outlines import outline_path
from probe.protocols.evaluation import Evaluated, reread
from probe.protocols.plans import EvaluationPlan
from probe.writing import write_beside

__all__ = ["chosen_images", "write_page"]

#: Images of each kind that are shown, and the pixels of the longer side that they are reduced to in the file.
SHOWN, LONGEST = 3, 640
#: Column of the images' rows that they are ordered by, as a share from 0 to 1.
ORDER = {"gcg": "miou", "pacc": "share", "res": "iou", "png": "iou"}
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def write_page(path: Path, found: Evaluated, plan: EvaluationPlan, rows: pd.DataFrame) -> None:
    """Nothing; the file then is a page that opens anywhere: no script, nothing loaded from elsewhere, every text escaped.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    [(read, scores)] = found.scores.items()
    predictions = {one.name: one for one in found.predicted.predictions[read]}
    chosen = chosen_images(rows, ORDER[scores.protocol])
    examples = reread(plan, [place for _, place, _ in chosen])
    cards: dict[str, list[str]] = {}
    for kind, place, value in chosen:
        truth = found.predicted.truths[place]
        note = str(rows["note"].iloc[place])
        cards.setdefault(kind, []).append(_card(truth, predictions.get(truth.name), examples[place].image, value, note))
    sections = "".join(
        f"<h2>{escape(kind.capitalize())}</h2><div class='cards'>{''.join(some)}</div>" for kind, some in cards.items()
    )
    title = f"{scores.protocol}: {plan.model} on {plan.data}"
    style = (files("probe.protocols") / "page.css").read_text(encoding="utf-8")
    text = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<p class='about'>{escape(_about(scores, rows, read.refiner))}</p>{_table(scores)}{_notes(scores, found)}{sections}"
        f"<details><summary>Configuration</summary><pre>{escape(json.dumps(found.settings, indent=2))}</pre></details>"
        "</main></body></html>\n"
    )
    write_beside(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def chosen_images(rows: pd.DataFrame, order: str) -> list[tuple[str, int, float]]:
    """("worst", "median" or "best", place in the rows, score) of the images to show; none twice, none without a score."""
    counted = rows["hits"] / rows["counted"].where(rows["counted"] > 0) if order == "share" else rows[order]
    scores = counted.astype(float)
    # Of equals those with more to find come last among the best and first among the worst.
    known = rows.assign(score=scores)[scores.notna() & (rows["truths"] > 0)]
    ordered = [int(one) for one in known.sort_values(["score", "truths"], kind="stable").index]
    middle = max(len(ordered) // 2 - SHOWN // 2, 0)
    parts = {"worst": ordered[:SHOWN], "median": ordered[middle : middle + SHOWN], "best": ordered[::-1][:SHOWN]}
    found: list[tuple[str, int, float]] = []
    for kind, places in parts.items():
        taken = {place for _, place, _ in found}
        found += [(kind, place, float(scores.iloc[place])) for place in places if place not in taken]
    return found


def _about(scores: Scores, rows: pd.DataFrame, refiner: str) -> str:
    images = int(scores.summary["images"].max())
    settings = "; ".join(f"{name}: {value}" for name, value in scores.settings.items())
    about = f"{len(rows)} examples of {images} images, masks by {refiner}. Brackets are 95 % intervals by bootstrap over images."
    return f"{about} {settings}." if settings else about


def _table(scores: Scores) -> str:
    """Measures down, controls across."""
    controls = [one for one in dict.fromkeys(scores.summary["control"]) if one]
    cells = {(row["measure"], row["control"]): row for _, row in scores.summary.iterrows()}
    head = "".join(f"<th>{escape(one)}</th>" for one in ("", "value", *controls))
    lines = []
    for measure in dict.fromkeys(scores.summary["measure"]):
        found = [cells.get((measure, control)) for control in ("", *controls)]
        lines.append(f"<tr><th>{escape(measure)}</th>{''.join(map(_cell, found))}</tr>")
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _cell(row: Any) -> str:
    if row is None or row["value"] != row["value"]:
        return "<td></td>"
    interval = "" if row["low"] != row["low"] else f"<small>[{row['low']:.3f}, {row['high']:.3f}]</small>"
    return f"<td><b>{row['value']:.3f}</b>{interval}</td>"


def _notes(scores: Scores, found: Evaluated) -> str:
    from probe.protocols.results import verdicts

    failed = [f"{name}: {reason}" for name, reason in list(found.predicted.failures.items())[:20]]
    lines = [*verdicts(scores), *scores.notes, *failed]
    return f"<ul class='notes'>{''.join(f'<li>{escape(one)}</li>' for one in lines)}</ul>" if lines else ""


def _card(truth: Truth, prediction: Prediction | None, source: Any, value: float, note: str) -> str:
    """A picture with dashed true and filled predicted outlines, its text, and its phrases with colours and IoU."""
    parts = prediction.phrases if prediction else ()
    height, width = truth.size
    drawn = [_true_path(_outline(one.mask)) for one in truth.phrases]
    labels = []
    for number, one in enumerate(parts):
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(
            f"<path d='{_outline(one.mask)}' fill='{colour}' fill-opacity='0.25' stroke='{colour}' {_width(2)}/>"
        )
        if one.point is not None:
            row, col = one.point
            place = f"cx='{col + 0.5}' cy='{row + 0.5}' r='{max(height, width) / 90:.2f}'"
            drawn.append(f"<circle {place} fill='{colour}' stroke='#fff' {_width(1.5)}/>")
        best = ious([one.mask], [true.mask for true in truth.phrases])
        shown = f"IoU {best.max():.2f}" if best.size else ""
        labels.append(f"<li><i style='background:{colour}'></i>{escape(one.text)} <small>{shown}</small></li>")
    said = prediction.text if prediction else ""
    true = "; ".join(one.text for one in truth.phrases)
    return (
        f"<article><svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(truth.name, quote=True)}'>"
        f"{_picture(source, truth.size)}{''.join(drawn)}</svg><div class='text'>"
        f"<h3>{escape(truth.name)} <small>{value:.2f}</small></h3><p>{escape(said)}</p><ul>{''.join(labels)}</ul>"
        f"<p class='true'>true: {escape(true)}</p>{f'<p class=note>{escape(note)}</p>' if note else ''}</div></article>"
    )


def _true_path(outline: str) -> str:
    """A true outline: white dashes on a dark line, to be seen on any picture."""
    return (
        f"<path d='{outline}' fill='none' stroke='#000' stroke-opacity='0.6' {_width(3)}/>"
        f"<path d='{outline}' fill='none' stroke='#fff' stroke-dasharray='5 4' {_width(1.6)}/>"
    )


def _width(pixels: float) -> str:
    """A line of that many pixels of the screen, whatever the picture is scaled to."""
    return f"stroke-width='{pixels}' vector-effect='non-scaling-stroke' fill-rule='evenodd'"


def _picture(source: Any, size: tuple[int, int]) -> str:
    """The picture in the page itself; nothing where it cannot be read, which its note says."""
    try:
        picture = read_image(source)
    except ProbeError:
        return ""
    picture.thumbnail((LONGEST, LONGEST))
    data = io.BytesIO()
    small = max(size) <= 128  # drawn scenes: every pixel matters
    picture.convert("RGB").save(data, format="PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    sharp = " class='sharp'" if small else ""
    return f"<image{sharp} width='{size[1]}' height='{size[0]}' href='data:image/{kind};base64,{encoded}'/>"


def _outline(mask: RunLengths) -> str:
    return outline_path(coco_mask.decode(mask))
