"""What stands beside every localisation number: what a map reaches that knows nothing of the phrase, or everything.

Each control gives (phrase,) scores of one image under one metric, in the same units as the maps that it is compared with.
"""

from __future__ import annotations

from math import nan

import numpy as np
import torch
from torch import Tensor

from probe.analysis.metrics import Metric
from probe.analysis.targets import Target
from probe.layout import PatchGrid

__all__ = [
    "CONTROLS",
    "centre_prior",
    "chance",
    "object_size_prior",
    "oracle_patch",
    "other_phrase",
    "paraphrase",
    "paraphrase_floor",
    "shuffled",
]

#: Name -> what it is, in the order of the tables.
CONTROLS = {
    "chance": "a patch chosen at random",
    "centre_prior": "always the centre of the image",
    "object_size_prior": "always the largest object of the image",
    "shuffled": "this map against the masks of the previous image",
    "other_phrase": "the map of another phrase of the image",
    "oracle_patch": "the best that patches allow",
}


def chance(metric: Metric, target: Target) -> Tensor:
    """(phrase,) expected score of a uniform map, i.e. of a random choice among the patches that show some of the image.

    Pointing: the share of these patches whose centre is in the mask. AUROC 1/2, lift 1 and the rest come from the metric's own
    formula on a constant map, in which ties are averaged.
    """
    uniform = torch.ones(target.grid.shape, dtype=torch.float64, device=target.share.device)
    return torch.where(metric.scorable(target), metric.raw(uniform, target), nan)


def centre_prior(grid: PatchGrid) -> Tensor:
    """(row, col) float64 map that falls linearly with the distance from the image's centre, 0 at the patch farthest from it.

    The distance is taken from the centre of each patch's visible part, in original pixels. It is the negative distance plus a
    constant, so that energy and lift, which read positive values alone, can be computed too.
    """
    boxes = grid.boxes
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    distance = np.hypot(*np.moveaxis(middle - np.asarray(grid.image_size) / 2, -1, 0))
    # Patches that mirror each other are equally far: rounding must not choose between them.
    distance = np.round(distance, 6)
    seen = grid.weight > 0
    return torch.from_numpy(np.where(seen, distance.max(initial=0.0, where=seen) - distance, 0.0))


def object_size_prior(target: Target) -> Tensor:
    """(row, col) map: the share of each patch inside the largest mask of the image, the same for every phrase.

    The largest counts in original pixels; of equally large ones the first given is taken. In an image with one phrase it is that
    phrase's own mask: read this control on images with several objects.
    """
    areas = target.masks.sum((-2, -1))
    return target.share[int(areas.argmax())] / target.weight.clamp(min=1e-12)


def oracle_patch(metric: Metric, target: Target) -> Tensor:
    """(phrase,) pointing: 1 if any patch's centre lies in the mask, else 0. Other metrics: the score of the map m / w."""
    if metric.name == "pointing":
        best = target.hit.flatten(-2).any(-1).double()
        return torch.where(metric.scorable(target), best, nan)
    return metric(target.share / target.weight.clamp(min=1e-12), target)


def other_phrase(metric: Metric, maps: Tensor, target: Target) -> Tensor:
    """(phrase,) mean score of the other phrases' maps against this phrase's mask; NaN where there is no other.

    Phrases with the very same mask ("circle", "red circle") name the same thing and are not others.

    Parameters
    ----------
    maps : (phrase, row, col), one for each mask of the target.
    """
    scores = metric(maps[:, None], target)  # (whose map, whose mask)
    content = [mask.tobytes() for mask in target.masks]
    same = torch.tensor([[one == two for two in content] for one in content], device=scores.device)
    return scores.masked_fill(same, nan).nanmean(0)


def shuffled(metric: Metric, maps: Tensor, target: Target) -> Tensor:
    """(phrase,) mean score of each map against every mask of another image, laid on this image's grid.

    Parameters
    ----------
    maps : (phrase, row, col) of this image.
    target : the other image's masks, resized to this image (``probe.analysis.targets.resize_masks``), on this image's grid.
    """
    return metric(maps[:, None], target).nanmean(-1)


def paraphrase(metric: Metric, maps: Tensor, reworded: Tensor, target: Target) -> Tensor:
    """(phrase,) how far the score moves when only the words around the phrase change: |score - score of the reworded map|.

    Same image, same meaning, same phrase, other words: whatever moves here is noise. It is a distance, never negative.

    Parameters
    ----------
    maps, reworded : (phrase, row, col) of the same phrases in the one and in the other wording.
    """
    return (metric(maps, target) - metric(reworded, target)).abs()


def paraphrase_floor(metric: Metric, maps: Tensor, reworded: Tensor, target: Target) -> Tensor:
    """(phrase,) the noise floor: what another phrase's map scores here, plus how far words alone move this phrase's score.

    ``other_phrase`` + ``paraphrase``. A map is called grounding only where its score lies above this: it must tell its phrase from
    the image's other phrases by more than a change of wording does. NaN in an image with one phrase: there is no other.
    """
    return other_phrase(metric, maps, target) + paraphrase(metric, maps, reworded, target)
