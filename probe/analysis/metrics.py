"""How well a map of patches agrees with a mask: pointing, AUROC, energy, lift, average precision and NSS.

>>> target = Target.from_masks(layer.grid, masks)                    # masks (phrase, height, width), bool
>>> score(["pointing", "auroc"], maps, target)["auroc"]              # maps (..., phrase, row, col) -> (..., phrase)

Maps are never upsampled, except for ``pointing_bicubic``. With A the map, w the share of a patch that is image and m the
share that is image *and* mask, patches with w = 0 never count and never win. Where the input allows no answer the score is NaN,
never a silent 0 or patch (0, 0), and ``degenerate_reason`` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis import formulas
from probe.analysis.targets import Target
from probe.errors import InputError, did_you_mean

__all__ = [
    "METRICS",
    "REASONS",
    "Metric",
    "auroc",
    "average_precision",
    "degenerate_reason",
    "energy",
    "find_metric",
    "lift",
    "nss",
    "pointing",
    "pointing_bicubic",
    "score",
]

#: Why a score is NaN, in the order in which the reasons are looked for.
REASONS = {
    "unseen image": "no patch shows any of the image",
    "empty mask": "the mask is empty",
    "unseen mask": "the mask lies wholly in pixels that no patch covers",
    "full mask": "the mask covers all that the patches show, so there is nothing to tell it from",
    "not finite": "the map has NaN or infinite values in patches that show the image",
    "constant map": "the map is the same in every patch, so it points nowhere",
    "no positive value": "the map has no positive value in patches that show the image, so it has no energy",
    "no pixel": "no pixel of the processed picture has its centre in the image",
}


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed and what may be done to a map without changing it.

    Attributes
    ----------
    name : its name in ``METRICS`` and in tables.
    raw : (maps, target) -> scores, without the test for constant maps, of which it gives the expected value: ties are averaged.
    scale_invariant, offset_invariant : the score stays when the map is multiplied by a positive number, or a number is added.
    range : smallest and largest score.
    chance : the score of a uniform map, or None where it depends on the mask (see ``probe.analysis.controls.chance``).
    higher_is_better : what "best head" means.
    needs_negatives : a mask that covers everything cannot be scored.
    """

    name: str
    raw: Callable[[Tensor, Target], Tensor]
    scale_invariant: bool
    offset_invariant: bool
    range: tuple[float, float]
    chance: float | None = None
    higher_is_better: bool = True
    needs_negatives: bool = False

    def scorable(self, target: Target) -> Tensor:
        """(phrase,) bool: the mask allows an answer, whatever the map."""
        some = target.positive > 0
        return some & (target.negative > 0) if self.needs_negatives else some

    def __call__(self, maps: Tensor, target: Target, *, informative: Tensor | None = None) -> Tensor:
        """(..., phrase) float64 scores of (..., phrase, row, col) maps, NaN where there is no answer."""
        known = informative_maps(maps, target) if informative is None else informative
        return torch.where(known & self.scorable(target), self.raw(maps, target), nan)


def find_metric(name: str) -> Metric:
    """The metric of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in METRICS:
        raise InputError(f"No metric {name!r}; there are {', '.join(METRICS)}.{did_you_mean(str(name), METRICS)}")
    return METRICS[name]


def score(names: Sequence[str], maps: Tensor, target: Target) -> dict[str, Tensor]:
    """Name -> (..., phrase) float64 scores of (..., phrase, row, col) maps, NaN where there is no answer.

    Raises
    ------
    InputError
        If a metric is unknown or the maps have another grid than the target.
    """
    metrics = [find_metric(name) for name in names]
    if tuple(maps.shape[-2:]) != target.grid.shape:
        raise InputError(
            f"The maps have (row, col) {tuple(maps.shape[-2:])} but the masks' grid is {target.grid.shape}."
        )
    informative = informative_maps(maps, target)
    return {one.name: one(maps, target, informative=informative) for one in metrics}


def informative_maps(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) bool: the map is finite and not constant over the patches that show the image."""
    low, high = formulas.extremes(maps, target.weight)
    return torch.isfinite(low) & torch.isfinite(high) & (low < high)


