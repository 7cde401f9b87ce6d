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

__all__ = ["FINEST", "MISSING", "deflate", "pack_heads", "pack_means", "quantise", "to_text"]

#: A patch without a value, where the grid of a mean reaches beyond a layer's own; and so the finest number of steps is one less.
MISSING, FINEST = 255, 254


def quantise(
    maps: NDArray[np.float32], grid: PatchGrid, *, levels: int = FINEST
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(map, row, col) whole numbers from 0 to ``levels`` and the (map, 2) lowest and highest values that these stand for.

    The error is at most half a step, (highest - lowest) / (2 levels) of that map. Patches that show nothing of the image become 0
    and do not stretch the scale; what is no number becomes ``MISSING``.

    Raises
    ------
    InputError
        If there are fewer than 1 or more than ``FINEST`` levels.
    """
    if not 1 <= levels <= FINEST:
        raise InputError(f"levels must be 1 to {FINEST}, found {levels}.")
    known = np.isfinite(maps) & (grid.weight > 0)
    low = np.min(maps, axis=(1, 2), initial=np.inf, where=known)
    high = np.max(maps, axis=(1, 2), initial=-np.inf, where=known)
    empty = low > high
    scales = np.stack([np.where(empty, 0, low), np.where(empty, 0, high)], axis=1).astype(np.float32)
    width = scales[:, 1] - scales[:, 0]
    step = np.where(width > 0, width, 1)[:, None, None] / levels
    with np.errstate(invalid="ignore"):
        rounded = np.rint((maps - scales[:, :1, None]) / step)
    whole = np.where(known, np.clip(rounded, 0, levels), np.where(np.isfinite(maps), 0, MISSING))
    return whole.astype(np.uint8), scales


def pack_means(sheet: Sheet, grids: Sequence[PatchGrid], *, exact: bool = False) -> bytes:
    """``overall`` in float32, then the layers' means: in float32 too, or their scales and then whole numbers; little-endian.

    Parameters
    ----------
    grids : the layers' own.
    """
    if exact:
        return b"".join(map(_bytes, (sheet.overall, *sheet.means)))
    return _bytes(sheet.overall) + _joined(
        [quantise(one[None], grid) for one, grid in zip(sheet.means, grids, strict=True)]
    )


def pack_heads(sheet: Sheet, grids: Sequence[PatchGrid], *, levels: int | None = FINEST) -> bytes:
    """The scales of all heads, layer by layer, then their maps in so many levels; or, for ``None``, the maps in float32."""
    if levels is None:
        return b"".join(map(_bytes, sheet.heads))
    return _joined([quantise(one, grid, levels=levels) for one, grid in zip(sheet.heads, grids, strict=True)])


def _joined(parts: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]) -> bytes:
    return b"".join(_bytes(scales) for _, scales in parts) + b"".join(whole.tobytes() for whole, _ in parts)


def _bytes(values: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def deflate(content: bytes) -> bytes:
    """The content as a zlib stream, by whichever of two strategies makes it shorter: maps that look like noise hold no repeats
    worth searching for."""
    plain = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    first = plain.compress(content) + plain.flush()
    # Searching takes ten times as long, and gains something only where much is alike.
    if len(first) > 0.27 * len(content):
        return first
    return min(first, zlib.compress(content, 6), key=len)


def to_text(content: bytes) -> str:
    """The content in letters that no HTML parser reads as anything else."""
    return base64.b64encode(content).decode("ascii")
