"""Maps as bytes for the browser: numbers of a few levels with the scale of each map, and how much that loses."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probe.errors import InputError
from probe.layout import PatchGrid
from probe.widgets.sheets import Sheet

__all__ = [
    "FINEST",
    "MISSING",
    "choose_levels",
    "deflate",
    "exact_heads",
    "pack_heads",
    "pack_heads_quickly",
    "pack_means",
    "quantise",
    "to_text",
]

#: A patch without a value, where the grid of a mean reaches beyond a layer's own; and so the finest number of steps is one less.
MISSING, FINEST = 255, 254
#: Steps between the lowest and the highest value that a map may have where room must be saved.
LEVELS = (FINEST, 127, 63, 47, 31, 23, 15, 11, 7, 5, 4, 3, 2)

Maps = NDArray[np.float32]
Whole = NDArray[np.uint8]


def quantise(maps: Maps, grid: PatchGrid, *, levels: int | Whole = FINEST) -> tuple[Whole, Maps]:
    """(map, row, col) whole numbers from 0 to ``levels`` and the (map, 2) lowest and highest values that these stand for.

    The error is at most half a step, (highest - lowest) / (2 levels) of that map. Patches that show nothing of the image become 0
    and do not stretch the scale; what is no number becomes ``MISSING``.

    Parameters
    ----------
    levels : of all maps, or of each (map,).

    Raises
    ------
    InputError
        If there are fewer than 1 or more than ``FINEST`` levels.
    """
    steps = np.broadcast_to(np.asarray(levels, dtype=np.float64), len(maps))
    if len(maps) and not (steps.min() >= 1 and steps.max() <= FINEST):
        raise InputError(f"levels must be 1 to {FINEST}, found {levels}.")
    known = np.isfinite(maps) & (grid.weight > 0)
    low = np.min(maps, axis=(1, 2), initial=np.inf, where=known)
    high = np.max(maps, axis=(1, 2), initial=-np.inf, where=known)
    empty = low > high
    scales = np.stack([np.where(empty, 0, low), np.where(empty, 0, high)], axis=1).astype(np.float32)
    width = scales[:, 1].astype(np.float64) - scales[:, 0]
    factor = (steps / np.where(width > 0, width, 1))[:, None, None]
    with np.errstate(invalid="ignore"):
        rounded = np.rint((maps - scales[:, :1, None]) * factor)
        whole = np.where(known, np.clip(rounded, 0, steps[:, None, None]), np.where(np.isfinite(maps), 0, MISSING))
    return whole.astype(np.uint8), scales


def choose_levels(maps: Maps, grid: PatchGrid, *, bits: float) -> Whole:
    """(map,) the most levels of ``LEVELS`` with which a patch takes no more than so many bits on average, by the map's entropy.

    A map with a few peaks keeps every level; one that looks like noise, which nothing can shorten, keeps few.
    """
    finest = _histogram(quantise(maps, grid)[0])
    found = np.full(len(maps), LEVELS[-1], dtype=np.uint8)
    undecided = np.ones(len(maps), dtype=bool)
    for levels in LEVELS:
        merged = np.zeros((levels + 1, MISSING + 1))
        merged[np.rint(np.arange(FINEST + 1) * levels / FINEST).astype(int), np.arange(FINEST + 1)] = 1
        share = finest @ merged.T / finest.sum(1, keepdims=True)
        entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
        fits = undecided & (entropy <= bits)
        found[fits], undecided = levels, undecided & ~fits
    return found


def _histogram(whole: Whole) -> NDArray[np.int64]:
    """(map, 256) how many patches have each number."""
    count = len(whole)
    flat = whole.reshape(count, -1) + (MISSING + 1) * np.arange(count)[:, None]
    return np.bincount(flat.ravel(), minlength=count * (MISSING + 1)).reshape(count, MISSING + 1)


def pack_means(sheet: Sheet, grids: Sequence[PatchGrid], *, exact: bool = False) -> bytes:
    """``overall`` in float32, then the layers' means, each (row, col): in float32 too, or packed in the finest levels.

    Parameters
    ----------
    grids : the layers' own.
    """
    if exact:
        return b"".join(map(_bytes, (sheet.overall, *sheet.means)))
    finest = [np.full(1, FINEST, dtype=np.uint8)] * len(grids)
    return _bytes(sheet.overall) + _packed([one[None] for one in sheet.means], grids, finest)


def pack_heads(sheet: Sheet, grids: Sequence[PatchGrid], levels: Sequence[Whole]) -> bytes:
    """The maps of all heads, layer by layer, in so many levels for each head."""
    return _packed(sheet.heads, grids, levels)


def pack_heads_quickly(sheet: Sheet, grids: Sequence[PatchGrid]) -> bytes:
    """The same in the finest levels, for bytes that nobody shortens."""
    return _packed(
        sheet.heads, grids, [np.full(len(one), FINEST, dtype=np.uint8) for one in sheet.heads], counted=False
    )


def exact_heads(sheet: Sheet) -> bytes:
    """The maps of all heads, layer by layer, in float32."""
    return b"".join(map(_bytes, sheet.heads))


def _packed(
    maps: Sequence[Maps], grids: Sequence[PatchGrid], levels: Sequence[Whole], *, counted: bool = True
) -> bytes:
    """Of all maps in their order: scales (float32, lowest and highest), levels, the number that most patches have, and the numbers
    of the patches counted from there. Little-endian.

    Counted from the commonest number, maps of every sign and level are alike to a code that is made for all of them: it halves
    what they take.
    """
    parts = [quantise(*one[:2], levels=one[2]) for one in zip(maps, grids, levels, strict=True)]
    commonest = [np.zeros(len(one), dtype=np.uint8) for one in levels]
    numbers = [whole for whole, _ in parts]
    if counted:
        commonest = [_histogram(whole)[:, :MISSING].argmax(1).astype(np.uint8) for whole in numbers]
        numbers = [_counted_from(*one) for one in zip(numbers, commonest, strict=True)]
    scales = [one for _, one in parts]
    return b"".join([*map(_bytes, scales), *(one.tobytes() for some in (levels, commonest, numbers) for one in some)])


def _counted_from(whole: Whole, start: Whole) -> Whole:
    moved = (whole.astype(np.int16) - start[:, None, None]) % MISSING
    return np.where(whole == MISSING, MISSING, moved).astype(np.uint8)


def _bytes(values: Maps) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def deflate(content: bytes) -> bytes:
    """The content as a zlib stream, by whichever of two strategies makes it shorter: maps that look like noise hold no repeats
    worth searching for."""
    plain = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    first = plain.compress(content) + plain.flush()
    # Searching takes many times as long, and gains something only where a letter in many is not the commonest.
    if len(first) > len(content) / 5:
        return first
    return min(first, zlib.compress(content, 6), key=len)


def to_text(content: bytes) -> str:
    """The content in letters that no HTML parser reads as anything else."""
    return base64.b64encode(content).decode("ascii")
