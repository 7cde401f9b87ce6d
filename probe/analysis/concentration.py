"""How concentrated a map is, whatever the truth: entropy, Gini, one patch's share of the variance, and where the best patch lies.

>>> weight = torch.as_tensor(layer.grid.weight)
>>> concentration(maps, weight)["entropy"]                           # maps (..., row, col) -> (...)
>>> peaks(maps, weight, mean_attention)["border_share"]

A map that holds most of its variance in one patch, or whose best patch always lies on the border, says little about a phrase
however well it scores. Patches count with w, the share of each that is image; those with w = 0 never count and never win. A map
that allows no answer gives NaN:

- all four: no patch shows the image, or a patch that does holds NaN or infinity;
- entropy and Gini, which read the positive part A+ as an amount: nothing is positive;
- top-1 share and argmax share: the map is constant, so it has no variance and points nowhere.
"""

from __future__ import annotations

from math import inf, nan

import numpy as np
import torch
from torch import Tensor

from probe.errors import InputError

__all__ = [
    "PEAKS",
    "argmax_share",
    "border_cells",
    "concentration",
    "entropy",
    "gini",
    "peaks",
    "sink_cells",
    "spatial_entropy",
    "top1_share",
]

#: What stands beside every score, by its name in tables.
PEAKS = {
    "top1_share": "share of a map's variance in one patch",
    "border_share": "share of maps whose best patch lies on the border",
    "sink_share": "share of maps whose best patch is a sink, which every word of the answer looks at",
}

#: A patch is a sink if the average word looks at it this many times as much as at the median patch.
SINK_TIMES = 10.0


def concentration(maps: Tensor, weight: Tensor, mean_attention: Tensor | None = None) -> dict[str, Tensor]:
    """Name -> (...) float64 diagnostics of (..., row, col) maps: entropy, gini, and those of ``peaks``."""
    return {"entropy": entropy(maps, weight), "gini": gini(maps, weight)} | peaks(maps, weight, mean_attention)


def peaks(maps: Tensor, weight: Tensor, mean_attention: Tensor | None) -> dict[str, Tensor]:
    """Each of ``PEAKS`` -> (...) float64 for (..., row, col) maps: whether they peak in one patch, and where.

    Parameters
    ----------
    weight : (row, col) share of each patch that is image.
    mean_attention : (..., row, col) attention of the average word of the answer, from which ``sink_cells`` are read; it broadcasts
        with the maps. None where there is none, which makes ``sink_share`` NaN.
    """
    border = border_cells(weight)
    sinks = border if mean_attention is None else sink_cells(mean_attention, weight)
    cells = torch.stack(torch.broadcast_tensors(border.to(sinks.device), sinks), dim=-1)
    on_border, in_sinks = _argmax_shares(maps, weight, cells).unbind(-1)
    return {
        "top1_share": top1_share(maps, weight),
        "border_share": on_border,
        "sink_share": torch.full_like(in_sinks, nan) if mean_attention is None else in_sinks,
    }


def entropy(maps: Tensor, weight: Tensor) -> Tensor:
    """(...) entropy in nats of the map's positive part as a density over the seen image.

    H = -sum p ln(p / w) with p = w A+ / sum(w A+). exp(H) is the number of whole patches that it spreads over: a uniform map gives
    ln(sum w), one whole patch gives 0, and a patch that is image in part counts as that part.
    """
    amount, known = _amounts(maps, weight)
    share = amount / amount.sum(-1, keepdim=True)
    area = _flat(weight)
    terms = torch.where(share > 0, share * (share / area.clamp(min=1e-300)).log(), 0.0)
    return torch.where(known, -terms.sum(-1), nan)


def gini(maps: Tensor, weight: Tensor) -> Tensor:
    """(...) Gini coefficient of the map's positive part: 0 for a uniform map, towards 1 where one small patch holds all.

    sum w_i w_j |A+_i - A+_j| / (2 (sum w) (sum w A+)), by the Lorenz curve.
    """
    amount, known = _amounts(maps, weight)
    area = _flat(weight).expand_as(amount)
    order = torch.where(area > 0, amount / area.clamp(min=1e-300), 0.0).argsort(-1)
    amount, area = amount.gather(-1, order), area.gather(-1, order)
    reached = amount.cumsum(-1)
    below = (area * (2 * reached - amount)).sum(-1) / (area.sum(-1) * reached[..., -1])
    return torch.where(known, 1 - below, nan)


def top1_share(maps: Tensor, weight: Tensor) -> Tensor:
    """(...) share of the map's spatial variance that one patch holds: 1/n where n patches hold it alike.

    max of w (A - mean)^2 / sum of w (A - mean)^2, with the mean weighted by w. No scale and no offset changes it.
    """
    values, area = _seen(maps, weight)
    if not len(area):
        return torch.full(maps.shape[:-2], nan, dtype=torch.float64)
    # Off the first patch and by its range, a map keeps all its digits in single precision; a constant one becomes 0 / 0.
    width = values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True)
    values = (values - values[..., :1]).div_(width)
    area = area.to(values)
    squares = values.sub_((values @ area)[..., None] / area.sum()).square_()
    largest = squares.amax(-1) if bool((area == 1).all()) else (squares * area).amax(-1)
    return (largest / (squares @ area)).double()


