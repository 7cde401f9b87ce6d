"""Scenes in COCO's formats: instances with captions and phrases, and panoptic maps; and what other formats share with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from probe.errors import InputError
from probe.lab.shapes import SHAPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from probe.lab.scenes import Scene

__all__ = [
    "ABOUT",
    "categories",
    "draw_segments",
    "drawn",
    "encoded",
    "fill_coco",
    "fill_panoptic",
    "object_id",
    "object_rows",
    "segment_rows",
    "write_table",
]

PER_SCENE = 10  # ids of objects that each scene has for itself, so that they do not depend on the other scenes
ABOUT = {"description": "Synthetic scenes of coloured shapes"}
#: Segment ids are colours of 24 bits.
SEGMENTS = 2**24


def drawn(pictures: Path, scenes: Iterable[Scene]) -> Iterator[tuple[Scene, dict[str, Any]]]:
    """Each scene and its row in a list of images, once its picture is in the folder `pictures`.

    Raises
    ------
    InputError
        Two scenes have the same index, or there is none.
    """
    pictures.mkdir(parents=True)
    known: set[int] = set()
    for example in scenes:
        if example.index in known:
            raise InputError(f"Two scenes have index {example.index}; ids in a folder must differ.")
        known.add(example.index)
        name = f"{example.index:06d}.png"
        example.image.save(pictures / name)
        width, height = example.image.size
        yield example, {"id": example.index, "file_name": name, "width": width, "height": height}
    if not known:
        raise InputError("There is no scene to write.")


def write_table(path: Path, table: Any) -> None:
    """Nothing; writes a table as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table), encoding="utf-8")


def categories(**fields: Any) -> list[dict[str, Any]]:
    """The shapes as categories, each with these further fields."""
    return [
        {"id": number, "name": name, "supercategory": "shape", **fields} for number, name in enumerate(SHAPES, start=1)
    ]


def object_id(example: Scene, number: int) -> int:
    """The id of a scene's object; from 1, since COCO's scorer takes 0 for "no match"."""
    return example.index * PER_SCENE + number + 1


def encoded(mask: NDArray[np.bool_]) -> tuple[dict[str, Any], float, list[float]]:
    """A mask (height, width) as compressed RLE, its area in pixels, and its box as COCO has it: left, top, width, height."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    area, box = float(coco.area(rle)), [float(value) for value in coco.toBbox(rle)]
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}, area, box


def object_rows(example: Scene) -> list[dict[str, Any]]:
    """The scene's objects as COCO annotations."""
    rows = []
    for number, (item, phrase) in enumerate(zip(example.objects, example.phrases, strict=True)):
        rle, area, box = encoded(phrase.mask)
        rows.append(
            {
                "id": object_id(example, number),
                "image_id": example.index,
                "category_id": SHAPES.index(item.shape) + 1,
                "segmentation": rle,
                "area": area,
                "bbox": box,
                "iscrowd": 0,
                "attributes": {"colour": item.colour, "size": item.size},
            }
        )
    return rows


def segment_rows(example: Scene) -> list[dict[str, Any]]:
    """The scene's objects as the segments of a panoptic map."""
    kept = ("id", "category_id", "area", "bbox", "iscrowd")
    return [{key: row[key] for key in kept} for row in object_rows(example)]


def draw_segments(path: Path, example: Scene) -> None:
    """Nothing; writes the panoptic map: every object in the colour of its id, the background black, which is void.

    Raises
    ------
    InputError
        The scene's index is so large that its ids are no colours.
    """
    ids = np.zeros((example.image.size[1], example.image.size[0]), dtype=np.int64)
    for number, phrase in enumerate(example.phrases):
        ids[phrase.mask] = object_id(example, number)
    if ids.max() >= SEGMENTS:
        raise InputError(f"Scene {example.index} has ids of {SEGMENTS} or more, which a panoptic map cannot hold.")
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).save(path)


def fill_coco(folder: Path, scenes: Iterable[Scene]) -> None:
    """Nothing; writes pictures, instances, captions and phrases into `folder`."""
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    phrases: list[dict[str, Any]] = []
    for example, image in drawn(folder / "images", scenes):
        images.append(image)
        captions.append({"id": example.index, "image_id": example.index, "caption": example.caption})
        found = object_rows(example)
        annotations += found
        phrases += [_phrase(example, number, row) for number, row in enumerate(found)]
    instances = {"info": ABOUT, "images": images, "categories": categories(), "annotations": annotations}
    write_table(folder / "instances.json", instances)
    write_table(folder / "captions.json", {"info": ABOUT, "images": images, "annotations": captions})
    note = "Exact: a phrase's mask is the visible part of the object it names."
    write_table(folder / "phrases.json", {"note": note, "phrases": phrases})


def _phrase(example: Scene, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """The row of one phrase."""
    phrase = example.phrases[number]
    return {
        "caption_id": example.index,
        "image_id": example.index,
        "start": phrase.start,
        "end": phrase.end,
        "text": phrase.text,
        "category": example.objects[number].shape,
        "ann_ids": [row["id"]],
        "segment_ids": [],
    }


def fill_panoptic(folder: Path, scenes: Iterable[Scene]) -> None:
    """Nothing; writes pictures, panoptic maps and their table into `folder`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for example, image in drawn(folder / "images", scenes):
        images.append(image)
        draw_segments(folder / "panoptic" / image["file_name"], example)
        row = {"image_id": example.index, "file_name": image["file_name"], "segments_info": segment_rows(example)}
        annotations.append(row)
    table = {"info": ABOUT, "images": images, "categories": categories(isthing=1), "annotations": annotations}
    write_table(folder / "panoptic.json", table)
