"""Panoptic Narrative Grounding: long captions whose noun phrases name segments of a panoptic map.

References: Gonzalez et al. 2021, arXiv 2109.04988.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.json_records import JsonRecord, read_json, read_list, records_in, records_of, shown
from probe.evaluation.layouts import check_limit, find_table, picture_folders, tables
from probe.evaluation.panoptic import PANOPTIC, PanopticMap, PanopticMaps, read_maps
from probe.evaluation.pictures import Picture, picture_path, read_pictures
from probe.evaluation.sentences import consecutive_spans

__all__ = ["NARRATIVES", "read_narratives"]

#: The name of a table of narratives, with its split; the authors' preparation writes others, for their own reader.
NARRATIVES = r"png_coco(_(?P<split>(?!.*_dataloader).+))?[.]json"


@dataclass(frozen=True, eq=False)
class _Narrative:
    """One caption, its picture, and its grounded phrases: characters, segment ids and whether it names several."""

    record: JsonRecord
    picture: Picture
    text: str
    phrases: tuple[tuple[int, int, tuple[int, ...], bool], ...]


def read_narratives(folder: str | Path, *, split: str = "", limit: int | None = None) -> Iterator[Example]:
    """One example for each narrative: its text is the caption, its phrases the nouns that are grounded.

        for example in read_narratives("panoptic_narrative_grounding", split="val2017"): ...

    The folder has `annotations/png_coco_val2017.json` (a list of {image_id, caption, segments: [{utterance, segment_ids,
    noun, plural}]}), `annotations/panoptic_val2017.json`, PNG files in `annotations/panoptic_segmentation/val2017/` and
    pictures in `images/val2017/`; the tables may also lie in the folder itself, without a split. The mask of a phrase is the
    union of its segments; `plural` is the annotation's; `thing` and `category` are those of its segments, where they agree. The
    utterances of a narrative one after another must be its caption, apart from blanks, punctuation and case. Narratives
    without a grounded noun are left out, as the authors do.

    Raises
    ------
    InputError
        A file is missing, or something in it is wrong, with the file and the record.
    FileError
        A file or picture that cannot be read.
    """
    check_limit(limit)
    missing = "narratives: looked for png_coco_SPLIT.json, and in annotations/"
    root, split, path = find_table(folder, NARRATIVES, split, name="png", missing=missing)
    declared = tables(root, PANOPTIC)
    if split not in declared:
        wanted = f"panoptic_{split}.json" if split else "panoptic.json"
        raise InputError(f"{str(path)!r} names segments of {wanted}, which {str(root)!r} does not have")
    content = read_json(declared[split])
    pictures = read_pictures(declared[split], content)
    maps = read_maps(declared[split], content, root, split, pictures)
    named = {str(number): number for number in pictures}
    narratives = []
    for record in records_of(path, read_list(path), "narrative"):
        number = record.identifier("image_id")
        if number not in named:
            raise record.error(
                f"its 'image_id' is {shown(number)}, which is not among the {len(named)} that are declared"
            )
        narratives.append(_narrative(record, pictures[named[number]], maps))
    narratives = [one for one in narratives if one.phrases]
    if not narratives:
        raise InputError(f"{str(path)!r} has no narratives with grounded nouns, so there is nothing to find")
    return islice(_examples(narratives, maps, picture_folders(split)), limit)


def _narrative(record: JsonRecord, picture: Picture, maps: PanopticMaps) -> _Narrative:
    """The narrative, with the characters of its phrases and its segment ids checked."""
    text = record.text("caption")
    kind = f"narrative at position {record.position}, segment"
    parts = list(records_in(record.file, record.fields, "segments", kind))
    spans = consecutive_spans(text, [part.get("utterance", str, "a text") for part in parts])
    if spans is None:
        raise record.error("its utterances one after another are not its caption, so its phrases have no place in it")
    phrases = []
    for part, (start, end) in zip(parts, spans, strict=True):
        plural = part.flag("plural")
        segments = _segments(part, picture, maps)
        if not part.flag("noun") or not segments:
            continue
        if start == end:
            raise part.error("its utterance has neither letters nor digits, so it is no phrase")
        phrases.append((start, end, segments, plural))
    return _Narrative(record, picture, text, tuple(phrases))


def _segments(part: JsonRecord, picture: Picture, maps: PanopticMaps) -> tuple[int, ...]:
    """The segment ids of an utterance, which some tables write as texts."""
    known = maps.maps[picture.number].segments if picture.number in maps.maps else {}
    named = {str(number): number for number in known}
    found = []
    for value in part.get("segment_ids", list, "a list of segment ids"):
        if type(value) not in (int, str) or str(value) not in named:
            raise part.error(
                f"its 'segment_ids' name {shown(value)}, which the panoptic table does not have for image {picture.number}"
            )
        found.append(named[str(value)])
    return tuple(found)


def _examples(narratives: list[_Narrative], maps: PanopticMaps, folders: tuple[str, ...]) -> Iterator[Example]:
    for one in narratives:
        path = picture_path(maps.root, folders, one.picture)
        drawn = maps.maps[one.picture.number]
        segments = maps.segments(drawn, one.picture)
        phrases = tuple(_phrase(one, place, drawn, segments, maps) for place in one.phrases)
        yield Example(f"{one.picture.name}-{one.record.position}", path, one.text, phrases)


def _phrase(
    one: _Narrative,
    place: tuple[int, int, tuple[int, ...], bool],
    drawn: PanopticMap,
    segments: np.ndarray,
    maps: PanopticMaps,
) -> ExamplePhrase:
    start, end, numbers, plural = place
    mask = np.zeros(one.picture.size, dtype=bool)
    for number in numbers:
        mask |= drawn.pixels(number, segments, one.record)
    categories = {maps.category(drawn, number) for number in numbers}
    names = {category.name if category else "" for category in categories}
    things = {category.thing if category else None for category in categories}
    name = names.pop() if len(names) == 1 else ""
    thing = things.pop() if len(things) == 1 else None
    return ExamplePhrase(one.text[start:end], start, end, mask, name, thing, plural)