def degenerate_reason(name: str, maps: Tensor, target: Target) -> NDArray[np.str_]:
    """(..., phrase) strings: the key in ``REASONS`` that tells why that metric is NaN, or "" where it is a number."""
    metric = find_metric(name)
    scores = metric(maps, target)
    low, high = formulas.extremes(maps, target.weight)
    area = torch.as_tensor(target.masks.any((-2, -1)), device=target.share.device)
    tests = {
        "unseen image": ~(target.weight > 0).any(),
        "empty mask": ~area,
        "unseen mask": target.positive <= 0,
        "full mask": (target.negative <= 0) if metric.needs_negatives else torch.tensor(False),
        "not finite": ~(torch.isfinite(low) & torch.isfinite(high)),
        "constant map": low == high,
        "no positive value": high <= 0,
        "no pixel": torch.tensor(True),
    }
    reason = np.full(tuple(scores.shape), "", dtype=f"<U{max(map(len, REASONS))}")
    for key in REASONS:
        applies = torch.broadcast_to(tests[key].to(scores.device), scores.shape) & scores.isnan()
        reason = np.where(applies.cpu().numpy() & (reason == ""), key, reason)
    return reason


def pointing(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) share of hits of the pointing game: 1 where the original pixel at the best patch's centre is in the mask.

    Where several patches share the largest value, the score is the share of them that hit: what a random choice among them would
    score on average. The first of them in reading order would favour the top left corner.

    References
    ----------
    Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018.
    """
    return METRICS["pointing"](maps, target)


def pointing_bicubic(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) share of hits where the point is the largest *pixel* of the map upsampled bicubically, as in the paper.

    The map is upsampled to the processed picture (half-pixel centres), its padding cropped, and the largest pixel mapped back to
    the original pixel that its centre falls in. Bicubic overshoot often leaves the best patch: read it beside ``pointing``, never
    instead of it. Equal pixels count on average, as there.

    References
    ----------
    Cao, Gui, Wang, Emergent Visual Grounding in Large Multimodal Models Without Grounding Supervision, arXiv 2410.08209.
    """
    return METRICS["pointing_bicubic"](maps, target)


def energy(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) share of the map's positive part that lies in the mask: sum(A+ m) / sum(A+ w), in [0, 1].

    References
    ----------
    Wang et al., Score-CAM, CVPR Workshops 2020 (energy-based pointing game), here by exact areas.
    """
    return METRICS["energy"](maps, target)


def lift(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) energy over the mask's share of the seen image: 1 is chance, whatever the mask's size or the padding."""
    return METRICS["lift"](maps, target)


def auroc(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) probability that a random point of the mask has a larger value than one outside it; ties count half.

    Mann-Whitney's U with mid-ranks, each patch with weight m among the positives and w - m among the negatives, in float64.
    """
    return METRICS["auroc"](maps, target)


def average_precision(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) mean precision over the mask as the threshold falls, in [0, 1]; patches of equal value enter together."""
    return METRICS["average_precision"](maps, target)


def nss(maps: Tensor, target: Target) -> Tensor:
    """(..., phrase) normalised scanpath saliency: mean z-score (by weights w) of the map inside the mask; 0 is chance.

    References
    ----------
    Peters et al., Components of bottom-up gaze allocation in natural images, Vision Research 2005.
    """
    return METRICS["nss"](maps, target)


#: Every metric by name.
METRICS = {
    one.name: one
    for one in (
        Metric("pointing", formulas.pointing, True, True, (0, 1)),
        Metric("pointing_bicubic", formulas.pointing_bicubic, True, True, (0, 1)),
        Metric("auroc", formulas.auroc, True, True, (0, 1), chance=0.5, needs_negatives=True),
        Metric("energy", formulas.energy, True, False, (0, 1)),
        Metric("lift", formulas.lift, True, False, (0, inf), chance=1.0),
        Metric("average_precision", formulas.average_precision, True, True, (0, 1)),
        Metric("nss", formulas.nss, True, True, (-inf, inf), chance=0.0),
    )
}
