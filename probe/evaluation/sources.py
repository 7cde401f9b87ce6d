"""A data set by its name: lab scenes, or a folder in one of the published formats."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from probe.errors import InputError, did_you_mean
from probe.evaluation.captions import CAPTIONS, read_captions
from probe.evaluation.coco import INSTANCES, read_coco_folder, read_instances
from probe.evaluation.examples import Example
from probe.evaluation.grandf import grandf_tables, read_grandf
from probe.evaluation.lab import lab_settings, read_lab
from probe.evaluation.layouts import check_limit, data_root, folder_contents, tables
from probe.evaluation.narratives import NARRATIVES, read_narratives
from probe.evaluation.panoptic import PANOPTIC, read_panoptic
from probe.evaluation.plain_folders import plain_pictures, read_plain_folder
from probe.evaluation.refcoco import find_refs, read_refcoco

__all__ = ["FORMATS", "find_format", "is_lab", "read_data"]

#: Lab scenes are endless; this many are read where no limit is given.
SCENES = 500

#: What stands before the colon in the name of a data set, and the reader of a folder in that format.
FORMATS: dict[str, Callable[..., Iterator[Example]]] = {
    "coco": read_coco_folder,
    "instances": read_instances,
    "panoptic": read_panoptic,
    "captions": read_captions,
    "grandf": read_grandf,
    "refcoco": read_refcoco,
    "png": read_narratives,
    "folder": read_plain_folder,
}


def is_lab(data: str | os.PathLike[str]) -> bool:
    """True if this names scenes of the lab, whose captions can be put in other words."""
    return str(data).split(":")[0] == "lab"


def read_data(
    data: str | os.PathLike[str], *, limit: int | None = None, seed: int = 0
) -> tuple[Iterable[Example], int | None]:
    """The examples of a data set, and how many there are where that is known.

    >>> examples, count = read_data("lab:clutter", limit=100)

    `data` is a lab data set, a folder, or a folder with its format before it, "refcoco:data/refcoco", and where the folder
    has several splits the one that is meant, "refcoco/testA:data/refcoco". `FORMATS` lists the formats; a folder without one is
    recognised by what lies in it.

    Raises
    ------
    InputError
        If there is no such data set or folder, or it could be of several formats.
    FileError
        A file that cannot be read.
    """
    if is_lab(data):
        lab_settings(str(data))  # an unknown name is said before a model is loaded
        count = limit or SCENES
        return read_lab(str(data), limit=count, seed=seed), count
    check_limit(limit)
    name, split, folder = _parts(data)
    name = name or find_format(folder)
    if name == "folder":
        if split:
            raise InputError(f"a plain folder has no splits, and {split!r} was asked for: give 'folder:{folder}'")
        return read_plain_folder(folder, limit=limit), limit
    return FORMATS[name](folder, split=split, limit=limit), limit


def find_format(folder: str | Path) -> str:
    """The name in `FORMATS` of what lies in a folder.

    RefCOCO's instances are part of it, as are the panoptic maps of narratives; panoptic maps and captions beside instances
    are read with them.

    Raises
    ------
    InputError
        There is no such folder, nothing in it is known, or it holds two data sets.
    """
    root = data_root(folder)
    found = []
    if find_refs(root) is not None:
        found.append("refcoco")
    elif tables(root, INSTANCES):
        found.append("coco")
    if tables(root, NARRATIVES):
        found.append("png")
    if grandf_tables(root):
        found.append("grandf")
    if not found:
        rest = {"panoptic": tables(root, PANOPTIC), "captions": tables(root, CAPTIONS), "folder": plain_pictures(root)}
        found = [name for name, held in rest.items() if held][:1]
    if not found:
        raise InputError(
            f"{str(folder)!r} is not a data set: looked for instances.json, panoptic.json, captions.json, refs.json,"
            f" png_coco_SPLIT.json, GranD-f's tables, and masks/photo/PHRASE.png; {folder_contents(root)}"
        )
    if len(found) > 1:
        choices = " or ".join(repr(f"{name}:{folder}") for name in found)
        raise InputError(f"{str(folder)!r} holds several data sets: say which, {choices}")
    return found[0]


def _parts(data: str | os.PathLike[str]) -> tuple[str, str, Path]:
    """The format and the split before the colon, each "" where it is not said, and the folder."""
    text = os.fspath(data)
    match = re.fullmatch(r"(?P<name>[a-z]{2,})(/(?P<split>[^:/\\]+))?:(?P<folder>.+)", text)
    if match is None or Path(text).is_dir():
        return "", "", Path(text)
    if match["name"] not in FORMATS:
        raise InputError(
            f"There is no format {match['name']!r} of data sets; there are {', '.join(FORMATS)}."
            + did_you_mean(match["name"], FORMATS)
        )
    return match["name"], match["split"] or "", Path(match["folder"])
