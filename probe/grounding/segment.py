"""Attend-and-segment: where each phrase of an answer looks, as a point and as a mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis.formulas import processed_pixels
from probe.analysis.grids import mean_of_layers
from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.grounding.choices import Combine, PointKind, Reduction
from probe.grounding.phrases import Phrase, Wanted, given_phrases, noun_phrases, tokens_of_root
from probe.grounding.refiners import EncodedImage, Refiner, find_refiner, require_one_of
from probe.images import read_image
from probe.layout import PatchGrid

if TYPE_CHECKING:
    import os

    from PIL.Image import Image

__all__ = [
    "Segmentation",
    "SegmentedPhrase",
    "attend_and_segment",
    "bicubic_point",
    "patch_point",
    "recorded_noun_phrases",
    "token_maps",
]

Point = tuple[int, int]

#: A map whose values differ by less than this, relative to the attention that was subtracted, differs by rounding alone.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class SegmentedPhrase:
    """Where one phrase looks.

    Attributes
    ----------
    phrase : its words, characters, and who found it.
    map : (row, col) float64 on patches, minus the mean over the whole answer (Eq. 3).
    bicubic_point, patch_point : (row, col) of the largest pixel of the map upsampled as in the paper, and of the pixel at the
        centre of the best patch, both in the original image; None where the map points nowhere.
    point : the one of them that the refiner was asked with.
    mask : (height, width) bool in original pixels.
    score : the refiner's own; NaN where there is none.
    note : why there is no point, or why it says little; else empty.
    """

    phrase: Phrase
    map: Tensor
    bicubic_point: Point | None
    patch_point: Point | None
    point: Point | None
    mask: NDArray[np.bool_]
    score: float
    note: str = ""

    @property
    def text(self) -> str:
        """The words."""
        return self.phrase.text

    @property
    def span(self) -> tuple[int, int]:
        """Their characters (start, end) in the answer."""
        return self.phrase.start, self.phrase.end


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The phrases of an answer and the regions of the image that they look at.

    Attributes
    ----------
    phrases : one ``SegmentedPhrase`` each, in the order asked for.
    text : the answer.
    grid : where the patches lie in the original image.
    combine, reduction, point, refiner : how it was computed, by name.
    note : why there are no phrases, or some were left out; empty where there is nothing to say.
    """

    phrases: tuple[SegmentedPhrase, ...]
    text: str
    grid: PatchGrid
    combine: Combine
    reduction: Reduction
    point: PointKind
    refiner: str
    note: str = ""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the original image."""
        return self.grid.image_size

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(phrase, height, width)."""
        empty = np.zeros((0, *self.image_size), dtype=bool)
        return np.stack([one.mask for one in self.phrases]) if self.phrases else empty

    def to_json(self) -> dict[str, Any]:
        """Everything in plain types, the masks as COCO run lengths (size (height, width), compressed counts)."""
        return {
            "text": self.text,
            "image_size": list(self.image_size),
            "combine": self.combine,
            "reduction": self.reduction,
            "point": self.point,
            "refiner": self.refiner,
            "note": self.note,
            "phrases": [_plain(one) for one in self.phrases],
        }


