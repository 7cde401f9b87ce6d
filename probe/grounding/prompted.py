"""How good a refiner's masks are when it is asked in the right place: what is lost in refining, and not in pointing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.analysis.stats import PoissonBootstrap
from probe.errors import InputError
from probe.grounding.refiners import Refiner, bounding_box
from probe.grounding.scores import iou
from probe.images import read_image

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROMPTS", "score_prompts"]

Masks = NDArray[np.bool_]

#: Name -> what the refiner is asked with, in the order of the table.
PROMPTS = {
    "centre": "the pixel of the true mask that lies deepest in it",
    "random point": "a pixel of the true mask, drawn at random",
    "box": "the box round the true mask",
}


def score_prompts(
    refiner: Refiner, examples: Iterable[Any], *, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """One row for each of ``PROMPTS`` and choice: prompt, choice, value, low, high, images, phrases.

    >>> score_prompts(find_refiner("lab/sam"), read_lab(limit=500))

    Values are mean IoUs over phrases, with percentile intervals by bootstrap over images. Choice "taken" is the mask that the
    refiner gives; "oracle", of one that has ``candidates`` as a SAM has, is the best of them, chosen by the truth: a bound, no
    result.

    Parameters
    ----------
    refiner : one that needs no maps.
    examples : with an ``image`` and ``phrases`` whose ``mask`` (height, width) is not empty; streamed.
    seed : of the random points and the bootstrap.

    Raises
    ------
    InputError
        If there is no example with a phrase, a mask is empty, or the refiner needs maps.
    """
    import pandas as pd

    cells = [(prompt, choice) for prompt in PROMPTS for choice in ("taken", "oracle")]
    sums = PoissonBootstrap(cells=len(cells), seed=seed)
    phrases = 0
    for index, example in enumerate(examples):
        truth = [np.asarray(one.mask) for one in example.phrases]
        if not all(mask.any() for mask in truth):
            raise InputError(f"Example {index} has a phrase whose true mask is empty; leave it out.")
        if not truth:
            continue
        phrases += len(truth)
        scores = _scores(refiner, read_image(example.image), np.stack(truth), np.random.default_rng([seed, index]))
        known = ~np.isnan(scores)
        sums.add(index, np.where(known, scores, 0).sum(1), known.sum(1).astype(np.float64))
    if not phrases:
        raise InputError("There is no phrase to ask about; give at least one example with a phrase and its true mask.")
    found = sums.intervals(confidence=confidence)
    columns = {name: getattr(found, name) for name in ("value", "low", "high", "images", "phrases")}
    frame = pd.DataFrame({"prompt": [one for one, _ in cells], "choice": [one for _, one in cells], **columns})
    return frame[frame["images"] > 0].reset_index(drop=True)


def _scores(refiner: Refiner, image: Any, truth: Masks, rng: np.random.Generator) -> NDArray[np.float64]:
    """(prompt and choice, phrase) IoUs of one image, NaN where the refiner has no candidates."""
    encoded = refiner.encode(image)
    asked: dict[str, dict[str, Any]] = {
        "centre": {"points": [_deepest(mask) for mask in truth]},
        "random point": {"points": [_drawn(mask, rng) for mask in truth]},
        "box": {"boxes": [bounding_box(mask) for mask in truth]},
    }
    rows = []
    for prompt in PROMPTS:
        rows.append(iou(encoded.prompt(**asked[prompt])[0], truth))
        best = np.full(len(truth), np.nan)
        if hasattr(encoded, "candidates"):
            best = iou(encoded.candidates(**asked[prompt])[0], truth[:, None]).max(1)
        rows.append(best)
    return np.stack(rows)


def _deepest(mask: Masks) -> tuple[int, int]:
    """The (row, col) that is farthest from what is not mask, beyond the image's edge included; of equals the first."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(row), int(col)


def _drawn(mask: Masks, rng: np.random.Generator) -> tuple[int, int]:
    row, col = rng.choice(np.argwhere(mask))
    return int(row), int(col)
