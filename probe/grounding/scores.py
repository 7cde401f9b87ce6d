"""How good the masks are: intersection over union with the true ones, with intervals and controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.analysis.stats import PoissonBootstrap
from probe.analysis.targets import as_mask, resize_masks
from probe.errors import InputError
from probe.grounding.segment import Segmentation

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURES", "iou", "score_masks"]

#: Name -> what it is, in the order of the table. The first three are results, the rest are what they must be held against.
MEASURES = {
    "iou": "IoU of the phrase's mask with the true one",
    "iou at 0.5": "share of the phrases with an IoU of at least 0.5",
    "point": "share of the phrases whose point lies in the true mask",
    "other phrase": "IoU of another phrase's mask, of the same image, with this phrase's true one",
    "shuffled": "IoU of this phrase's mask with the true masks of the previous image",
    "centre box": "IoU of a box in the image's centre, as large as the phrase's mask and shaped like the image",
    "oracle patches": "IoU of the patches that lie at least half in the true mask: what whole patches can reach",
}

Masks = NDArray[np.bool_]


def score_masks(
    segmentations: Iterable[Segmentation], masks: Iterable[Sequence[Any]], *, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """One row for each of ``MEASURES``: name, what, value, low, high, images, phrases.

    >>> examples = list(read_lab(limit=500))
    >>> records = [probe.run(lmm, one.image, "Describe the image.", answer=one.text).record for one in examples]
    >>> wanted = [[(part.start, part.end) for part in one.phrases] for one in examples]
    >>> found = (
    ...     probe.attend_and_segment(record, one.image, phrases=phrases, refiner="superpixels")
    ...     for record, one, phrases in zip(records, examples, wanted)
    ... )
    >>> score_masks(found, [[part.mask for part in one.phrases] for one in examples])

    Values are means over phrases, with percentile intervals by bootstrap over images. A phrase without a point has an empty mask
    and counts as 0; a control that an image does not allow (no other phrase, no previous image) leaves the image out.

    Parameters
    ----------
    segmentations : of one image each, streamed.
    masks : for each of them the true (height, width) masks of its phrases, in the same order.

    Raises
    ------
    InputError
        If an image has another number of phrases than of masks, a mask is empty or not of its size, or there is no image.
    """
    import pandas as pd

    sums = PoissonBootstrap(cells=len(MEASURES), seed=seed)
    before: Masks | None = None
    index = -1
    for index, (found, given) in enumerate(zip(segmentations, masks, strict=True)):
        truth = _truth(found, given, index)
        scores = _scores(found, truth, before)
        known = ~np.isnan(scores)
        sums.add(index, np.where(known, scores, 0).sum(1), known.sum(1).astype(np.float64))
        before = truth if len(truth) else before
    if index < 0:
        raise InputError(
            "There is no image to score; give at least one segmentation and the true masks of its phrases."
        )
    cells = sums.intervals(confidence=confidence)
    columns = {name: getattr(cells, name) for name in ("value", "low", "high", "images", "phrases")}
    return pd.DataFrame({"name": list(MEASURES), "what": list(MEASURES.values()), **columns})


def iou(first: Masks, second: Masks) -> NDArray[np.float64]:
    """(...,) intersection over union of (..., height, width) masks, NaN where both are empty."""
    both, either = (first & second).sum((-2, -1)), (first | second).sum((-2, -1))
    return np.where(either > 0, both / np.maximum(either, 1), nan)


def _truth(found: Segmentation, given: Sequence[Any], index: int) -> Masks:
    truth = [as_mask(one, f"True mask {number} of image {index}") for number, one in enumerate(given)]
    shapes = {one.shape for one in truth} - {found.image_size}
    if len(truth) != len(found.phrases) or shapes or not all(one.any() for one in truth):
        raise InputError(
            f"Image {index} has {len(found.phrases)} phrases of an image of {found.image_size} (height, width) pixels, and "
            f"{len(truth)} true masks of sizes {sorted({one.shape for one in truth})}, "
            f"{sum(not one.any() for one in truth)} of them empty; give one mask that is not empty, of the image's size, for each."
        )
    return np.stack(truth) if truth else np.zeros((0, *found.image_size), dtype=bool)


def _scores(found: Segmentation, truth: Masks, before: Masks | None) -> NDArray[np.float64]:
    """(measure, phrase) scores of one image, NaN where a control is not to be had."""
    if not len(truth):
        return np.zeros((len(MEASURES), 0))
    predicted = found.masks
    own = iou(predicted, truth)
    points = [one.point is not None and bool(mask[one.point]) for one, mask in zip(found.phrases, truth, strict=True)]
    pairs = iou(predicted[:, None], truth[None])  # (whose mask, whose truth)
    same = (truth[:, None] == truth[None]).all((-2, -1))  # "circle" and "red circle" name one thing
    others = _mean(np.where(same, nan, pairs), axis=0)
    shuffled = np.full(len(truth), nan)
    if before is not None:
        shuffled = _mean(iou(predicted[:, None], resize_masks(before, found.image_size)[None]), axis=1)
    boxes = np.stack([_centre_box(int(one.sum()), found.image_size) for one in predicted])
    oracle = np.stack([_patches(found, one) for one in truth])
    return np.stack(
        [own, own >= 0.5, np.array(points), others, shuffled, iou(boxes, truth), iou(oracle, truth)]
    ).astype(np.float64)


def _mean(values: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """The mean of what is not NaN, NaN where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    return np.where(count > 0, np.where(known, values, 0).sum(axis) / np.maximum(count, 1), nan)


def _centre_box(area: int, size: tuple[int, int]) -> Masks:
    share = (area / (size[0] * size[1])) ** 0.5
    mask = np.zeros(size, dtype=bool)
    low = [round(length * (1 - share) / 2) for length in size]
    high = [round(length * (1 + share) / 2) for length in size]
    mask[low[0] : high[0], low[1] : high[1]] = True
    return mask


def _patches(found: Segmentation, truth: Masks) -> Masks:
    """The pixels of the patches whose visible part lies at least half in the mask, or of the best one if there is none."""
    share = found.grid.mask_share(truth) / np.maximum(found.grid.weight, 1e-12)
    chosen = share >= min(0.5, max(float(share.max()), 1e-12))
    mask = np.zeros(found.image_size, dtype=bool)
    for top, left, bottom, right in np.rint(found.grid.boxes[chosen]).astype(int):
        mask[top:bottom, left:right] = True
    return mask
