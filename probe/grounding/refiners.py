"""From a point to a mask: what finds the region of the image that a point lies in.

>>> encoded = find_refiner("superpixels").encode(image)
>>> masks, scores = encoded.prompt(points=[(120, 88)])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from probe.analysis.targets import resize_masks
from probe.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "REFINERS",
    "EncodedImage",
    "Refined",
    "Refiner",
    "SuperpixelRefiner",
    "ThresholdRefiner",
    "bounding_box",
    "find_refiner",
    "read_prompts",
    "require_maps",
    "require_one_of",
    "stack",
]

Threshold = Literal["mean", "otsu", "quantile"]
Method = Literal["slic", "felzenszwalb"]
Refined = tuple[NDArray[np.bool_], NDArray[np.float64]]


class EncodedImage(Protocol):
    """An image that a refiner has looked at once and can be asked about many times."""

    def prompt(self, *, points: Any = None, boxes: Any = None, maps: Any = None) -> Refined:
        """(prompt, height, width) bool masks and (prompt,) scores, in original pixels; higher is better within one refiner.

        Parameters
        ----------
        points : (prompt, 2) row and col of a pixel inside the region.
        boxes : (prompt, 4) top, left, bottom and right around it, in pixels.
        maps : (prompt, height, width) where the phrase looks, NaN where unseen; for refiners that use it.

        Raises
        ------
        InputError
            If neither points nor boxes are given, they are outside the image, or the refiner needs maps and has none.
        """
        ...


@runtime_checkable
class Refiner(Protocol):
    """What makes masks; ``name`` is how results call it, with its settings."""

    name: str

    def encode(self, image: Image) -> EncodedImage:
        """The image, ready to be asked about."""
        ...


class ThresholdRefiner:
    """The map itself, cut at a named threshold: the connected part that holds the point.

    Parameters
    ----------
    threshold : "otsu", "mean" of the map, or "quantile", which keeps the highest tenth of the pixels seen. Where the point lies
        lower, it is cut at the point's own value, so that the mask always holds its point.

    Values below zero, where the phrase looks less than the average token, count as zero: else a place that is avoided would be
    what the threshold tells from all the rest.

    The score is the share of the map's positive values that the mask holds.
    """

    def __init__(self, threshold: Threshold = "otsu", *, quantile: float = 0.9) -> None:
        require_one_of("threshold", threshold, get_args(Threshold))
        if not 0 < quantile < 1:
            raise InputError(f"quantile must lie between 0 and 1, for example 0.9; found {quantile}.")
        self.threshold, self.quantile = threshold, quantile
        self.name = f"threshold ({threshold}{f' {quantile:g}' if threshold == 'quantile' else ''})"

    def encode(self, image: Image) -> EncodedImage:
        return _Thresholded(self, (image.height, image.width))

    def level(self, seen: NDArray[np.float64]) -> float:
        """The threshold of the values that are seen, none of them below zero."""
        from skimage.filters import threshold_otsu

        if self.threshold == "quantile":
            return float(np.quantile(seen, self.quantile))
        return float(seen.mean() if self.threshold == "mean" else threshold_otsu(seen))

    def cut(self, values: NDArray[np.float64], where: tuple[int, ...]) -> NDArray[np.bool_]:
        """The mask (height, width) of a map, cut at a (row, col) or inside a (top, left, bottom, right)."""
        if not np.isfinite(values).any():
            return np.zeros(values.shape, dtype=bool)
        values = np.maximum(values, 0)  # NaN, unseen, stays NaN
        level = self.level(values[np.isfinite(values)])
        if len(where) == 4:
            mask = np.zeros(values.shape, dtype=bool)
            box = np.s_[where[0] : where[2], where[1] : where[3]]
            mask[box] = (values[box] >= level) & (values[box] > 0)
            return mask
        where = _nearest(np.isfinite(values), where)
        above = (values >= min(level, float(values[where]))) & (values > 0)
        above[where] = True  # also where the map has nothing positive
        return _part(above, where)


class _Thresholded:
    def __init__(self, refiner: ThresholdRefiner, size: tuple[int, int]) -> None:
        self.refiner, self.size = refiner, size

    def prompt(self, *, points: Any = None, boxes: Any = None, maps: Any = None) -> Refined:
        asked = read_prompts(points, boxes, self.size)
        require_maps(maps, (len(asked), *self.size), "The threshold refiner")
        found = []
        for one, where in zip(maps, asked, strict=True):
            values = np.asarray(one, dtype=np.float64)
            mask, positive = self.refiner.cut(values, where), np.maximum(np.nan_to_num(values), 0)
            total = float(positive.sum())
            found.append((mask, float(positive[mask].sum()) / total if total else np.nan))
        return stack(found, self.size)


class SuperpixelRefiner:
    """Superpixels of the image alone: the one that holds the point, grown over neighbours of about the same colour.

    Parameters
    ----------
    method : "slic" or "felzenszwalb", as in scikit-image.
    tolerance : neighbours whose mean colours are closer than this in CIELAB belong together; about 2 is just visible.
    longest : the image is reduced to this longest side in pixels before it is cut up.

    The score is the colour difference between the mask and what borders on it, 1 for black on white.
    """

    def __init__(self, method: Method = "slic", *, tolerance: float = 10.0, longest: int = 512) -> None:
        require_one_of("method", method, get_args(Method))
        if not tolerance >= 0 or longest < 8:
            raise InputError(
                f"tolerance must be 0 or more and longest at least 8 pixels, found {tolerance} and {longest}."
            )
        self.method, self.tolerance, self.longest = method, tolerance, longest
        self.name = f"superpixels ({method})"

    def encode(self, image: Image) -> EncodedImage:
        from skimage.color import rgb2lab
        from skimage.graph import cut_threshold, rag_mean_color
        from skimage.segmentation import felzenszwalb, slic

        small = image.convert("RGB")
        small.thumbnail((self.longest, self.longest))
        pixels = np.asarray(small)
        colours = rgb2lab(pixels)
        if self.method == "slic":
            pieces = slic(pixels, n_segments=200, compactness=10, start_label=0)
        else:
            pieces = felzenszwalb(pixels, scale=100, sigma=0.5, min_size=max(20, _smallest_piece(pixels.shape)))
        regions = pieces
        if pieces.max() > 0:  # a graph of one piece has no edge to cut
            regions = cut_threshold(pieces, rag_mean_color(colours, pieces), self.tolerance)
        return _Superpixels(regions, colours, (image.height, image.width))


def _smallest_piece(shape: Sequence[int]) -> int:
    """The smallest superpixel worth its own region: a two-thousandth of the picture."""
    return shape[0] * shape[1] // 2000


class _Superpixels:
    def __init__(self, regions: NDArray[np.int64], colours: NDArray[np.float64], size: tuple[int, int]) -> None:
        self.regions, self.colours, self.size = regions, colours, size

    def prompt(self, *, points: Any = None, boxes: Any = None, maps: Any = None) -> Refined:
        scale = np.asarray(self.regions.shape) / np.asarray(self.size)
        found = []
        for where in read_prompts(points, boxes, self.size):
            if len(where) == 4:
                mask = self._within(np.asarray(where) * np.tile(scale, 2))
            else:
                row, col = np.floor((np.asarray(where) + 0.5) * scale).astype(int)
                mask = _part(self.regions == self.regions[row, col], (row, col))
            found.append((resize_masks(mask[None], self.size)[0], self._contrast(mask)))
        return stack(found, self.size)

    def _within(self, box: NDArray[np.float64]) -> NDArray[np.bool_]:
        """All regions of which at least half lies in the box."""
        top, left, bottom, right = np.rint(box).astype(int)
        inside = np.zeros(self.regions.shape, dtype=bool)
        inside[top : max(bottom, top + 1), left : max(right, left + 1)] = True
        count = int(self.regions.max()) + 1
        areas = np.bincount(self.regions.ravel(), minlength=count)
        held = np.bincount(self.regions[inside], minlength=count)
        return (2 * held >= np.maximum(areas, 1))[self.regions]

    def _contrast(self, mask: NDArray[np.bool_]) -> float:
        from skimage.morphology import dilation, footprint_rectangle

        ring = dilation(mask, footprint_rectangle((7, 7))) & ~mask
        if not ring.any() or not mask.any():
            return float("nan")
        return float(np.linalg.norm(self.colours[mask].mean(0) - self.colours[ring].mean(0)) / 100)


#: Name at the shell and in Python -> what makes the refiner. Beside them there are sam:NAME and sam-hq:NAME.
REFINERS: dict[str, Callable[[], Refiner]] = {"threshold": ThresholdRefiner, "superpixels": SuperpixelRefiner}
#: What a name of a SAM begins with.
SAMS = ("sam", "sam-hq", "lab/sam")


def find_refiner(refiner: str | Refiner, *, device: str | None = None) -> Refiner:
    """The refiner of that name, or the one given.

    Parameters
    ----------
    refiner : a name in ``REFINERS``; "lab/sam"; or "sam:" or "sam-hq:" and a hub name or a folder: "sam:facebook/sam-vit-huge".
        After any SAM ":last", ":best" or ":smallest" says which of its masks is taken. It is loaded at once: for many images, find
        it once and give the object.
    device : where a SAM runs; by default on a GPU if there is one.

    Raises
    ------
    InputError
        If there is none of that name.
    ModelError
        If a SAM cannot be found or loaded.
    """
    if isinstance(refiner, str):
        if refiner.partition(":")[0] in SAMS:
            from probe.grounding.sam import find_sam

            return find_sam(refiner, device=device)
        if refiner not in REFINERS:
            known = (*REFINERS, "lab/sam", "sam:NAME", "sam-hq:NAME")
            raise InputError(
                f"There is no refiner {refiner!r}; there are {', '.join(known)}.{did_you_mean(refiner, known)}"
            )
        return REFINERS[refiner]()
    if not isinstance(refiner, Refiner):
        raise InputError(
            f"A refiner is a name or an object with `name` and `encode(image)`, found {type(refiner).__name__}."
        )
    return refiner


def _nearest(seen: NDArray[np.bool_], point: tuple[int, ...]) -> tuple[int, ...]:
    """The pixel seen that is nearest to the point: at the edge of a crop, a point may lie half a pixel outside of it."""
    if seen[point]:
        return point
    places = np.argwhere(seen)
    return tuple(map(int, places[np.argmin(((places - point) ** 2).sum(1))]))


def _part(mask: NDArray[np.bool_], point: tuple[int, ...]) -> NDArray[np.bool_]:
    """The connected part of the mask (pixels that share a side) that holds the point."""
    from skimage.measure import label

    parts = label(mask, connectivity=1)
    return parts == parts[tuple(point)]


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a mask (height, width) that is not empty; the last two are the first behind it."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1


def read_prompts(points: Any, boxes: Any, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Each prompt as whole (row, col), or (top, left, bottom, right); certain to lie in an image of this (height, width)."""
    if (points is None) == (boxes is None):
        raise InputError("A refiner is asked with points=[(row, col), ...] or boxes=[(top, left, bottom, right), ...].")
    what, length, given = ("point", 2, points) if boxes is None else ("box", 4, boxes)
    asked = [tuple(map(int, np.rint(np.asarray(one, dtype=float)).ravel())) for one in given]
    limits = np.asarray(size) - 1 if length == 2 else np.asarray(size)
    for one in asked:
        corners = np.reshape(one, (-1, 2))
        if len(one) != length or (corners < 0).any() or (corners > limits).any():
            raise InputError(
                f"The {what} {one} does not lie in the image of {size[0]} x {size[1]} (height x width) pixels; rows come first."
            )
        if length == 4 and not (one[0] < one[2] and one[1] < one[3]):
            raise InputError(f"The box {one} holds no pixel; give (top, left, bottom, right), top above bottom.")
    return asked


def stack(found: list[tuple[NDArray[np.bool_], float]], size: tuple[int, int]) -> Refined:
    """The masks and scores of all prompts, also of none, in an image of this (height, width)."""
    masks = np.stack([mask for mask, _ in found]) if found else np.zeros((0, *size), dtype=bool)
    return masks, np.array([score for _, score in found], dtype=np.float64)


def require_maps(maps: Any, shape: tuple[int, ...], who: str) -> None:
    """Nothing, if there is a map (height, width) for each prompt."""
    if maps is None or np.shape(maps) != shape:
        raise InputError(
            f"{who} reads maps: {shape[0]} prompts need maps of shape {shape} (prompt, height, width), found "
            f"{'none' if maps is None else np.shape(maps)}."
        )


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Nothing, if the option has one of the known values."""
    if value not in known:
        raise InputError(
            f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}.{did_you_mean(str(value), known)}"
        )
