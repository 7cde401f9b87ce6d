"""Folders in the layout of MS COCO, read as examples: captions with phrase masks, or pictures with category masks.

References: Lin et al. 2014, arXiv 1405.0312; panoptic maps: Kirillov et al. 2019, arXiv 1801.00868.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from probe.errors import InputError
from probe.evaluation.coco_phrases import phrase_examples, read_phrases
from probe.evaluation.examples import Example
from probe.evaluation.json_records import JsonRecord, by_id, read_json, records_in
from probe.evaluation.layouts import check_limit, choose_split, data_root, folder_contents, picture_folders, tables
from probe.evaluation.pictures import Category, Picture, known_number, picture_path, read_categories, read_pictures
from probe.evaluation.segmentations import annotation_mask
from probe.evaluation.sentences import category_sentence

__all__ = ["INSTANCES", "CocoFolder", "read_coco_folder", "read_instance_folder", "read_instances"]

#: The name of a table of instances, with its split.
INSTANCES = r"instances(_(?P<split>.+))?[.]json"


@dataclass(frozen=True, eq=False)
class CocoFolder:
    """A table of instances, indexed; no segmentation is looked at before its picture's turn comes."""

    root: Path
    table: Path
    split: str
    pictures: dict[int, Picture]
    annotations: dict[int, JsonRecord]
    categories: dict[int, Category]

    def beside(self, kind: str) -> Path:
        """Where the table of another kind lies for the same split, such as captions_val2017.json; it may be missing."""
        return self.table.with_name(self.table.name.replace("instances", kind, 1))

    def picture_path(self, picture: Picture) -> Path:
        """The picture's file, checked as `probe.evaluation.pictures.picture_path` does."""
        return picture_path(self.root, picture_folders(self.split), picture)

    def mask(self, numbers: Iterable[int], size: tuple[int, int]) -> np.ndarray:
        """A bool array (height, width): the pixels of any of these annotations."""
        mask = np.zeros(size, dtype=bool)
        for number in numbers:
            mask |= annotation_mask(self.annotations[number], size)
        return mask


def read_coco_folder(folder: str | Path, *, split: str = "", limit: int | None = None) -> Iterator[Example]:
    """The examples of a folder, one by one in the order of its pictures, at most `limit` of them.

        for example in read_coco_folder("coco-mini", limit=10): ...

    The folder has `instances.json` and its pictures in `images/` or beside it, or `annotations/instances_val2017.json` and
    its pictures in `val2017/` or `images/val2017/` (`split` says which where there are several). If it also has
    `captions.json` and `phrases.json` (a list "phrases" of {caption_id, image_id, start, end, text, ann_ids, segment_ids};
    the last two name annotations of `instances.json` and segments of `panoptic.json` with its PNG files in `panoptic/`),
    each caption with phrases is an example, and the mask of a phrase is the union of what it names; the other captions of
    the picture are its references. Otherwise it is read as `read_instances` does.

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
    check_limit(limit)
    content = read_instance_folder(folder, split=split)
    if content.beside("phrases").exists():
        return islice(phrase_examples(content, read_phrases(content)), limit)
    return islice(_categorised(content), limit)


def read_instances(folder: str | Path, *, split: str = "", limit: int | None = None) -> Iterator[Example]:
    """The annotated pictures of a folder as `read_coco_folder` has it, whatever captions lie beside them.

    The text lists a picture's categories, "a person, a dog and a car", and the mask of a category is the union of its
    instances, crowds included; categories that cover no whole pixel are left out. Point accuracy needs this.

    Raises
    ------
    InputError, FileError
        As `read_coco_folder`.
    """
    check_limit(limit)
    return islice(_categorised(read_instance_folder(folder, split=split)), limit)


def read_instance_folder(folder: str | Path, *, split: str = "") -> CocoFolder:
    """The table of instances of a folder, with its ids checked and its masks as they are.

    Raises
    ------
    InputError
        There is no such table, or something in it is wrong, with the file and the record.
    FileError
        It cannot be read.
    """
    root = data_root(folder)
    found = tables(root, INSTANCES)
    if not found:
        raise InputError(
            f"{str(folder)!r} is not a COCO folder: looked for instances.json or annotations/instances_SPLIT.json, and for"
            f" captions.json and phrases.json beside it; {folder_contents(root)}"
        )
    split = choose_split(root, found, split, name="coco")
    path = found[split]
    content = read_json(path)
    pictures, categories = read_pictures(path, content), read_categories(path, content)
    annotations = dict(by_id(records_in(path, content, "annotations", "annotation")))
    for record in annotations.values():
        known_number(record, "image_id", pictures)
        known_number(record, "category_id", categories)
    return CocoFolder(root, path, split, pictures, annotations, categories)


def _categorised(folder: CocoFolder) -> Iterator[Example]:
    if not folder.annotations:
        raise InputError(f"{str(folder.table)!r} has no annotations, so there is nothing to find")
    by_picture: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, record in folder.annotations.items():
        by_picture[record.integer("image_id")][record.integer("category_id")].append(number)
    return _category_examples(folder, by_picture)


def _category_examples(folder: CocoFolder, by_picture: dict[int, dict[int, list[int]]]) -> Iterator[Example]:
    for number, picture in folder.pictures.items():
        if number not in by_picture:
            continue
        path = folder.picture_path(picture)
        masks = [
            (folder.categories[category], folder.mask(numbers, picture.size))
            for category, numbers in by_picture[number].items()
        ]
        masks = [(category, mask) for category, mask in masks if mask.any()]
        if masks:
            yield Example(picture.name, path, *category_sentence(masks))
