"""The annotation tables of GranD-f: three formats, told apart by what is in them.

References: Rasheed et al. 2024 (GLaMM), arXiv 2311.03356.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.json_records import JsonRecord, by_id, read_value, records_in, records_of, shown
from probe.evaluation.paths import file_inside
from probe.evaluation.pictures import known_number, measured_size, picture_path, read_pictures
from probe.evaluation.segmentations import annotation_mask, segmentation_mask
from probe.evaluation.sentences import loose_spans

__all__ = ["read_annotations"]

Folders = tuple[str, ...]


def read_annotations(path: Path, root: Path, folders: Folders) -> Iterator[Example]:
    """One example for each record of an annotation table that has phrases with masks, in order.

    A list of {file_name, caption, groundings: {phrase: {token_positives, rle_masks}}} (GranDf_HA, OpenPsgGCG) gives a phrase
    for each mask. A list of {KEY: {img_file_name, caption, refs: [{sentence, segmentation}]}} (RefCOCOg_GCG) gives one for
    each reference whose sentence stands in the caption, as GLaMM reads it. An object with "images" that have captions and
    "annotations" with tokens_positive and sam_mask (flickr_mergedGT_GCG) gives one for each annotation that is not ignored.

    Raises
    ------
    InputError
        It is in none of these formats, or something in it is wrong, with the record.
    FileError
        It or a picture cannot be read.
    """
    content = read_value(path)
    if isinstance(content, dict):
        return _flickr(path, content, root, folders)
    if not isinstance(content, list) or not content:
        raise InputError(f"{str(path)!r} holds {shown(content)}; a list of captions with groundings or refs is needed")
    records = list(records_of(path, content, "caption"))
    if "groundings" in records[0].fields:
        return _each(records, root, folders, "file_name", _groundings)
    return _each([_only_value(record) for record in records], root, folders, "img_file_name", _refs)


def _each(
    records: list[JsonRecord],
    root: Path,
    folders: Folders,
    key: str,
    read: Callable[[JsonRecord, str, tuple[int, int]], list[ExamplePhrase]],
) -> Iterator[Example]:
    for record in records:
        path = file_inside(root, folders, record, record.text(key))
        text = record.text("caption").strip('"').strip()
        phrases = read(record, text, measured_size(record, path, _segmentations(record)))
        if phrases:
            yield Example(f"{path.stem}-{record.position}", path, text, tuple(phrases))


def _segmentations(record: JsonRecord) -> Iterator[Any]:
    """Whatever stands where a caption's masks are to be, looked for without complaint."""
    groundings, refs = record.fields.get("groundings"), record.fields.get("refs")
    for one in groundings.values() if isinstance(groundings, dict) else ():
        masks = one.get("rle_masks") if isinstance(one, dict) else None
        yield from masks if isinstance(masks, list) else ()
    for one in refs if isinstance(refs, list) else ():
        yield one.get("segmentation") if isinstance(one, dict) else None


def _groundings(record: JsonRecord, text: str, size: tuple[int, int]) -> list[ExamplePhrase]:
    """The phrases of one caption, from left to right, a phrase with several masks several times."""
    phrases = []
    for name, fields in record.get("groundings", dict, "an object with a grounding for each phrase").items():
        if fields is None:  # what some copies write for phrases of other captions
            continue
        if not isinstance(fields, dict):
            raise record.error(f"its grounding {shown(name)} is {shown(fields)}; an object is needed")
        grounding = JsonRecord(
            record.file, f"{record.kind} at position {record.position}, grounding {shown(name)}", 0, fields
        )
        start, end = _positions(grounding, "token_positives", text)
        if not loose_spans(text[start:end], name):
            raise grounding.error(f"its caption says {shown(text[start:end])} at characters {start} to {end}")
        for encoded in grounding.get("rle_masks", list, "a list of run lengths"):
            mask = _checked(grounding, encoded, size)
            phrases.append(ExamplePhrase(text[start:end], start, end, mask))
    return sorted(phrases, key=lambda phrase: phrase.start)


def _positions(record: JsonRecord, key: str, text: str) -> tuple[int, int]:
    """The characters [start, end] of a phrase, or the first of a list of such pairs, certain to be in the text."""
    value = record.get(key, list, "[start, end] in characters")
    pair = value[0] if value and isinstance(value[0], list) else value
    if len(pair) != 2 or any(type(one) is not int for one in pair) or not 0 <= pair[0] < pair[1] <= len(text):
        raise record.error(
            f"its {key!r} are {shown(str(pair))}; [start, end] in the caption of {len(text)} characters is needed"
        )
    return pair[0], pair[1]


def _checked(record: JsonRecord, segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    try:
        mask = segmentation_mask(segmentation, size)
    except InputError as error:
        raise record.error(str(error)) from error
    if not mask.any():
        raise record.error("its mask covers no pixel of the picture")
    return mask


def _only_value(record: JsonRecord) -> JsonRecord:
    """The record inside {KEY: record}."""
    values = list(record.fields.values())
    if len(values) != 1 or not isinstance(values[0], dict):
        raise record.error("it needs 'groundings', or one object with a caption and refs")
    return JsonRecord(record.file, record.kind, record.position, values[0])


def _refs(record: JsonRecord, text: str, size: tuple[int, int]) -> list[ExamplePhrase]:
    """The phrases of one caption from left to right: the references whose sentence is part of it."""
    phrases = []
    for part in records_in(record.file, record.fields, "refs", f"caption at position {record.position}, reference"):
        places = loose_spans(text, part.text("sentence"))
        if not places:
            continue
        mask = annotation_mask(part, size)
        if not mask.any():
            raise part.error("its mask covers no pixel of the picture")
        start, end = places[0]
        phrases.append(ExamplePhrase(text[start:end], start, end, mask))
    return sorted(phrases, key=lambda phrase: phrase.start)


def _flickr(path: Path, content: dict[str, Any], root: Path, folders: Folders) -> Iterator[Example]:
    pictures = read_pictures(path, content)
    found: dict[int, list[JsonRecord]] = defaultdict(list)
    for _, record in by_id(records_in(path, content, "annotations", "annotation")):
        number = known_number(record, "image_id", pictures)
        if not record.fields.get("ignore"):
            found[number].append(record)
    if not found:
        raise InputError(f"{str(path)!r} has no annotations, so there is nothing to find")
    return _flickr_examples(pictures, found, root, folders)


def _flickr_examples(
    pictures: dict[int, Any], found: dict[int, list[JsonRecord]], root: Path, folders: Folders
) -> Iterator[Example]:
    for number, picture in pictures.items():
        if number not in found:
            continue
        path = picture_path(root, folders, picture)
        text = picture.record.text("caption")
        phrases = []
        for record in found[number]:
            start, end = _positions(record, "tokens_positive", text)
            mask = annotation_mask(record, picture.size, key="sam_mask")
            if not mask.any():
                raise record.error("its mask covers no pixel of the picture")
            phrases.append(ExamplePhrase(text[start:end], start, end, mask))
        yield Example(f"{picture.name}-{number}", path, text, tuple(sorted(phrases, key=lambda phrase: phrase.start)))