def attend_and_segment(
    record: AttentionRecord,
    image: str | os.PathLike[str] | Image | np.ndarray,
    *,
    phrases: Iterable[Wanted | Phrase] | None = None,
    combine: Combine = "mean",
    reduction: Reduction = "all-heads",
    point: PointKind = "bicubic",
    refiner: str | Refiner = "threshold",
) -> Segmentation:
    """The region of the image that each phrase of an answer looks at: a ``Segmentation``.

    >>> run = probe.run(lmm, "photo.jpg", "Describe the image.")
    >>> probe.attend_and_segment(run.record, run.image).phrases[0].mask         # (height, width) bool

    The maps of a phrase's root word are averaged over layers and heads, the mean map over the *whole* answer is subtracted
    (Eq. 3), the largest value gives a point, and the refiner makes a mask of it.

    Parameters
    ----------
    record : of a whole answer, or a selection from one: ``token_mean`` travels with it.
    image : the image that was recorded.
    phrases : words (each time they are said), (words, occurrence), characters (start, end), or what ``noun_phrases`` found; by
        default the answer's noun phrases. Of phrases given by words or characters all tokens count, of others the root's.
    combine : how the maps of several tokens become one: "mean" (the paper's first release), "first" token, or "max".
    reduction : "all-heads" is the mean over layers and heads. "as-first-released" takes head H - 2 of every layer alone, as the
        first public code did by slicing the heads where it meant the query rows.
    point : "bicubic", the largest pixel of the map upsampled as in the paper, or "patch centre", the centre of the best patch.
    refiner : "threshold", "superpixels", "lab/sam", "sam:facebook/sam-vit-huge" or what else ``find_refiner`` knows, or an object
        of that protocol. It is asked once, with the points of all phrases. For many images give an object: a SAM that is named is
        loaded each time.

    Raises
    ------
    InputError
        If the answer has one token, where Eq. 3 leaves nothing; the image is not of the record's size; the record's layers differ
        in grid or view; a phrase is not in the answer; or an option is unknown.

    References
    ----------
    Cao, Gui, Wang, Emergent Visual Grounding in Large Multimodal Models Without Grounding Supervision, arXiv 2410.08209, Eq. 3.
    """
    for name, value, known in (
        ("combine", combine, Combine),
        ("reduction", reduction, Reduction),
        ("point", point, PointKind),
    ):
        require_one_of(name, value, get_args(known))
    maker = find_refiner(refiner)
    picture = read_image(image)
    if (picture.height, picture.width) != record.image_size:
        raise InputError(
            f"The image is {picture.height} x {picture.width} but the record was made of one of {record.image_size[0]} x "
            f"{record.image_size[1]} (height x width); give the image that was recorded."
        )
    maps, grid, level = token_maps(record, reduction=reduction)
    wanted, note = _wanted(record, phrases)
    looks = [
        _look(phrase, _combined(maps[list(tokens_of_root(record, phrase))], combine), grid, level=level, point=point)
        for phrase in wanted
    ]
    found = _masked(looks, grid, maker.encode(picture) if any(one.point for one in looks) else None)
    return Segmentation(tuple(found), record.text, grid, combine, reduction, point, maker.name, note)


def token_maps(record: AttentionRecord, *, reduction: Reduction = "all-heads") -> tuple[Tensor, PatchGrid, float]:
    """(token, row, col) float64 maps minus the mean over the whole answer, their grid, and the largest value subtracted.

    Raises
    ------
    InputError
        If the answer has one token, the layers differ in view, or heads that the reduction needs are not there.
    """
    if reduction == "as-first-released":
        for one in record.layers:
            if one.heads != tuple(range(len(one.heads))) or len(one.heads) < 2:
                raise InputError(
                    f"reduction='as-first-released' takes the last head but one of every layer, so it needs all heads and at "
                    f"least two; {one.name!r} has heads {one.heads} here. Give the record as it was made."
                )
        record = record.select(heads=-2)
    # Subtracting the mean commutes with averaging over heads and layers; in this order no second copy of the record is made.
    averaged = mean_of_layers(record.mean("timestep", "head"))
    level = float(averaged.layers[0].token_mean.abs().max())
    [single] = averaged.minus_mean().layers
    return single.values[0, 0].detach().cpu().double(), single.grid, level


def _wanted(record: AttentionRecord, phrases: Iterable[Wanted | Phrase] | None) -> tuple[tuple[Phrase, ...], str]:
    """The phrases to segment, and why there are none or fewer than the text has."""
    if phrases is not None:
        note = getattr(phrases, "note", "")
        given = given_phrases(record.text, phrases)
        return given, note or ("" if given else "No phrase was asked for.")
    return recorded_noun_phrases(record)


def recorded_noun_phrases(record: AttentionRecord, *, chunker: str = "auto") -> tuple[tuple[Phrase, ...], str]:
    """The noun phrases of the answer whose root words are among the recorded tokens, and why there are none or fewer; see
    ``noun_phrases``."""
    found = noun_phrases(record.text, chunker=chunker)
    spans = [(low, high) for low, high in record.spans if high > low]
    here = [one for one in found if any(max(low, one.root[0]) < min(high, one.root[1]) for low, high in spans)]
    gone = len(found) - len(here)
    notes = [found.note, f"{gone} noun phrases are not among the recorded tokens" if gone else ""]
    return tuple(here), " ".join(filter(None, notes))


