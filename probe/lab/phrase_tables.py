"""Scenes in the formats whose phrases have masks: GranD-f's evaluation pair, RefCOCO, Panoptic Narrative Grounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import InputError
from probe.lab.coco_tables import (
    ABOUT,
    categories,
    draw_segments,
    drawn,
    encoded,
    object_id,
    object_rows,
    segment_rows,
    write_table,
)

if TYPE_CHECKING:
    from probe.lab.scenes import Scene

__all__ = ["fill_grandf", "fill_png", "fill_refcoco"]

SPLIT = "test"


def fill_grandf(folder: Path, scenes: Iterable[Scene]) -> None:
    """Nothing; writes pictures and the pair of tables that grounded conversation generation is scored with into `folder`.

    An image's id is a text, its file's name without the ending, as in the published tables.
    """
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    for example, image in drawn(folder / "GranDf_HA_images" / "val_test", scenes):
        name = Path(image["file_name"]).stem
        images.append({**image, "id": name})
        labels = [phrase.text for phrase in example.phrases]
        captions.append({"id": example.index, "image_id": name, "caption": example.caption, "labels": labels})
        for number, phrase in enumerate(example.phrases):
            rle, area, box = encoded(phrase.mask)
            row = {"id": object_id(example, number), "image_id": name, "category_id": 1, "segmentation": rle}
            masks.append({**row, "area": area, "bbox": box, "iscrowd": 0})
    tables = folder / "annotations" / "val_test"
    write_table(
        tables / f"{SPLIT}_gcg_coco_caption_gt.json", {"info": ABOUT, "images": images, "annotations": captions}
    )
    table = {"info": ABOUT, "images": images, "categories": [{"id": 1, "name": "object"}], "annotations": masks}
    write_table(tables / f"{SPLIT}_gcg_coco_mask_gt.json", table)


def fill_refcoco(folder: Path, scenes: Iterable[Scene]) -> None:
    """Nothing; writes pictures, instances and referring expressions into `folder`.

    Raises
    ------
    InputError
        In no scene has an object a phrase of its own.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for example, image in drawn(folder / "images", scenes):
        images.append(image)
        found = object_rows(example)
        annotations += found
        names = Counter(phrase.text for phrase in example.phrases)
        references += [
            _reference(row, image["file_name"], phrase.text)
            for row, phrase in zip(found, example.phrases, strict=True)
            if names[phrase.text] == 1  # an expression that fits two objects refers to neither
        ]
    if not references:
        raise InputError("In no scene has an object a phrase that no other has, so nothing can be referred to.")
    instances = {"info": ABOUT, "images": images, "categories": categories(), "annotations": annotations}
    write_table(folder / "instances.json", instances)
    write_table(folder / "refs.json", references)


def _reference(row: dict[str, Any], file_name: str, text: str) -> dict[str, Any]:
    """One object and the one sentence that refers to it, which share the object's id."""
    sentence = {"sent_id": row["id"], "sent": text, "raw": text, "tokens": text.split()}
    return {
        "ref_id": row["id"],
        "ann_id": row["id"],
        "image_id": row["image_id"],
        "category_id": row["category_id"],
        "file_name": file_name,
        "split": SPLIT,
        "sent_ids": [row["id"]],
        "sentences": [sentence],
    }


def fill_png(folder: Path, scenes: Iterable[Scene]) -> None:
    """Nothing; writes pictures, panoptic maps and narratives into `folder`.

    Ids of images and segments are texts in the narratives and numbers in the panoptic table, as published.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    narratives: list[dict[str, Any]] = []
    tables = folder / "annotations"
    for example, image in drawn(folder / "images" / SPLIT, scenes):
        images.append(image)
        draw_segments(tables / "panoptic_segmentation" / SPLIT / image["file_name"], example)
        row = {"image_id": example.index, "file_name": image["file_name"], "segments_info": segment_rows(example)}
        annotations.append(row)
        narratives.append(
            {"image_id": str(example.index), "caption": example.caption, "segments": _utterances(example)}
        )
    table = {"info": ABOUT, "images": images, "categories": categories(isthing=1), "annotations": annotations}
    write_table(tables / f"panoptic_{SPLIT}.json", table)
    write_table(tables / f"png_coco_{SPLIT}.json", narratives)


def _utterances(example: Scene) -> list[dict[str, Any]]:
    """The caption cut at its phrases, each of which names the segment of its object."""
    pieces: list[dict[str, Any]] = []
    before = 0
    for number, phrase in enumerate(example.phrases):
        pieces.append(_utterance(example.caption[before : phrase.start]))
        pieces.append(_utterance(phrase.text, str(object_id(example, number))))
        before = phrase.end
    pieces.append(_utterance(example.caption[before:]))
    return [piece for piece in pieces if piece["utterance"]]


def _utterance(text: str, *segments: str) -> dict[str, Any]:
    return {"utterance": text.strip(), "segment_ids": list(segments), "plural": False, "noun": bool(segments)}
