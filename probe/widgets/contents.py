"""What a view is told about records before it draws any map: words, phrases, layers, grids, colours and what is shown."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from probe.analysis.grids import common_grid
from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.grounding.phrases import noun_phrases
from probe.grounding.words import split_words
from probe.images import recorded_image
from probe.layout import PatchGrid
from probe.outlines import outline_path
from probe.widgets.scores import COLUMNS, SHOWN_METRICS, PhraseScores
from probe.widgets.sheets import averaged_tokens, of_view, readings_of, timesteps_of, view_names

__all__ = ["VERSION", "Shown", "contents_of", "first_tokens", "gather", "picture_number"]

#: Of the form of the contents; the module in the browser says so if it does not know it.
VERSION = 1
#: Longest side in pixels of the photograph in the view.
LONGEST = 1024
#: More words, or tokens beside the words, than this are not put on the screen; they can be chosen from Python.
MOST_WORDS, MOST_TOKENS = 3000, 200


@dataclass(frozen=True, eq=False)
class Shown:
    """What one view shows: records of one image, their names, the pictures of the prompt, and for each record its phrases with
    masks."""

    records: tuple[AttentionRecord, ...]
    labels: tuple[str, ...]
    pictures: tuple[Image, ...]
    scores: tuple[PhraseScores | None, ...]


def gather(given: Any, *, image: Any = None, masks: Any = None, labels: Sequence[str] | None = None) -> Shown:
    """What is to be shown, all of it checked.

    Parameters
    ----------
    given : a record, a ``Run``, or several of them, all of one image.
    image : the image that was recorded, or a list of them where the prompt had several; by default that of the first ``Run``.
    masks : phrase -> (height, width) mask, as for ``score_heads``; a phrase that one of several records does not say is left out
        there.
    labels : a name for each record; by default the model's.

    Raises
    ------
    InputError
        If something is no record, images differ in size, a mask or the image is of another size, or a phrase is said in none.
    """
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    records = tuple(getattr(one, "record", one) for one in several)
    if not records:
        raise InputError("No record was given; give a record, a Run, or a list of them.")
    for number, one in enumerate(records):
        if not isinstance(one, AttentionRecord):
            raise InputError(
                f"Record {number} is a {type(one).__name__}, not an AttentionRecord; give what probe.run, probe.record or "
                "probe.load made."
            )
        if one.image_size != records[0].image_size:
            raise InputError(
                f"Record {number} is of an image of {_size(one)} and record 0 of one of {_size(records[0])} (height x width); one "
                "view shows records of one image."
            )
    if image is None:
        image = next((one.image for one in several if getattr(one, "image", None) is not None), None)
    names = [one.source.model for one in records] if labels is None else list(labels)
    if len(names) != len(records):
        raise InputError(f"{len(records)} records need as many labels, found {len(names)}.")
    images = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    pictures = tuple(recorded_image(one, _size_of(records, number)) for number, one in enumerate(images))
    return Shown(records, tuple(map(str, names)), pictures, _scores(records, masks))


def picture_number(view: str) -> int | None:
    """Which image of the prompt a view is of: 0 of "image 0" and "thumbnail"; None of a tile, whose place nobody knows."""
    found = re.fullmatch(r"(?:image|thumbnail)(?: (\d+))?", view)
    return int(found[1] or 0) if found else None


def _size_of(records: Sequence[AttentionRecord], number: int) -> tuple[int, int]:
    """(height, width) of that image of the prompt."""
    sizes = {picture_number(one.view): one.grid.image_size for record in records for one in record.layers}
    if number and number not in sizes:
        raise InputError(
            f"Image {number} was given, but the records are of {max(1, len(sizes))} image(s); leave it out."
        )
    return sizes.get(number, records[0].image_size)


def _size(record: AttentionRecord) -> str:
    return " x ".join(map(str, record.image_size))


def _scores(records: Sequence[AttentionRecord], masks: Any) -> tuple[PhraseScores | None, ...]:
    if masks is None:
        return (None,) * len(records)
    if len(records) == 1:
        return (PhraseScores.of(records[0], masks),)
    pairs = list(masks.items() if isinstance(masks, Mapping) else masks)
    found: list[list[Any]] = [[] for _ in records]
    for pair in pairs:
        refused: list[InputError] = []
        for record, mine in zip(records, found, strict=True):
            try:
                PhraseScores.of(record, [pair])
                mine.append(pair)
            except InputError as error:
                refused.append(error)
        if len(refused) == len(records):
            raise refused[0]
    return tuple(PhraseScores.of(one, mine) for one, mine in zip(records, found, strict=True))


def contents_of(shown: Shown) -> dict[str, Any]:
    """The contents in plain JSON types; of data nothing but strings and numbers, which the browser shows as text alone."""
    records = [
        _record(one, label, scores)
        for one, label, scores in zip(shown.records, shown.labels, shown.scores, strict=True)
    ]
    return {
        "version": VERSION,
        "images": list(map(_picture, shown.pictures)),
        "colours": _colours(),
        "metrics": list(SHOWN_METRICS),
        "columns": list(COLUMNS),
        "records": records,
        "start": {"tokens": first_tokens(records[0])},
    }


def first_tokens(record: dict[str, Any]) -> list[int]:
    """Tokens of the first phrase, those with masks before others; else of the first word; else the first."""
    phrases = sorted(record["phrases"], key=lambda one: one["mask"] is None)
    spoken = [*phrases, *(one for one in record["words"] if one["tokens"])]
    return list(spoken[0]["tokens"]) if spoken else [0]


def _picture(picture: Image) -> dict[str, Any]:
    small = max(picture.size) <= 128  # drawn scenes: every pixel matters
    copy = picture.copy()
    copy.thumbnail((LONGEST, LONGEST))
    data = io.BytesIO()
    kind, options = ("png", {}) if small else ("jpeg", {"quality": 88})
    copy.save(data, format=kind.upper(), **options)
    return {"source": f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}", "sharp": small}


def _colours() -> dict[str, str]:
    """256 colours (red, green, blue, opacity) of each scale, for light and dark ground, as base64: those of the figures."""
    from matplotlib import colormaps

    from probe.plots.overlays import see_through

    level = np.linspace(0, 1, 256)
    light, light_signed = see_through(False)(level), see_through(True)(level)
    dark, dark_signed = colormaps["magma"](0.15 + 0.85 * level), colormaps["berlin"](level)
    dark[:, 3], dark_signed[:, 3] = light[:, 3], light_signed[:, 3]
    tables = {"light": light, "light signed": light_signed, "dark": dark, "dark signed": dark_signed}
    return {
        name: base64.b64encode(np.rint(one * 255).astype(np.uint8).tobytes()).decode("ascii")
        for name, one in tables.items()
    }


def _record(record: AttentionRecord, label: str, scores: PhraseScores | None) -> dict[str, Any]:
    words, unplaced = _words(record)
    phrases, note = _phrases(record, scores)
    return {
        "label": label,
        "text": record.text,
        "tokens": list(record.tokens),
        "words": words[:MOST_WORDS],
        "unplaced": unplaced[:MOST_TOKENS],
        "hidden": [max(0, len(words) - MOST_WORDS), max(0, len(unplaced) - MOST_TOKENS)],
        "phrases": phrases,
        "note": note,
        "readings": list(readings_of(record)),
        "averaged": averaged_tokens(record),
        "signed": record.quantity == "contribution",
        # Raw values can be laid on one scale only where these are the same.
        "kind": [record.quantity, record.query_kind, record.softmax_over],
        "label_of_values": _label(record),
        "facts": _facts(record),
        "views": [_view(of_view(record, name), name) for name in view_names(record)],
    }


def _words(record: AttentionRecord) -> tuple[list[dict[str, Any]], list[int]]:
    """The words of the text with the tokens that spell each, and the tokens that spell none."""
    spans = np.asarray(record.spans).reshape(-1, 2)
    found: list[dict[str, Any]] = []
    for word in split_words(record.text):
        # A special token's empty span overlaps nothing, also in the middle of a word.
        tokens = np.flatnonzero(np.maximum(spans[:, 0], word.start) < np.minimum(spans[:, 1], word.end))
        found.append({"text": word.text, "start": word.start, "end": word.end, "tokens": tokens.tolist()})
    spelling = {one for word in found for one in word["tokens"]}
    return found, [one for one in range(len(record.tokens)) if one not in spelling]


def _phrases(record: AttentionRecord, scores: PhraseScores | None) -> tuple[list[dict[str, Any]], str]:
    """Phrases with masks, and noun phrases beside them, in the order of the text."""
    known: list[dict[str, Any]] = [
        {"text": one.text, "start": one.start, "end": one.end, "tokens": list(one.tokens), "mask": number,
         "outline": outline_path(one.mask)}
        for number, one in enumerate(scores.phrases if scores else ())
    ]  # fmt: skip
    nouns = noun_phrases(record.text)
    for one in nouns:
        overlaps = any(max(one.start, each["start"]) < min(one.end, each["end"]) for each in known)
        tokens = [i for i, (low, high) in enumerate(record.spans) if max(low, one.start) < min(high, one.end)]
        if tokens and not overlaps:
            known.append({"text": one.text, "start": one.start, "end": one.end, "tokens": tokens, "mask": None})
    return sorted(known, key=lambda one: (one["start"], one["end"])), nouns.note if record.text.strip() else ""


def _label(record: AttentionRecord) -> str:
    return {"contribution": "contribution to the similarity"}.get(record.quantity, record.quantity)


def _facts(record: AttentionRecord) -> list[tuple[str, str]]:
    """What the values are and where they come from, for people."""
    proof, source = record.certificate, record.source
    checked = "passed" if proof.passed else "off" if proof.verify == "off" else "FAILED"
    row = {"predicting": ", from the row that predicts it", "own": ", from its own row"}.get(record.query_row or "", "")
    over = {
        "sequence": "the whole sequence: what the patches do not get went to text and other places",
        "tokens": "words: each patch spreads 1 over the words",
        "patches": "patches: each row spreads 1 over the image",
    }.get(record.softmax_over or "", "no softmax")
    what = f"{record.quantity} of each {record.query_kind}{row}"
    if record.quantity == "contribution":
        what = f"contribution of each patch to the similarity with the text, through the {record.query_kind}"
    facts = [
        ("quantity", what),
        ("softmax over", over),
        ("model", f"{source.model} ({source.family}), kernel {source.kernel}, {source.dtype}"),
        ("picture as prepared", source.preparation),
        ("prompt", source.prompt),
        ("certificate", f"{checked}, largest error {proof.max_error:.1e} in {proof.rows} checked rows"),
    ]
    facts += [("already reduced", ", ".join(record.history))] if record.history else []
    facts += [("ablation", source.ablation)] if source.ablation else []
    if record.query_kind in ("class token", "pooling query") or record.quantity == "contribution":
        facts.append(("note", "an image encoder has no attention from text to patches"))
    return [(name, value) for name, value in facts if value]


def _view(record: AttentionRecord, name: str) -> dict[str, Any]:
    grids: list[PatchGrid] = []

    def number(grid: PatchGrid) -> int:
        for index, one in enumerate(grids):
            if (one.row_edges, one.col_edges) == (grid.row_edges, grid.col_edges):
                return index
        grids.append(grid)
        return len(grids) - 1

    layers = [{"name": one.name, "heads": list(one.heads), "grid": number(one.grid)} for one in record.layers]
    overall = number(common_grid(record.layers))
    return {
        "name": name,
        "picture": picture_number(name),
        "size": list(record.layers[0].grid.image_size),
        "masks": picture_number(name) == 0,
        "layers": layers,
        "overall": overall,
        "timesteps": list(timesteps_of(record)),
        "grids": [_grid(one) for one in grids],
    }


def _grid(grid: PatchGrid) -> dict[str, Any]:
    """Edges in pixels as they are, and clipped to the image, with the share of each row and column of patches that is image."""
    boxes = grid.boxes
    return {
        "row_edges": list(grid.row_edges),
        "col_edges": list(grid.col_edges),
        "rows": _axis(boxes[:, 0, 0], boxes[:, 0, 2], np.asarray(grid.row_edges)),
        "cols": _axis(boxes[0, :, 1], boxes[0, :, 3], np.asarray(grid.col_edges)),
    }


def _axis(low: NDArray[np.float64], high: NDArray[np.float64], edges: NDArray[np.float64]) -> list[list[float]]:
    share = (high - low) / np.diff(edges)
    # A sum of pixel shares may miss 0 or 1 by rounding, and 0 means padding exactly.
    share = np.where(share < 1e-9, 0.0, np.minimum(share, 1.0))
    return np.stack([low, high, share], axis=1).tolist()
