"""Folders in the layout of MS COCO, read as examples: captions with phrase masks, or pictures with category masks.

References: Lin et al. 2014, arXiv 1405.0312; panoptic maps: Kirillov et al. 2019, arXiv 1801.00868.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from probe.errors import InputError, ProbeError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.json_records import JsonRecord, read_json, records_in
from probe.evaluation.paths import file_inside
from probe.evaluation.segmentations import segmentation_mask
from probe.images import image_size, read_image

__all__ = ["read_coco_folder"]


@dataclass(frozen=True, eq=False)
class _Picture:
    record: JsonRecord
    number: int
    file_name: str
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """The file name without its ending, on one level."""
        return Path(self.file_name).with_suffix("").as_posix().replace("/", "-")


@dataclass(frozen=True, eq=False)
class _Folder:
    """instances.json, indexed; no segmentation is looked at before its picture's turn comes."""

    root: Path
    pictures: dict[int, _Picture]
    annotations: dict[int, JsonRecord]
    categories: dict[int, str]


@dataclass(frozen=True, eq=False)
class _Panoptic:
    """One picture's segments: the ids that are declared for it, and the file in which they are drawn."""

    record: JsonRecord
    file_name: str
    segments: frozenset[int]


def read_coco_folder(folder: str | Path, *, limit: int | None = None) -> Iterator[Example]:
    """The examples of a folder, one by one in the order of its pictures, at most `limit` of them.

        for example in read_coco_folder("coco-mini", limit=10): ...

    The folder has `instances.json` and its pictures in `images/` or beside it. If it also has `captions.json` and
    `phrases.json` (a list "phrases" of {caption_id, image_id, start, end, text, ann_ids, segment_ids}; the last two name
    annotations of `instances.json` and segments of `panoptic.json` with its PNG files in `panoptic/`), each caption with
    phrases is an example, and the mask of a phrase is the union of what it names. Otherwise each annotated picture is
    an example whose text lists its categories, "a person, a dog and a car", and the mask of a category is the union of
    its instances, crowds included; categories that cover no whole pixel are left out.

    The JSON files are read and their references checked at once; pictures, outlines and segments when their turn comes.
    Declared sizes are those after the EXIF orientation has been applied; an orientation that keeps the size cannot be
    checked, so annotations are taken to be in upright pixels.

    Raises
    ------
    InputError
        A file is missing, or something in it is wrong, with the file and the record.
    FileError
        A file or picture that cannot be read.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"limit={limit!r} is not a number of examples: give a whole number from 1, or None for all")
    root = Path(folder).resolve()
    if not (root / "instances.json").exists():
        raise InputError(
            f"{str(folder)!r} is not a COCO folder: looked for instances.json, and for captions.json and phrases.json"
            f" beside it; {_contents(root)}"
        )
    content = _read_folder(root)
    if (root / "phrases.json").exists():
        return islice(_captioned(content, *_read_captions(content)), limit)
    if not content.annotations:
        raise InputError(f"{str(root / 'instances.json')!r} has no annotations, so there is nothing to find")
    return islice(_categorised(content), limit)


def _contents(root: Path) -> str:
    if not root.is_dir():
        return "there is no such folder"
    names = sorted(path.name for path in islice(root.iterdir(), 1000))
    return "it has " + (", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "") if names else "no files")


def _read_folder(root: Path) -> _Folder:
    path = root / "instances.json"
    content = read_json(path)
    pictures: dict[int, _Picture] = {}
    for number, record in _by_id(records_in(path, content, "images", "image")):
        size = record.integer("height", low=1), record.integer("width", low=1)
        pictures[number] = _Picture(record, number, record.text("file_name"), size)
    categories = {
        number: record.text("name") for number, record in _by_id(records_in(path, content, "categories", "category"))
    }
    annotations = dict(_by_id(records_in(path, content, "annotations", "annotation")))
    for record in annotations.values():
        _known(record, "image_id", pictures)
        _known(record, "category_id", categories)
    return _Folder(root, pictures, annotations, categories)


def _by_id(records: Iterable[JsonRecord]) -> Iterator[tuple[int, JsonRecord]]:
    seen: set[int] = set()
    for record in records:
        number = record.integer("id")
        if number in seen:
            raise record.error("its id was used before in the same list; ids must differ")
        seen.add(number)
        yield number, record


def _known(record: JsonRecord, key: str, known: dict[int, Any]) -> int:
    number = record.integer(key)
    if number not in known:
        raise record.error(f"its {key!r} is {number}, which is not among the {len(known)} that are declared")
    return number


def _read_captions(folder: _Folder) -> tuple[dict[int, JsonRecord], dict[int, list[JsonRecord]], dict[int, _Panoptic]]:
    """The captions by id in order, the phrases of each, and the panoptic maps by picture."""
    path = folder.root / "captions.json"
    if not path.exists():
        raise InputError(f"{str(folder.root)!r} has phrases.json without captions.json, to which its phrases belong")
    captions = dict(_by_id(records_in(path, read_json(path), "annotations", "caption")))
    for record in captions.values():
        _known(record, "image_id", folder.pictures)
        record.text("caption")
    panoptic = _read_panoptic(folder)
    path = folder.root / "phrases.json"
    phrases: dict[int, list[JsonRecord]] = defaultdict(list)
    for record in records_in(path, read_json(path), "phrases", "phrase"):
        caption = captions[_known(record, "caption_id", captions)]
        _check_phrase(record, caption, folder, panoptic)
        phrases[record.integer("caption_id")].append(record)
    if not phrases:
        raise InputError(f"{str(path)!r} has no phrases, so there is nothing to find")
    return captions, phrases, panoptic


def _check_phrase(record: JsonRecord, caption: JsonRecord, folder: _Folder, panoptic: dict[int, _Panoptic]) -> None:
    number = record.integer("image_id")
    if number != caption.integer("image_id"):
        raise record.error(f"its 'image_id' is {number}, and that of its caption is {caption.integer('image_id')}")
    start, end, text = record.integer("start", low=0), record.integer("end", low=1), record.text("text")
    found = caption.text("caption")[start:end]
    if found != text:
        raise record.error(f"its text is {text!r}, and its caption says {found!r} at characters {start} to {end}")
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
        if number not in panoptic or segment not in panoptic[number].segments:
            raise record.error(
                f"its 'segment_ids' name {segment}, which panoptic.json does not have for image {number}"
            )


def _read_panoptic(folder: _Folder) -> dict[int, _Panoptic]:
    path = folder.root / "panoptic.json"
    if not path.exists():
        return {}
    maps: dict[int, _Panoptic] = {}
    for record in records_in(path, read_json(path), "annotations", "panoptic map"):
        number = _known(record, "image_id", folder.pictures)
        if number in maps:
            raise record.error(f"image {number} has a map already; one is needed")
        inner = records_in(path, record.fields, "segments_info", f"panoptic map of image {number}, segment")
        maps[number] = _Panoptic(record, record.text("file_name"), frozenset(segment for segment, _ in _by_id(inner)))
    return maps


def _picture_path(folder: _Folder, picture: _Picture) -> Path:
    """The picture's file, certain to lie in the folder and to have the declared size."""
    path = file_inside(folder.root, ("images", "."), picture.record, picture.file_name)
    try:
        found = image_size(path)
    except ProbeError as error:
        raise type(error)(f"{picture.record.where}: {error}") from error
    if found != picture.size:
        turned = " once it is upright (EXIF)" if found == picture.size[::-1] else ""
        raise picture.record.error(
            f"it is declared as {picture.size[0]} x {picture.size[1]} (height x width), and {str(path)!r} is"
            f" {found[0]} x {found[1]}{turned}"
        )
    return path


