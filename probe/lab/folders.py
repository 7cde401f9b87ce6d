"""Scenes as a folder in the layout of COCO, for any tool that reads it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import FileError, InputError
from probe.lab.shapes import SHAPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probe.lab.scenes import Scene

__all__ = ["write_folder"]

PER_SCENE = 10  # ids of annotations that each scene has for itself, so that they do not depend on the other scenes


def write_folder(out: str | Path, scenes: Iterable[Scene]) -> Path:
    """The folder `out`: ``images/000007.png``, ``instances.json``, ``captions.json`` and ``phrases.json`` as COCO has them.

    >>> write_folder("data/scenes", scenes(100))      # doctest: +SKIP

    Ids follow from the scene's index alone: image and caption 7 are scene 7. Masks are compressed RLE. The folder
    appears when everything is written, or not at all.

    Raises
    ------
    InputError
        No scenes, or two with the same index.
    FileError
        `out` already holds something, or cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"{out} exists already. Give a new folder.")
    beside: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        _fill(beside, scenes)
        beside.chmod(0o755)  # a temporary folder is for its owner alone
        beside.replace(out)
    except OSError as error:
        raise FileError(f"Scenes cannot be written to {out}: {error.strerror or error}.") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    return out


def _fill(folder: Path, scenes: Iterable[Scene]) -> None:
    """Nothing; writes the pictures and the tables into `folder`."""
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    phrases: list[dict[str, Any]] = []
    known: set[int] = set()
    for example in scenes:
        if example.index in known:
            raise InputError(f"Two scenes have index {example.index}; ids in a folder must differ.")
        known.add(example.index)
        name = f"{example.index:06d}.png"
        example.image.save(folder / "images" / name)
        width, height = example.image.size
        images.append({"id": example.index, "file_name": name, "width": width, "height": height})
        captions.append({"id": example.index, "image_id": example.index, "caption": example.caption})
        found = _annotations(example)
        annotations += found
        phrases += [_phrase(example, number, note) for number, note in enumerate(found)]
    if not images:
        raise InputError("There is no scene to write.")
    about = {"description": "Synthetic scenes of coloured shapes"}
    categories = [{"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(SHAPES, start=1)]
    tables: dict[str, dict[str, Any]] = {
        "instances": {"info": about, "images": images, "categories": categories, "annotations": annotations},
        "captions": {"info": about, "images": images, "annotations": captions},
        "phrases": {"note": "Exact: a phrase's mask is the visible part of the object it names.", "phrases": phrases},
    }
    for title, table in tables.items():
        (folder / f"{title}.json").write_text(json.dumps(table), encoding="utf-8")


def _annotations(example: Scene) -> list[dict[str, Any]]:
    """The scene's objects as COCO annotations."""
    notes = []
    for number, (item, phrase) in enumerate(zip(example.objects, example.phrases, strict=True), start=1):
        rle, area, box = _encoded(phrase.mask)
        notes.append(
            {
                "id": example.index * PER_SCENE + number,  # from 1: COCO's scorer takes 0 for "no match"
                "image_id": example.index,
                "category_id": SHAPES.index(item.shape) + 1,
                "segmentation": rle,
                "area": area,
                "bbox": box,
                "iscrowd": 0,
                "attributes": {"colour": item.colour, "size": item.size},
            }
        )
    return notes


def _encoded(mask: NDArray[np.bool_]) -> tuple[dict[str, Any], float, list[float]]:
    """A mask (height, width) as compressed RLE, its area in pixels, and its box as COCO has it: left, top, width, height."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    area, box = float(coco.area(rle)), [float(value) for value in coco.toBbox(rle)]
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}, area, box


def _phrase(example: Scene, number: int, note: dict[str, Any]) -> dict[str, Any]:
    """The row of one phrase."""
    phrase = example.phrases[number]
    return {
        "caption_id": example.index,
        "image_id": example.index,
        "start": phrase.start,
        "end": phrase.end,
        "text": phrase.text,
        "category": example.objects[number].shape,
        "ann_ids": [note["id"]],
        "segment_ids": [],
    }
