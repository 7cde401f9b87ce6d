"""What an evaluation found, in plain numbers, tables and the files that the published scorers read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from probe.evaluation.average_precision import all_numbers
from probe.evaluation.categories import CategoryRule
from probe.evaluation.predictions import Prediction, write_predictions
from probe.evaluation.protocol_files import (
    write_coco_results,
    write_coco_truths,
    write_gcg_predictions,
    write_gcg_truths,
)
from probe.evaluation.tallies import Scores
from probe.evaluation.truths import Truth
from probe.writing import write_beside

__all__ = ["MAIN", "image_rows", "measure_key", "score_numbers", "verdicts", "write_frame", "write_protocol_files"]

#: Protocol -> its measures that a control can question, the first of them the one that images are ordered by.
MAIN = {
    "gcg": ("recall, greedy", "recall, legacy", "mIoU"),
    "pacc": ("PAcc",),
    "res": ("gIoU",),
    "png": ("average recall",),
}
#: What a model reaches that does not look where the words say.
CHANCE = ("shuffled", "other phrase", "centre box", "centre", "uniform")


def measure_key(measure: str) -> str:
    """A measure's name for programs: "recall, legacy" is recall_legacy, "mIoU" miou."""
    return re.sub(r"[^a-z0-9]+", "_", measure.casefold()).strip("_")


def score_numbers(scores: Scores) -> dict[str, Any]:
    """Each measure as {value, low, high}, with "why" where a number is missing; "controls": measure -> control -> the same.

    "Precision@0.5" and its like stand in one dictionary, "precision", by threshold. Controls also have the paired
    difference, the measure minus the control.
    """
    found: dict[str, Any] = {}
    controls: dict[str, dict[str, Any]] = {}
    for _, row in scores.summary.iterrows():
        name, _, threshold = str(row["measure"]).partition("@")
        key, numbers = measure_key(name), {one: float(row[one]) for one in ("value", "low", "high")}
        if row["control"]:
            numbers |= {one: float(row[one]) for one in ("difference", "difference_low", "difference_high")}
            controls.setdefault(measure_key(str(row["measure"])), {})[str(row["control"])] = numbers
            continue
        held = found.setdefault(key, {}) if threshold else found
        held[threshold or key] = numbers | _why(row)
    for name, reason in scores.unavailable.items():
        found[measure_key(name)] = dict.fromkeys(("value", "low", "high")) | {"why": reason}
    return found | {"controls": controls}


def _why(row: pd.Series) -> dict[str, str]:
    if row["value"] != row["value"]:
        return {"why": "no phrase of the data is of this kind"}
    if row["low"] != row["low"]:
        return {"why": "no interval: one image alone, or no mean over images"}
    return {}


def verdicts(scores: Scores) -> list[str]:
    """A line for each main measure that is not shown to be above chance, with the control that says so."""
    lines = []
    for measure in MAIN[scores.protocol]:
        rows = scores.summary[scores.summary["measure"] == measure].set_index("control").to_dict("index")
        for control in (one for one in CHANCE if one in rows):
            low, high, apart = (float(rows[control][f"difference{end}"]) for end in ("_low", "_high", ""))
            if apart == apart and not low > 0:
                lines.append(
                    f"{measure} is not above chance: {rows['']['value']:.3f}, and {rows[control]['value']:.3f} with {control!r} "
                    f"(difference {apart:+.3f} [{low:+.3f}, {high:+.3f}])"
                )
    return lines


def image_rows(scores: Scores, predictions: Sequence[Prediction], failures: Mapping[str, str]) -> pd.DataFrame:
    """The rows of the images with a column "note": why there is no prediction, or that its text has no phrase."""
    named = {one.name: one for one in predictions}
    notes = []
    for name in scores.images["name"]:
        found = named.get(name)
        silent = "" if found is None or found.phrases else f"no phrase was found in {found.text!r}"
        notes.append(failures.get(name, "") or silent)
    return scores.images.assign(note=notes)


def write_protocol_files(
    out: Path, scores: Scores, truths: Sequence[Truth], predictions: Sequence[Prediction], rule: CategoryRule | None
) -> list[str]:
    """The names of what was written into ``out``: predictions.jsonl, and what the protocol's published scorer reads.

    gcg: predictions/NAME.json, truths-masks.json and truths-captions.json, as GLaMM's scorer reads them. pacc: results.json
    and truths.json, as COCOeval and the paper's point accuracy do. The published scorers of res and png read no files.
    """
    write_predictions(out / "predictions.jsonl", predictions)
    written = ["predictions.jsonl"]
    if scores.protocol == "gcg":
        names = _file_names([one.name for one in truths])
        write_gcg_predictions(out / "predictions", (replace(one, name=names[one.name]) for one in predictions))
        renamed = [replace(one, name=names[one.name]) for one in truths]
        write_gcg_truths(out / "truths-masks.json", out / "truths-captions.json", renamed)
        written += ["predictions", "truths-masks.json", "truths-captions.json"]
    if scores.protocol == "pacc":
        found = sorted({part.category for one in truths for part in one.phrases if part.category})
        ids: dict[str, Any] = {"categories": {name: number for number, name in enumerate(found, start=1)}}
        named = [one.name for one in truths]
        ids["image_ids"] = None if all_numbers(named) else {one: at for at, one in enumerate(named, start=1)}
        write_coco_truths(out / "truths.json", truths, **ids)
        write_coco_results(out / "results.json", truths, predictions, rule=rule, **ids)
        written += ["results.json", "truths.json"]
    return written


def _file_names(names: Sequence[str]) -> dict[str, str]:
    """Each name as that of a file anywhere, no two alike."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        wanted = re.sub(r'[\x00-\x1f\\/:*?"<>|]+', "-", name) or "-"
        while wanted in taken:
            wanted += "-"
        taken.add(wanted)
        found[name] = wanted
    return found


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Nothing; the file then holds the table as parquet."""
    frame = frame.copy()
    frame.attrs.clear()
    write_beside(path, lambda beside: frame.to_parquet(beside, index=False))
