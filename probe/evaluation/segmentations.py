"""COCO segmentations, checked as untrusted input, turned into masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from probe.errors import InputError
from probe.evaluation.json_records import JsonRecord, shown

__all__ = ["annotation_mask", "checked_counts", "segmentation_mask"]

# Outlines are drawn at pixel edges and rounded outwards; what lies further outside belongs to another picture.
OUTSIDE = 2.0
# An outline takes 80 bytes a pixel of its length while it is drawn; honest ones are thousands of pixels long.
LONGEST_OUTLINE = 2_000_000


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """A bool array (height, width): the union of the polygons, or the pixels that the run lengths mark.

    `segmentation` is what COCO keeps under that key: a list of polygons [x1, y1, x2, y2, ...] in pixels, or a dictionary
    with "size" [height, width] and "counts", a list of run lengths down the columns or their compressed text.

    Raises
    ------
    InputError
        Anything else, with the reason; the caller adds the file and the record.
    """
    if isinstance(segmentation, list):
        return _polygon_mask(segmentation, size)
    if isinstance(segmentation, dict):
        return _run_length_mask(segmentation, size)
    raise InputError(f"its segmentation is {shown(segmentation)}; a list of polygons or run lengths are needed")


def annotation_mask(record: JsonRecord, size: tuple[int, int], *, key: str = "segmentation") -> np.ndarray:
    """A bool array (height, width): the mask that a record of a data set keeps under this key.

    Raises
    ------
    InputError
        As `segmentation_mask`, with the file and the record.
    """
    if key not in record.fields:
        raise record.error(f"it has no {key!r}; it needs polygons or run lengths")
    try:
        return segmentation_mask(record.fields[key], size)
    except InputError as error:
        raise record.error(str(error)) from error


def _polygon_mask(polygons: list[Any], size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if not polygons:
        raise InputError("its segmentation is an empty list; at least one polygon is needed")
    length = sum(_outline(polygon, size) for polygon in polygons)
    if length > LONGEST_OUTLINE:
        raise InputError(f"its outline is {length:,.0f} pixels long; at most {LONGEST_OUTLINE:,} are drawn")
    drawn = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return np.ascontiguousarray(coco_mask.decode(drawn)).astype(bool)


def _outline(polygon: Any, size: tuple[int, int]) -> float:
    """The length of the polygon's outline in pixels, once it is certain that drawing it is safe."""
    height, width = size
    if not isinstance(polygon, list):
        raise InputError(f"its polygon is {shown(polygon)}; a list of numbers x1, y1, x2, y2, ... is needed")
    # Four numbers would be taken for a box, and an odd one would be read from beyond the end.
    if len(polygon) < 6 or len(polygon) % 2:
        raise InputError(f"its polygon has {len(polygon)} numbers; an even number of at least 6 is needed")
    for number in polygon:
        if type(number) not in (int, float) or not -1e9 < number < 1e9:  # false for NaN, and safe for enormous integers
            raise InputError(f"its polygon holds {shown(number)}; finite numbers are needed")
    for axis, extent, first in (("x", width, 0), ("y", height, 1)):
        low, high = min(polygon[first::2]), max(polygon[first::2])
        if low < -OUTSIDE or high > extent + OUTSIDE:
            raise InputError(
                f"its polygon reaches from {axis} = {low:.6g} to {high:.6g}, outside the picture of {height} x {width}"
                " (height x width)"
            )
    corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum())


def _run_length_mask(encoded: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    height, width = size
    counts = checked_counts(encoded, size)
    inside = np.arange(len(counts)) % 2 == 1  # runs alternate, the first is outside
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def checked_counts(encoded: dict[str, Any], size: tuple[int, int]) -> list[int]:
    """The run lengths of a mask down its columns, the first of them outside, certain to fill a picture of this size.

    `encoded` has "size" [height, width] and "counts", a list of run lengths or their compressed text.

    Raises
    ------
    InputError
        Anything else, with the reason; the caller adds the file and the record.
    """
    # Read here and not by pycocotools, whose C code trusts the counts and writes past the end of the mask.
    height, width = size
    if encoded.get("size") != [height, width]:
        raise InputError(
            f"its run lengths are for size {_sizes(encoded.get('size'))}, and the picture is [{height}, {width}]"
            " (height, width)"
        )
    counts = encoded.get("counts")
    if isinstance(counts, str):
        counts = _expanded(counts)
    if not isinstance(counts, list):
        raise InputError(f"its 'counts' are {shown(counts)}; a list of run lengths or their compressed text is needed")
    pixels = height * width
    for count in counts:
        if type(count) is not int or not 0 <= count <= pixels:
            raise InputError(f"its run lengths hold {shown(count)}; whole numbers from 0 to {pixels} are needed")
    if sum(counts) != pixels:
        raise InputError(
            f"its run lengths sum to {sum(counts)}, and the picture has {height} x {width} = {pixels} pixels"
        )
    return counts


def _sizes(size: Any) -> str:
    return str(size) if isinstance(size, list) and len(size) == 2 and len(str(size)) <= 40 else shown(size)


def _expanded(text: str) -> list[int]:
    """The run lengths in COCO's compressed text.

    Each number is written in groups of 5 bits, the lowest first, one character (48 + group) each; bit 6 says that another
    group follows, and the last group's highest bit is the sign. From the fourth on, numbers are differences to the one
    two places before.
    """
    counts: list[int] = []
    number = groups = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or groups == 7:
            raise InputError("its compressed run lengths are not in COCO's encoding")
        number |= (code & 31) << 5 * groups
        groups += 1
        if code & 32:
            continue
        if code & 16:
            number -= 1 << 5 * groups
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = groups = 0
    if groups:
        raise InputError("its compressed run lengths end in the middle of a number")
    return counts
