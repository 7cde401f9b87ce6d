"""Captions whose phrases name instances and panoptic segments: the table phrases.json beside COCO's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.json_records import JsonRecord, by_id, read_json, records_in, shown
from probe.evaluation.panoptic import PanopticMap, PanopticMaps, read_maps
from probe.evaluation.pictures import Picture, known_number

if TYPE_CHECKING:
    from probe.evaluation.coco import CocoFolder

__all__ = ["Phrases", "phrase_examples", "read_phrases"]


@dataclass(frozen=True, eq=False)
class Phrases:
    """The captions by id in order, the phrases of each, and the panoptic maps by picture."""

    captions: dict[int, JsonRecord]
    phrases: dict[int, list[JsonRecord]]
    panoptic: PanopticMaps


def read_phrases(folder: CocoFolder) -> Phrases:
    """The captions and phrases beside a table of instances, with every id in them checked.

    Raises
    ------
    InputError
        captions.json is missing, or something in a file is wrong, with the record.
    FileError
        A file that cannot be read.
    """
    path = folder.beside("captions")
    if not path.exists():
        raise InputError(f"{str(folder.root)!r} has phrases.json without captions.json, to which its phrases belong")
    captions = dict(by_id(records_in(path, read_json(path), "annotations", "caption")))
    for record in captions.values():
        known_number(record, "image_id", folder.pictures)
        record.text("caption")
    path = folder.beside("panoptic")
    panoptic = PanopticMaps.empty()
    if path.exists():
        panoptic = read_maps(path, read_json(path), folder.root, folder.split, folder.pictures)
    path = folder.beside("phrases")
    phrases: dict[int, list[JsonRecord]] = defaultdict(list)
    for record in records_in(path, read_json(path), "phrases", "phrase"):
        caption = captions[known_number(record, "caption_id", captions)]
        _check_phrase(record, caption, folder, panoptic)
        phrases[record.integer("caption_id")].append(record)
    if not phrases:
        raise InputError(f"{str(path)!r} has no phrases, so there is nothing to find")
    return Phrases(captions, phrases, panoptic)


def _check_phrase(record: JsonRecord, caption: JsonRecord, folder: CocoFolder, panoptic: PanopticMaps) -> None:
    number = record.integer("image_id")
    if number != caption.integer("image_id"):
        raise record.error(f"its 'image_id' is {number}, and that of its caption is {caption.integer('image_id')}")
    start, end, text = record.integer("start", low=0), record.integer("end", low=1), record.text("text")
    found = caption.text("caption")[start:end]
    if found != text:
        raise record.error(
            f"its text is {shown(text)}, and its caption says {shown(found)} at characters {start} to {end}"
        )
    if "category" in record.fields:
        record.text("category")
    instances, segments = record.integers("ann_ids"), record.integers("segment_ids")
    if not instances and not segments:
        raise record.error("it names no annotation and no segment, so its place is unknown")
    for instance in instances:
        if instance not in folder.annotations:
            raise record.error(f"its 'ann_ids' name {instance}, which instances.json does not have")
        owner = folder.annotations[instance].integer("image_id")
        if owner != number:
            raise record.error(f"its 'ann_ids' name {instance}, which belongs to image {owner}, not to {number}")
    for segment in segments:
        if number not in panoptic.maps or segment not in panoptic.maps[number].segments:
            raise record.error(
                f"its 'segment_ids' name {segment}, which panoptic.json does not have for image {number}"
            )


def phrase_examples(folder: CocoFolder, known: Phrases) -> Iterator[Example]:
    """One example for each caption that has phrases, in the order of the pictures."""
    by_picture: dict[int, list[int]] = defaultdict(list)
    for caption, record in known.captions.items():
        by_picture[record.integer("image_id")].append(caption)
    for number, picture in folder.pictures.items():
        wanted = [caption for caption in by_picture[number] if caption in known.phrases]
        if not wanted:
            continue
        path = folder.picture_path(picture)
        segmented = any(record.fields["segment_ids"] for caption in wanted for record in known.phrases[caption])
        segments = known.panoptic.segments(known.panoptic.maps[number], picture) if segmented else np.empty(0)
        for caption in wanted:
            spans = tuple(_phrase(folder, record, picture, known, segments) for record in known.phrases[caption])
            others = tuple(known.captions[other].text("caption") for other in by_picture[number] if other != caption)
            text = known.captions[caption].text("caption")
            yield Example(f"{picture.name}-{caption}", path, text, spans, others)


def _phrase(
    folder: CocoFolder, record: JsonRecord, picture: Picture, known: Phrases, segments: np.ndarray
) -> ExamplePhrase:
    instances = record.integers("ann_ids")
    mask = folder.mask(instances, picture.size)
    things = {folder.categories[folder.annotations[one].integer("category_id")].thing for one in instances}
    if record.fields["segment_ids"]:
        drawn: PanopticMap = known.panoptic.maps[picture.number]
        for segment in record.integers("segment_ids"):
            mask |= drawn.pixels(segment, segments, record)
            category = known.panoptic.category(drawn, segment)
            things.add(category.thing if category else None)  # type: ignore[arg-type]
    if not mask.any():
        raise record.error(f"what it names covers no pixel of image {picture.number}")
    category_name = record.text("category") if "category" in record.fields else ""
    thing = things.pop() if len(things) == 1 else None
    start, end = record.integer("start"), record.integer("end")
    return ExamplePhrase(record.text("text"), start, end, mask, category_name, thing)
