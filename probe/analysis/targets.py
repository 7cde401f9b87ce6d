"""What a map is scored against: the true masks of one image's phrases, seen through its patch grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.layout import PatchGrid
from probe.text import phrase_span

__all__ = ["Masks", "PhraseKey", "Target", "Targets", "in_step", "phrase_tokens", "read_masks", "resize_masks"]

#: A phrase, a phrase and which occurrence of it, or (start, end) characters of ``record.text``.
PhraseKey = str | tuple[str, int] | tuple[int, int]

#: The masks of one image: phrase -> (height, width) mask, or the same as pairs (which may name a phrase twice).
Masks = Mapping[Any, Any] | Sequence[tuple[Any, Any]]

#: A share of a patch below this is the rounding of the area sums, not a pixel: one pixel of 8,000 x 8,000 in one patch is 1.6e-8.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Target:
    """Masks as patches see them: the m and w of the metrics.

    Attributes
    ----------
    grid : where the patches lie in the original image.
    masks : (phrase, height, width) bool, in original pixels; or (height, width) for one mask, and so below.
    share : (phrase, row, col) float64 share of each patch inside the mask *and* the image, 0 <= share <= weight: ``m``.
    weight : (row, col) float64 share of each patch that is image, 0 in padding: ``w``.
    hit : (phrase, row, col) bool: the original pixel at the patch's centre lies in the mask; False in padding.
    """

    grid: PatchGrid
    masks: NDArray[np.bool_]
    share: Tensor
    weight: Tensor
    hit: Tensor

    @classmethod
    def from_masks(cls, grid: PatchGrid, masks: Any, *, device: torch.device | str | None = None) -> Target:
        """The target of (phrase, height, width) or (height, width) masks on a grid.

        Raises
        ------
        InputError
            If the masks are not of the image's size, or hold anything but 0 and 1.
        """
        given = as_mask(masks, "The mask")
        # Equal weights become exactly equal: a border has a handful of values, and AUROC ranks once for each.
        weight = np.round(grid.weight, 12)
        share = np.minimum(grid.mask_share(given), weight)
        # Snapped, so that "mask empty here" and "mask covers all of it" are exact and not a matter of rounding.
        share = np.where(share < ROUNDING, 0.0, np.where(weight - share < ROUNDING, weight, share))
        rows, cols = grid.centres[..., 0], grid.centres[..., 1]
        hit = given[..., rows, cols] & (weight > 0)
        tensors = (torch.as_tensor(one, device=device) for one in (share, weight, hit))
        return cls(grid, given, *tensors)

    @property
    def positive(self) -> Tensor:
        """(phrase,) patches' worth of mask: the sum of ``share``."""
        return self.share.sum((-2, -1))

    @property
    def negative(self) -> Tensor:
        """(phrase,) patches' worth of image outside the mask, exactly 0 where the mask covers all that is seen."""
        return (self.weight - self.share).sum((-2, -1))


class Targets:
    """The same masks on every grid that one record's layers have, each made when it is first asked for."""

    def __init__(self, masks: NDArray[np.bool_], *, device: torch.device | str | None = None) -> None:
        self.masks, self.device = masks, device
        self._made: dict[tuple[tuple[float, ...], tuple[float, ...]], Target] = {}

    def on(self, grid: PatchGrid) -> Target:
        """The target of the masks on this grid."""
        key = (grid.row_edges, grid.col_edges)
        if key not in self._made:
            self._made[key] = Target.from_masks(grid, self.masks, device=self.device)
        return self._made[key]


def as_mask(mask: Any, what: str) -> NDArray[np.bool_]:
    """The mask as a bool array; ``what`` names it in the error raised where it holds anything but 0 and 1."""
    array = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if array.dtype != np.bool_:
        if array.dtype.kind not in "uif" or not bool(((array == 0) | (array == 1)).all()):
            raise InputError(
                f"{what} holds values other than 0 and 1 (dtype {array.dtype}); give a bool mask, e.g. `labels == 3`."
            )
        array = array.astype(np.bool_)
    return array


def phrase_tokens(record: AttentionRecord, key: PhraseKey) -> tuple[int, ...]:
    """Positions of the record's tokens that spell a phrase, without copying the record.

    Parameters
    ----------
    key : a phrase, (phrase, occurrence), or (start, end) characters of ``record.text``.

    Raises
    ------
    InputError
        If the phrase is not in the text, or several times and no occurrence is named, or the key is none of these.
    """
    match key:
        case str():
            phrase, occurrence = key, None
        case (str() as phrase, occurrence):
            pass
        case (SupportsIndex() as start, SupportsIndex() as end):
            if not 0 <= int(start) < int(end) <= len(record.text):
                raise InputError(
                    f"Characters {start} to {end} are not a span of the text, which has {len(record.text)} characters; "
                    "give (start, end) with 0 <= start < end."
                )
            return record.tokens_of(int(start), int(end))
        case _:
            raise InputError(
                f"A mask's key is a phrase, (phrase, occurrence) or (start, end) characters, found {key!r}."
            )
    return record.tokens_of(*phrase_span(record.text, phrase, occurrence=occurrence))


def read_masks(record: AttentionRecord, masks: Masks) -> tuple[list[tuple[int, ...]], NDArray[np.bool_]]:
    """Token positions of each phrase, and the (phrase, height, width) masks in the same order.

    Raises
    ------
    InputError
        If a phrase is not in the record or a mask is not of the image's size.
    """
    try:
        pairs = [(key, mask) for key, mask in (masks.items() if isinstance(masks, Mapping) else masks)]
    except (TypeError, ValueError):
        raise InputError(
            f"The masks of an image are a mapping phrase -> mask or pairs of the two, found {type(masks).__name__}."
        ) from None
    tokens, read = [], []
    for key, mask in pairs:
        tokens.append(phrase_tokens(record, key))
        array = as_mask(mask, f"The mask of {key!r}")
        if array.shape != record.image_size:
            raise InputError(
                f"The mask of {key!r} is {' x '.join(map(str, array.shape))} but the image is {record.image_size[0]} x "
                f"{record.image_size[1]} (height x width); a mask must have the original image's size."
            )
        read.append(array)
    return tokens, np.stack(read) if read else np.zeros((0, *record.image_size), dtype=np.bool_)


def resize_masks(masks: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(phrase, height, width) masks at another size, each pixel taken from the nearest one (half-pixel centres)."""
    if masks.shape[-2:] == size:
        return masks
    rows, cols = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(size, masks.shape[-2:], strict=True)
    )
    # One axis after the other, which is faster than both at once.
    return masks.take(rows, -2).take(cols, -1)


def in_step(records: Iterable[Any], masks: Iterable[Any]) -> Iterator[tuple[int, AttentionRecord, Masks]]:
    """(index, record, masks) of each image, drawn one after the other from both."""
    if isinstance(records, AttentionRecord) or isinstance(masks, Mapping):
        raise InputError("records and masks are one entry for each image; for a single one give [record] and [masks].")
    end: Any = object()
    for index, (record, of_image) in enumerate(zip_longest(records, masks, fillvalue=end)):
        if record is end or of_image is end:
            short, long = ("records", "masks") if record is end else ("masks", "records")
            raise InputError(
                f"There are {index} {short} but more {long}: image {index} has none. Give one record and one mapping "
                "phrase -> mask for each image."
            )
        if not isinstance(record, AttentionRecord):
            raise InputError(f"Image {index}: expected an AttentionRecord, found {type(record).__name__}.")
        yield index, record, of_image
