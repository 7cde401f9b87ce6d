"""Panoptic segmentations: every pixel in one segment, drawn as colours of a PNG file, and declared in a table.

References: Kirillov et al. 2019, arXiv 1801.00868.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from probe.errors import InputError, ProbeError
from probe.evaluation.examples import Example
from probe.evaluation.json_records import JsonRecord, by_id, read_json, records_in
from probe.evaluation.layouts import check_limit, find_table, picture_folders
from probe.evaluation.paths import file_inside
from probe.evaluation.pictures import Category, Picture, known_number, picture_path, read_categories, read_pictures
from probe.evaluation.sentences import category_sentence
from probe.images import read_image

__all__ = ["PANOPTIC", "PanopticMap", "PanopticMaps", "read_maps", "read_panoptic"]

#: The name of a panoptic table, with its split.
PANOPTIC = r"panoptic(_(?P<split>.+))?[.]json"


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """One picture's segments: the category that each id is declared with, and the file in which they are drawn."""

    record: JsonRecord
    file_name: str
    segments: dict[int, int | None]

    def pixels(self, segment: int, drawn: np.ndarray, record: JsonRecord) -> np.ndarray:
        """A bool array (height, width): where `drawn`, an array of segment ids, has this one; `record` asks for it."""
        mask = drawn == segment
        if not mask.any():
            raise record.error(f"its segment {segment} is declared, but the panoptic PNG has no pixel of it")
        return np.asarray(mask)


@dataclass(frozen=True, eq=False)
class PanopticMaps:
    """A panoptic table, indexed by picture; no PNG is opened before its picture's turn comes."""

    root: Path
    folders: tuple[str, ...]
    maps: dict[int, PanopticMap]
    categories: dict[int, Category]

    @classmethod
    def empty(cls) -> PanopticMaps:
        """A table of no picture."""
        return cls(Path(), (), {}, {})

    def category(self, drawn: PanopticMap, segment: int) -> Category | None:
        """The class of a segment, where the table declares it."""
        number = drawn.segments[segment]
        return None if number is None else self.categories[number]

    def segments(self, drawn: PanopticMap, picture: Picture) -> np.ndarray:
        """An int array (height, width) of segment ids, from the colours of the PNG: red + 256 green + 65536 blue."""
        path = file_inside(self.root, self.folders, drawn.record, drawn.file_name)
        try:
            levels = np.asarray(read_image(path)).astype(np.int32)
        except ProbeError as error:
            raise type(error)(f"{drawn.record.where}: {error}") from error
        height, width = levels.shape[:2]
        if (height, width) != picture.size:
            raise drawn.record.error(
                f"{str(path)!r} is {height} x {width} (height x width), and image {picture.number} is"
                f" {picture.size[0]} x {picture.size[1]}"
            )
        return np.asarray(levels[:, :, 0] + 256 * levels[:, :, 1] + 256**2 * levels[:, :, 2])


def read_maps(
    path: Path, content: dict[str, Any], root: Path, split: str, pictures: dict[int, Picture]
) -> PanopticMaps:
    """The maps that the content of a panoptic table declares for these pictures, with every id in it checked.

    A table without a list "categories" is one whose segments have no class.

    Raises
    ------
    InputError
        Something in it is wrong, with the record.
    """
    categories = read_categories(path, content) if "categories" in content else {}
    maps: dict[int, PanopticMap] = {}
    for record in records_in(path, content, "annotations", "panoptic map"):
        number = known_number(record, "image_id", pictures)
        if number in maps:
            raise record.error(f"image {number} has a map already; one is needed")
        inner = by_id(records_in(path, record.fields, "segments_info", f"panoptic map of image {number}, segment"))
        segments = {
            segment: known_number(info, "category_id", categories) if categories else None for segment, info in inner
        }
        maps[number] = PanopticMap(record, record.text("file_name"), segments)
    named = (f"panoptic_{split}", f"annotations/panoptic_{split}", f"annotations/panoptic_segmentation/{split}")
    folders = ("panoptic", "annotations/panoptic", *(named if split else ()), ".")
    return PanopticMaps(root, folders, maps, categories)


def read_panoptic(folder: str | Path, *, split: str = "", limit: int | None = None) -> Iterator[Example]:
    """The pictures of a panoptic table as examples whose text lists their categories, at most `limit` of them.

    The folder has `panoptic.json` with PNG files in `panoptic/`, or `annotations/panoptic_val2017.json` with PNG files in
    `annotations/panoptic_val2017/`; pictures lie where `read_coco_folder` looks for them. The mask of a category is the
    union of its segments, crowds included; `thing` is the category's "isthing".

    Raises
    ------
    InputError
        A file is missing, or something in it is wrong, with the file and the record.
    FileError
        A file or picture that cannot be read.
    """
    check_limit(limit)
    missing = "panoptic table: looked for panoptic.json or annotations/panoptic_SPLIT.json"
    root, split, path = find_table(folder, PANOPTIC, split, name="panoptic", missing=missing)
    content = read_json(path)
    pictures = read_pictures(path, content)
    maps = read_maps(path, content, root, split, pictures)
    if not maps.categories:
        raise InputError(f"{str(path)!r} needs a list 'categories', which is missing or empty")
    if not maps.maps:
        raise InputError(f"{str(path)!r} has no annotations, so there is nothing to find")
    return islice(_examples(maps, pictures, picture_folders(split)), limit)


def _examples(maps: PanopticMaps, pictures: dict[int, Picture], folders: tuple[str, ...]) -> Iterator[Example]:
    for number, picture in pictures.items():
        if number not in maps.maps:
            continue
        drawn = maps.maps[number]
        path = picture_path(maps.root, folders, picture)
        segments = maps.segments(drawn, picture)
        masks: dict[Category, np.ndarray] = {}
        for segment, category_number in drawn.segments.items():
            category = maps.categories[category_number]  # type: ignore[index]
            mask = drawn.pixels(segment, segments, drawn.record)
            masks[category] = masks[category] | mask if category in masks else mask
        if masks:
            yield Example(picture.name, path, *category_sentence(list(masks.items())))
