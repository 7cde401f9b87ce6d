"""Where text and patches sit: key positions in the sequence, and patches in the pixels of the original image."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from probe.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["REST_PLACES", "Indices", "Layout", "PatchGrid", "View", "resolve_indices"]

#: Where the attention that does not fall on a view's own patches went, in the order of ``LayerAttention.rest``.
REST_PLACES = ("bos", "text", "other views")

#: How layers, heads, tokens or timesteps are chosen: all, one, a slice, or several; negative numbers count from the end.
Indices = SupportsIndex | slice | Sequence[int] | None


def resolve_indices(wanted: Indices, count: int, *, what: str) -> tuple[int, ...]:
    """The chosen positions as non-negative integers, in the order given; ``None`` means all ``count`` of them.

    Raises
    ------
    InputError
        If an index is out of range, repeated, not a whole number, or nothing is chosen.
    """
    if wanted is None:
        return tuple(range(count))
    if isinstance(wanted, slice):
        chosen = list(range(count))[wanted]
    else:
        try:
            listed = [wanted] if isinstance(wanted, SupportsIndex) else list(wanted)
            chosen = [operator.index(one) for one in listed]
        except TypeError:
            raise InputError(
                f"{what}={wanted!r} is not a whole number, a slice or a list of whole numbers between 0 and {count - 1}."
            ) from None
    outside = [one for one in chosen if not -count <= one < count]
    if outside:
        raise InputError(f"{what} {outside[0]} does not exist: there are {count}, numbered 0 to {count - 1}.")
    resolved = tuple(one % count for one in chosen)
    if not resolved:
        raise InputError(f"{what}={wanted!r} chooses none of the {count} there are; leave it out to take all.")
    if len(set(resolved)) < len(resolved):
        raise InputError(f"{what}={wanted!r} names the same one more than once.")
    return resolved


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The rectangle of the original image that each patch (row, col) covers.

    The edges are in pixels of the original image (after its EXIF orientation), with pixel ``i`` covering ``[i, i + 1)``. They
    may lie outside the image, where the picture was padded, and may leave part of it out, where it was cropped.

    Attributes
    ----------
    image_size : (height, width) of the original image in pixels.
    row_edges, col_edges : rows + 1 and cols + 1 increasing edges, in original pixels.
    patch_size : side of one patch in pixels of the *processed* image.
    """

    image_size: tuple[int, int]
    row_edges: tuple[float, ...]
    col_edges: tuple[float, ...]
    patch_size: int = 1

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise InputError(f"image_size (height, width) must be positive, found {self.image_size}.")
        for name, edges in (("row_edges", self.row_edges), ("col_edges", self.col_edges)):
            if len(edges) < 2 or not np.all(np.diff(edges) > 0) or not np.all(np.isfinite(edges)):
                raise InputError(f"{name} must be at least two finite, increasing pixel positions, found {edges}.")

    @classmethod
    def from_affine(
        cls,
        image_size: tuple[int, int],
        *,
        shape: tuple[int, int],
        patch_size: int,
        scale: tuple[float, float] = (1.0, 1.0),
        offset: tuple[float, float] = (0.0, 0.0),
    ) -> PatchGrid:
        """The grid of a processed image that is the original times ``scale`` (row, col), moved by ``offset`` (row, col).

        ``offset`` is where the original's origin lies in the processed frame, in processed pixels: positive under padding,
        negative under cropping. Edge r of a patch row is ``(r * patch_size - offset) / scale`` in original pixels.
        """
        edges = [
            tuple((np.arange(count + 1) * patch_size - moved) / scaled)
            for count, scaled, moved in zip(shape, scale, offset, strict=True)
        ]
        return cls(image_size, tuple(map(float, edges[0])), tuple(map(float, edges[1])), patch_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return len(self.row_edges) - 1, len(self.col_edges) - 1

    @cached_property
    def _cover(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of each patch row (col) that lies on each pixel row (col): (rows, height) and (cols, width)."""
        return tuple(  # type: ignore[return-value]
            _overlap(np.asarray(edges), np.arange(length + 1.0)) / np.diff(edges)[:, None]
            for edges, length in zip((self.row_edges, self.col_edges), self.image_size, strict=True)
        )

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """(row, col) share of each patch that is image, 0 in padding and 1 inside: ``w`` of the metrics."""
        rows, cols = self._cover
        weight = np.outer(rows.sum(1), cols.sum(1))
        # A sum of pixel shares may miss 0 or 1 by rounding, and "w = 0" must mean padding exactly.
        return np.where(weight < 1e-9, 0.0, np.minimum(weight, 1.0))

    def mask_share(self, mask: Any) -> NDArray[np.float64]:
        """(..., row, col) share of each patch inside the mask *and* the image, between 0 and ``weight``.

        Parameters
        ----------
        mask : (..., height, width) array, bool or in [0, 1], of the original image's size.

        Raises
        ------
        InputError
            If the mask's size is not the image's.
        """
        array = np.asarray(mask)
        if array.shape[-2:] != self.image_size or array.ndim < 2:
            raise InputError(
                f"The mask is {' x '.join(map(str, array.shape))} but the image is {self.image_size[0]} x "
                f"{self.image_size[1]} (height x width); a mask must have the original image's size."
            )
        rows, cols = self._cover
        return np.minimum(rows @ array.astype(np.float64) @ cols.T, self.weight)

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """(row, col, 4): top, left, bottom, right of each patch in original pixels, clipped to the image."""
        (height, width), (rows, cols) = self.image_size, self.shape
        row = np.clip(self.row_edges, 0, height)
        col = np.clip(self.col_edges, 0, width)
        boxes = np.empty((rows, cols, 4))
        boxes[..., 0], boxes[..., 2] = row[:-1, None], row[1:, None]
        boxes[..., 1], boxes[..., 3] = col[None, :-1], col[None, 1:]
        return boxes

    @cached_property
    def centres(self) -> NDArray[np.int64]:
        """(row, col, 2): the original pixel (row, col) at the centre of each patch's visible part."""
        middle = (self.boxes[..., :2] + self.boxes[..., 2:]) / 2
        return np.minimum(np.floor(middle), np.asarray(self.image_size) - 1).astype(np.int64)

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """(height, width): True where some patch covers the pixel's centre; the rest was cropped away, unseen."""
        inside = [
            (np.arange(length) + 0.5 >= edges[0]) & (np.arange(length) + 0.5 < edges[-1])
            for edges, length in zip((self.row_edges, self.col_edges), self.image_size, strict=True)
        ]
        return np.logical_and.outer(inside[0], inside[1])

    def upsample(self, values: Tensor, *, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """(..., height, width) float32: (row, col) maps sampled bicubically at the image's pixel centres, NaN where unseen.

        Half-pixel centres and replicated borders, the convention of ``interpolate(mode="bicubic", align_corners=False)``.

        Parameters
        ----------
        values : (..., row, col) tensor.
        size : (height, width) of the result; the image's own by default.
        """
        axes = []
        for edges, count, length in zip(
            (self.row_edges, self.col_edges), size or self.image_size, self.image_size, strict=True
        ):
            pixels = (torch.arange(count, dtype=torch.float64) + 0.5) * length / count
            axes.append((pixels - edges[0]) / (edges[-1] - edges[0]) * 2 - 1)
        where = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), dim=-1)
        sampled = torch.nn.functional.grid_sample(
            values.detach().cpu().double().reshape(1, -1, *self.shape),
            where[None],
            mode="bicubic",
            padding_mode="border",
            align_corners=False,
        )
        maps = sampled.reshape(*values.shape[:-2], *sampled.shape[-2:]).numpy()
        inside = [((axis >= -1) & (axis <= 1)).numpy() for axis in axes]
        return np.where(np.logical_and.outer(inside[0], inside[1]), maps, np.nan).astype(np.float32)

    def resampling_to(self, shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two matrices (new rows, rows) and (new cols, cols) that area-average a map to an even division of the image.

        Cells of the new grid that no patch covers are NaN.
        """
        evenly = [np.linspace(0, length, count + 1) for count, length in zip(shape, self.image_size, strict=True)]
        return self._resampling(evenly[0], evenly[1])

    def resampling_onto(self, other: PatchGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two matrices (other's rows, rows) and (other's cols, cols) that area-average a map to the patches of another grid.

        Patches of the other grid that none of this one covers are NaN.
        """
        return self._resampling(np.asarray(other.row_edges), np.asarray(other.col_edges))

    def _resampling(
        self, rows: NDArray[np.float64], cols: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        matrices = []
        for edges, wanted in ((self.row_edges, rows), (self.col_edges, cols)):
            overlap = _overlap(wanted, np.asarray(edges))
            with np.errstate(invalid="ignore"):
                matrices.append(overlap / overlap.sum(1, keepdims=True))
        return matrices[0], matrices[1]


def _overlap(wanted: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """(len(wanted) - 1, len(given) - 1) lengths that the intervals between two lists of edges have in common."""
    low = np.maximum(wanted[:-1, None], given[None, :-1])
    high = np.minimum(wanted[1:, None], given[None, 1:])
    return np.maximum(high - low, 0.0)


@dataclass(frozen=True, eq=False)
class View:
    """One picture that the model was shown: its name, its grid and the key positions of its patches, row by row."""

    name: str
    grid: PatchGrid
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        rows, cols = self.grid.shape
        if len(self.positions) != rows * cols:
            raise InputError(
                f"View {self.name!r} has {len(self.positions)} image tokens in the sequence but a grid of {rows} x {cols} "
                f"= {rows * cols} patches; the prompt must hold one placeholder for each patch."
            )


@dataclass(frozen=True, eq=False)
class Layout:
    """Where text and patches sit in one sequence of keys.

    Attributes
    ----------
    views : the pictures, in the order of the prompt.
    prompt_length : number of positions before the first answer token.
    padding : positions that hold padding and must receive no attention.
    bos : position of the first real token if it is text, else ``None``.
    other : image positions that belong to no grid, such as a class or newline token.
    """

    views: tuple[View, ...]
    prompt_length: int
    padding: tuple[int, ...] = ()
    bos: int | None = None
    other: tuple[int, ...] = ()

    @cached_property
    def image(self) -> tuple[int, ...]:
        """Every image position, in a grid or not, in ascending order."""
        return tuple(sorted({*self.other, *(place for view in self.views for place in view.positions)}))

    @classmethod
    def of_patches(cls, grid: PatchGrid, *, before: int = 0, after: int = 0) -> Layout:
        """The layout of one picture whose patches follow each other row by row, with that many other positions before and after.

        >>> grid = PatchGrid.from_affine((224, 224), shape=(14, 14), patch_size=16)
        >>> Layout.of_patches(grid, before=1)   # a class token and 14 x 14 patches
        """
        count = grid.shape[0] * grid.shape[1]
        view = View("image 0", grid, tuple(range(before, before + count)))
        return cls((view,), before + count + after, bos=0 if before else None)
