"""Masks as COCO run lengths: {"size": [height, width], "counts": compressed text}, compared without drawing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from probe.analysis.targets import resize_masks
from probe.errors import InputError
from probe.evaluation.json_records import shown
from probe.evaluation.segmentations import checked_counts

__all__ = [
    "RunLengths",
    "area",
    "bounding_box",
    "centre_box",
    "checked",
    "covers",
    "encode",
    "ious",
    "overlap",
    "resized",
    "union",
]

RunLengths = dict[str, Any]
Size = tuple[int, int]


def encode(mask: NDArray[np.bool_]) -> RunLengths:
    """The run lengths of a (height, width) bool mask."""
    return _text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def checked(encoded: Any, size: Size) -> RunLengths:
    """The same run lengths in compressed text, certain to be a mask of this (height, width).

    Raises
    ------
    InputError
        They are not; the caller adds whose mask it is.
    """
    if not isinstance(encoded, dict):
        raise InputError(f"its mask is {shown(encoded)}; run lengths are needed: an object with 'size' and 'counts'")
    counts = checked_counts(encoded, size)
    # Two masks with an empty run at the same place end pycocotools' comparison there, so that inner empty runs are joined.
    if isinstance(encoded["counts"], str) and all(counts[1:]):
        return {"size": [*size], "counts": encoded["counts"]}
    return _from_counts(_joined(counts), size)


def ious(first: Sequence[RunLengths], second: Sequence[RunLengths]) -> NDArray[np.float64]:
    """(first, second) intersection over union of every pair; 0 where both masks are empty."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    # pycocotools divides by the first mask's area where the second is marked as a crowd: never here.
    return np.asarray(coco_mask.iou(list(first), list(second), [0] * len(second)))


def area(mask: RunLengths) -> int:
    """How many pixels are inside."""
    return int(coco_mask.area(mask))


def overlap(first: RunLengths, second: RunLengths) -> tuple[int, int]:
    """How many pixels are inside both masks, and how many inside at least one."""
    both = int(coco_mask.area(coco_mask.merge([first, second], intersect=True)))
    return both, area(first) + area(second) - both


def union(masks: Sequence[RunLengths]) -> RunLengths:
    """The pixels of any of these masks, of which there is at least one."""
    return _text(coco_mask.merge(list(masks)))


def covers(mask: RunLengths, point: tuple[int, int]) -> bool:
    """True if the pixel at this (row, col) is inside."""
    row, col = point
    return overlap(mask, box(row, col, row + 1, col + 1, _size(mask)))[0] == 1


def box(top: int, left: int, bottom: int, right: int, size: Size) -> RunLengths:
    """The pixels of rows top to bottom and columns left to right, the last of each excluded."""
    height, width = size
    tall, wide = bottom - top, right - left
    if tall <= 0 or wide <= 0:
        return _from_counts([height * width], size)
    if tall == height:  # one run, since no pixel lies between two columns
        top, tall, wide = 0, wide * height, 1
    runs = [left * height + top, *[tall, height - tall] * (wide - 1), tall]
    after = height * width - sum(runs)
    return _from_counts([*runs, after] if after else runs, size)


def centre_box(pixels: int, size: Size) -> RunLengths:
    """A box in the picture's centre of about that many pixels, shaped like the picture."""
    share = (pixels / (size[0] * size[1])) ** 0.5
    (top, bottom), (left, right) = ((round(one * (1 - share) / 2), round(one * (1 + share) / 2)) for one in size)
    return box(top, left, bottom, right, size)


def bounding_box(mask: RunLengths) -> RunLengths:
    """The smallest box around the mask, empty where the mask is."""
    left, top, wide, tall = (int(one) for one in coco_mask.toBbox(mask))
    return box(top, left, top + tall, left + wide, _size(mask))


def resized(mask: RunLengths, size: Size) -> RunLengths:
    """The mask at another (height, width), each pixel taken from the nearest one."""
    if _size(mask) == size:
        return mask
    # Drawn down the columns, which is how run lengths are kept, so that memory is read in its order.
    return encode(resize_masks(coco_mask.decode(mask).T.view(bool), size[::-1]).T)


def _size(mask: RunLengths) -> Size:
    height, width = mask["size"]
    return height, width


def _joined(counts: Sequence[int]) -> list[int]:
    """The same mask without empty runs, other than the first."""
    kept = [*counts[:1]]
    # An empty run says that the next one goes on with what was before it.
    goes_on = False
    for count in counts[1:]:
        if count == 0:
            goes_on = not goes_on
        elif goes_on:
            kept[-1] += count
            goes_on = False
        else:
            kept.append(count)
    return kept


def _from_counts(counts: list[int], size: Size) -> RunLengths:
    return _text(coco_mask.frPyObjects({"size": [*size], "counts": counts}, *size))


def _text(encoded: dict[str, Any]) -> RunLengths:
    # Text and not bytes, so that it can be written as JSON; pycocotools takes both.
    return {"size": [int(one) for one in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