def _union(folder: _Folder, numbers: Iterable[int], picture: _Picture) -> np.ndarray:
    """A bool array (height, width): the pixels of any of these annotations."""
    mask = np.zeros(picture.size, dtype=bool)
    for number in numbers:
        record = folder.annotations[number]
        if "segmentation" not in record.fields:
            raise record.error("it has no 'segmentation'; it needs polygons or run lengths")
        try:
            mask |= segmentation_mask(record.fields["segmentation"], picture.size)
        except InputError as error:
            raise record.error(str(error)) from error
    return mask


def _segment_ids(folder: _Folder, panoptic: _Panoptic, picture: _Picture) -> np.ndarray:
    """An int array (height, width) of segment ids, from the colours of the panoptic PNG."""
    path = file_inside(folder.root, ("panoptic", "."), panoptic.record, panoptic.file_name)
    try:
        levels = np.asarray(read_image(path)).astype(np.int32)
    except ProbeError as error:
        raise type(error)(f"{panoptic.record.where}: {error}") from error
    height, width = levels.shape[:2]
    if (height, width) != picture.size:
        raise panoptic.record.error(
            f"{str(path)!r} is {height} x {width} (height x width), and image {picture.number} is"
            f" {picture.size[0]} x {picture.size[1]}"
        )
    return levels[:, :, 0] + 256 * levels[:, :, 1] + 256**2 * levels[:, :, 2]