def _combined(maps: Tensor, combine: Combine) -> Tensor:
    if combine == "first":
        return maps[0]
    return maps.mean(0) if combine == "mean" else maps.amax(0)


def _look(phrase: Phrase, one: Tensor, grid: PatchGrid, *, level: float, point: PointKind) -> SegmentedPhrase:
    """Where the phrase looks, with an empty mask for now."""
    seen = one[torch.as_tensor(grid.weight > 0)]
    flat = seen.numel() == 0 or not bool((seen.max() - seen.min()) > ROUNDING * level)
    bicubic, patch = (None, None) if flat else (bicubic_point(one, grid), patch_point(one, grid))
    used = bicubic if point == "bicubic" else patch
    note = ""
    if used is None:
        note = "the map is the same in every patch that shows the image, so it points nowhere"
    elif not bool(seen.max() > 0):
        note = "the phrase looks at no patch more than the average token does"
    nowhere = np.zeros(grid.image_size, dtype=bool)
    return SegmentedPhrase(phrase, one, bicubic, patch, used, nowhere, nan, note)


def _masked(looks: list[SegmentedPhrase], grid: PatchGrid, encoded: EncodedImage | None) -> list[SegmentedPhrase]:
    """The phrases with their masks: the refiner is asked once, with all points at a time."""
    if encoded is None:
        return looks
    pointing = [one for one in looks if one.point is not None]
    maps = _Upsampled([one.map for one in pointing], grid)
    masks, scores = encoded.prompt(points=[one.point for one in pointing], maps=maps)
    # What no patch saw cannot be what the phrase looked at.
    refined = iter(
        replace(one, mask=mask & grid.seen, score=float(score))
        for one, mask, score in zip(pointing, masks, scores, strict=True)
    )
    return [one if one.point is None else next(refined) for one in looks]


class _Upsampled(Sequence[NDArray[np.float32]]):
    """The maps of all phrases (phrase, height, width), each made when it is asked for: together they may be large."""

    def __init__(self, maps: list[Tensor], grid: PatchGrid) -> None:
        self.maps, self.grid = maps, grid

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.maps), *self.grid.image_size)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Upsampled(self.maps[index], self.grid)
        return self.grid.upsample(self.maps[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.stack(list(self)).astype(dtype) if self.maps else np.zeros(self.shape, dtype=dtype)


def bicubic_point(values: Tensor, grid: PatchGrid) -> Point | None:
    """(row, col) in the original image of the largest pixel of a (row, col) map upsampled to the processed picture.

    Padding never wins; None where no pixel of the processed picture shows the image.
    """
    rows, cols = processed_pixels(grid)
    if not (rows >= 0).any() or not (cols >= 0).any():
        return None
    size = (len(rows), len(cols))
    large = torch.nn.functional.interpolate(values.double()[None, None], size=size, mode="bicubic", align_corners=False)
    kept = large[0, 0].numpy()[rows >= 0][:, cols >= 0]
    row, col = np.unravel_index(int(np.argmax(kept)), kept.shape)
    return int(rows[rows >= 0][row]), int(cols[cols >= 0][col])


def patch_point(values: Tensor, grid: PatchGrid) -> Point | None:
    """(row, col) of the original pixel at the centre of the best patch that shows some of the image; of equals the first."""
    if not (grid.weight > 0).any():
        return None
    flat = np.where(grid.weight > 0, values.double().numpy(), -np.inf)
    row, col = grid.centres[np.unravel_index(int(np.argmax(flat)), flat.shape)]
    return int(row), int(col)


def _plain(one: SegmentedPhrase) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(one.mask.astype(np.uint8)))
    return {
        "text": one.text,
        "span": list(one.span),
        "root": list(one.phrase.root),
        "kind": one.phrase.kind,
        "chunker": one.phrase.chunker,
        "map": one.map.tolist(),
        "bicubic_point": one.bicubic_point,
        "patch_point": one.patch_point,
        "point": one.point,
        "score": one.score,
        "area": int(one.mask.sum()),
        "mask": {"size": list(one.mask.shape), "counts": encoded["counts"].decode("ascii")},
        "note": one.note,
    }