def argmax_share(maps: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """(...) 1 where the map's best patch is one of the cells, else 0; of equal best patches the share that is.

    Its mean over maps is the share of argmaxes there; a random choice among patches would give cells / seen patches.

    Parameters
    ----------
    cells : (row, col) bool, such as ``border_cells(weight)`` or ``sink_cells(...)``.
    """
    if cells.shape != weight.shape:
        raise InputError(f"cells have (row, col) {tuple(cells.shape)} but the weight has {tuple(weight.shape)}.")
    return _argmax_shares(maps, weight, cells[..., None])[..., 0]


def _argmax_shares(maps: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """(..., kind) float64 ``argmax_share`` of several (..., row, col, kind) bool cells at once."""
    values, area = _seen(maps, weight)
    if not len(area):
        return torch.full((*maps.shape[:-2], cells.shape[-1]), nan, dtype=torch.float64)
    low, high = values.amin(-1), values.amax(-1)
    best = torch.empty_like(values)
    torch.eq(values, high[..., None], out=best)
    columns = torch.cat([torch.ones_like(cells[..., :1]), cells], dim=-1).flatten(-3, -2).to(best)
    columns = columns if len(area) == weight.numel() else columns[..., (weight > 0).flatten().to(best.device), :]
    found = torch.einsum("...p,...pk->...k", best, columns).double()
    told = (low < high) & low.isfinite() & high.isfinite()
    return torch.where(told[..., None], found[..., 1:] / found[..., :1], nan)


def border_cells(weight: Tensor) -> Tensor:
    """(row, col) bool: the outermost ring of patches that show some of the image; padding is no border."""
    seen = torch.nn.functional.pad(weight > 0, (1, 1, 1, 1))
    inner = seen[:-2, 1:-1] & seen[2:, 1:-1] & seen[1:-1, :-2] & seen[1:-1, 2:]
    return (weight > 0) & ~inner


def sink_cells(mean_map: Tensor, weight: Tensor, *, times: float = SINK_TIMES) -> Tensor:
    """(..., row, col) bool: patches that the average word looks at more than ``times`` as much as at the median patch.

    Read from the record alone. The definition by hidden-state dimensions (Kang et al., ICLR 2025) needs the model.

    Parameters
    ----------
    mean_map : (..., row, col) attention, mean over all words of the answer: a layer's ``token_mean``, averaged over its heads.
    """
    values, area = _seen(mean_map, weight)
    if not len(area):
        return torch.zeros_like(mean_map, dtype=torch.bool)
    middle = values.median(-1).values[..., None, None]
    return (mean_map > times * middle) & (weight > 0).to(mean_map.device)


def spatial_entropy(maps: Tensor, weight: Tensor, *, epsilon: float = 1e-3, relative: bool = False) -> Tensor:
    """(...) entropy in nats of how a map is split into separate regions: 0 for one region, ln n for n of equal mass.

    With B = max(A - mean A, 0), the regions are the 8-connected components of B > epsilon, and H = -sum p ln p over their shares p
    of the mass of B. A map without any region gives infinity; one with NaN or infinity in a patch that shows the image, NaN.

    Parameters
    ----------
    epsilon : below this a patch belongs to no region. The constant of the paper, 0.001, depends on the map's scale: attention over
        many patches may lie below it everywhere.
    relative : epsilon counts in means of the map, so that no scale changes the result; of a map whose mean is not positive there is
        no region.

    References
    ----------
    Kang, Kim, Kim, Hwang, Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding, CVPR 2025.
    """
    from skimage.measure import label

    if not epsilon >= 0:
        raise InputError(f"epsilon must be 0 or more, found {epsilon}.")
    values, area, known = _checked(maps, weight)
    shape, seen = weight.shape, (area > 0).cpu().numpy().reshape(weight.shape)
    found = np.full(known.numel(), nan)
    flat = values.reshape(-1, *shape).cpu().numpy()
    for i in np.flatnonzero(known.flatten().cpu().numpy()):
        mean = flat[i][seen].mean()
        above = np.where(seen, np.maximum(flat[i] - mean, 0), 0.0)
        least = epsilon if not relative else epsilon * mean if mean > 0 else inf
        regions = label(above > least, connectivity=2)
        mass = np.bincount(regions.ravel(), above.ravel())[1:]
        share = mass / mass.sum()
        found[i] = -(share * np.log(share)).sum() if len(mass) else inf
    return torch.from_numpy(found).reshape(known.shape)


def _flat(weight: Tensor) -> Tensor:
    return weight.double().flatten()


def _seen(maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., patch) values of the patches that show the image, and their (patch,) weights."""
    _require_grid(maps, weight)
    area, values = _flat(weight).to(maps.device), maps.flatten(-2)
    values = values if values.is_floating_point() and values.element_size() >= 4 else values.float()
    seen = area > 0
    return (values, area) if bool(seen.all()) else (values[..., seen], area[seen])


def _require_grid(maps: Tensor, weight: Tensor) -> None:
    if maps.shape[-2:] != weight.shape:
        raise InputError(
            f"The maps have (row, col) {tuple(maps.shape[-2:])} but the weight has {tuple(weight.shape)}; give the weight of "
            "the maps' own grid."
        )


def _checked(maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., patch) values with 0 where nothing is seen, (patch,) weights, and (...) bool: there is something finite to read."""
    _require_grid(maps, weight)
    area = _flat(weight).to(maps.device)
    values = maps.double().flatten(-2)
    known = (values.isfinite() | (area <= 0)).all(-1) & (area > 0).any()
    return torch.where((area > 0) & values.isfinite(), values, 0.0), area, known


def _amounts(maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(..., patch) w A+, and (...) bool: some of it is positive."""
    values, area, known = _checked(maps, weight)
    amount = values.clamp(min=0) * area
    return amount, known & (amount.sum(-1) > 0)