def _captioned(
    folder: _Folder,
    captions: dict[int, JsonRecord],
    phrases: dict[int, list[JsonRecord]],
    panoptic: dict[int, _Panoptic],
) -> Iterator[Example]:
    by_picture: dict[int, list[int]] = defaultdict(list)
    for caption, record in captions.items():
        if caption in phrases:
            by_picture[record.integer("image_id")].append(caption)
    for number, picture in folder.pictures.items():
        if number not in by_picture:
            continue
        path = _picture_path(folder, picture)
        wanted = any(record.fields["segment_ids"] for caption in by_picture[number] for record in phrases[caption])
        segments = _segment_ids(folder, panoptic[number], picture) if wanted else np.empty(0)
        for caption in by_picture[number]:
            spans = tuple(_phrase(folder, record, picture, segments) for record in phrases[caption])
            yield Example(f"{picture.name}-{caption}", path, captions[caption].text("caption"), spans)


def _phrase(folder: _Folder, record: JsonRecord, picture: _Picture, segments: np.ndarray) -> ExamplePhrase:
    mask = _union(folder, record.integers("ann_ids"), picture)
    for segment in record.integers("segment_ids"):
        drawn = segments == segment
        if not drawn.any():
            raise record.error(f"its segment {segment} is declared, but the panoptic PNG has no pixel of it")
        mask |= drawn
    if not mask.any():
        raise record.error(f"what it names covers no pixel of image {picture.number}")
    return ExamplePhrase(record.text("text"), record.integer("start"), record.integer("end"), mask)


def _categorised(folder: _Folder) -> Iterator[Example]:
    by_picture: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, record in folder.annotations.items():
        by_picture[record.integer("image_id")][record.integer("category_id")].append(number)
    for number, picture in folder.pictures.items():
        if number not in by_picture:
            continue
        path = _picture_path(folder, picture)
        masks = [
            (folder.categories[category], _union(folder, numbers, picture))
            for category, numbers in by_picture[number].items()
        ]
        masks = [(name, mask) for name, mask in masks if mask.any()]
        if masks:
            yield Example(picture.name, path, *_listing(masks))


def _listing(masks: list[tuple[str, np.ndarray]]) -> tuple[str, tuple[ExamplePhrase, ...]]:
    """The text "a person, an apple and a car", and each name in it with its mask."""
    text = ""
    phrases = []
    for position, (name, mask) in enumerate(masks):
        if position:
            text += " and " if position == len(masks) - 1 else ", "
        text += "an " if name[0].casefold() in "aeiou" else "a "
        phrases.append(ExamplePhrase(name, len(text), len(text) + len(name), mask))
        text += name
    return text, tuple(phrases)
