"""The formulas behind ``probe.analysis.metrics``: (maps, target) -> scores, for input that allows an answer.

Each takes (..., phrase, row, col) maps and gives (..., phrase) float64. A constant map gets its expected value under a
random choice among ties, which is what ``chance`` reports; the public metrics turn it into NaN.
"""

from __future__ import annotations

from math import inf, nan

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis.targets import Target
from probe.layout import PatchGrid

__all__ = [
    "auroc",
    "average_precision",
    "energy",
    "extremes",
    "lift",
    "nss",
    "pointing",
    "pointing_bicubic",
    "processed_pixels",
]


def pointing(maps: Tensor, target: Target) -> Tensor:
    """Share of hits at the centre of the best patch, averaged over equally good ones."""
    flat, hit, weight = maps.flatten(-2), target.hit.flatten(-2), target.weight.flatten(-2)
    seen = weight > 0
    flat = flat if bool(seen.all()) else flat.masked_fill(~seen, -inf)
    top, first = flat.max(-1, keepdim=True)
    shape = torch.broadcast_shapes(flat.shape, hit.shape)
    hits = hit.expand(shape).gather(-1, first.expand(*shape[:-1], 1))[..., 0].double()
    tied = flat.scatter(-1, first, -inf).amax(-1) == top[..., 0]
    if bool(tied.any()):  # rare in attention, so only these maps pay for it
        rows = tied.expand(shape[:-1])
        among = ((flat == top) & seen).expand(shape)[rows].double()
        hits[rows] = (among * hit.expand(shape)[rows]).sum(-1) / among.sum(-1)
    return hits


def pointing_bicubic(maps: Tensor, target: Target) -> Tensor:
    """Share of hits at the best pixel of the processed picture, averaged over equally good ones."""
    rows, cols = processed_pixels(target.grid)
    if not (rows >= 0).any() or not (cols >= 0).any():
        return torch.full(torch.broadcast_shapes(maps.shape, target.share.shape)[:-2], nan, dtype=torch.float64)
    size = (len(rows), len(cols))
    kept_rows, kept_cols = (
        slice(int(np.argmax(axis >= 0)), len(axis) - int(np.argmax(axis[::-1] >= 0))) for axis in (rows, cols)
    )
    hit = target.masks[..., rows[kept_rows][:, None], cols[kept_cols]]
    shape = torch.broadcast_shapes(maps.shape[:-2], hit.shape[:-2])
    each_map = maps.expand(*shape, *maps.shape[-2:]).reshape(-1, 1, 1, *maps.shape[-2:])
    each_hit = np.broadcast_to(hit, (*shape, *hit.shape[-2:])).reshape(-1, *hit.shape[-2:])
    scores = torch.full((len(each_map),), nan, dtype=torch.float64)
    # One at a time: a processed picture may hold a million pixels.
    for i, (one, inside) in enumerate(zip(each_map, each_hit, strict=True)):
        large = torch.nn.functional.interpolate(one.double(), size=size, mode="bicubic", align_corners=False)[0, 0]
        pixels = large[kept_rows, kept_cols].detach().cpu().numpy()
        # Interpolating equal values gives values that are equal up to rounding alone.
        best = pixels >= pixels.max() - 1e-12 * np.abs(pixels).max()
        if best.any():  # none where there is NaN
            scores[i] = float(inside[best].mean())
    return scores.reshape(shape).to(maps.device)


def processed_pixels(grid: PatchGrid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row (col) of pixels of the processed picture, the original pixel row (col) at its centre, or -1 in padding."""
    found = []
    for edges, length in zip((grid.row_edges, grid.col_edges), grid.image_size, strict=True):
        count = (len(edges) - 1) * grid.patch_size
        centres = np.interp((np.arange(count) + 0.5) / grid.patch_size, np.arange(len(edges)), edges)
        found.append(np.where((centres >= 0) & (centres < length), np.floor(centres), -1).astype(np.int64))
    return found[0], found[1]


def energy(maps: Tensor, target: Target) -> Tensor:
    """sum(A+ m) / sum(A+ w)."""
    flat, share, weight = maps.flatten(-2), target.share.flatten(-2), target.weight.flatten(-2)
    if not bool((weight > 0).all()):
        flat = torch.where(weight > 0, flat, 0)  # what padding holds, even NaN, must not count
    positive = flat.clamp(min=0).double()
    # One product for both sums: this is the metric that reads every number twice.
    inside, everywhere = torch.einsum(
        "...c,...cs->...s", positive, torch.stack([share, weight.expand_as(share)], -1)
    ).unbind(-1)
    return inside / everywhere


def lift(maps: Tensor, target: Target) -> Tensor:
    """Energy over sum(m) / sum(w)."""
    return energy(maps, target) * target.weight.sum() / target.positive


def auroc(maps: Tensor, target: Target) -> Tensor:
    """Mann-Whitney by mid-ranks, weights m against w - m."""
    share, weight = target.share.flatten(-2), target.weight.flatten(-2)
    positive, negative = target.positive, target.negative
    # Only patches of one side need ranks: the side with fewer of them, which for a usual mask is one in ten.
    flip = (share > 0).sum(-1) > (weight > share).sum(-1)
    side = torch.where(flip[..., None], weight - share, share)
    places = side.argsort(-1, descending=True)[..., : int((side > 0).sum(-1).max()) if side.numel() else 0]
    ranks = _middle_ranks(maps.flatten(-2), places, weight)
    # Ranked among all weight, w, not among the other side alone: a side against itself adds half its square, by symmetry.
    wins = (ranks * side.gather(-1, places)).sum(-1) - side.sum(-1) ** 2 / 2
    found = wins / (positive * negative)
    return torch.where(flip, 1 - found, found)


def _middle_ranks(flat: Tensor, places: Tensor, weight: Tensor) -> Tensor:
    """(..., place) weight of the patches below each of these places of a (..., patch) map, plus half of the weight tied with it."""
    shape = torch.broadcast_shapes(flat.shape[:-1], places.shape[:-1])
    asked = flat.expand(*shape, -1).gather(-1, places.expand(*shape, -1))
    seen = weight > 0
    everything = _sorted(flat if bool(seen.all()) else flat[..., seen])
    tied = (everything[..., 1:] == everything[..., :-1]).any(-1).expand(shape)
    ranks = torch.zeros_like(asked, dtype=torch.float64)
    for value in weight[seen].unique():  # 1 inside, and a few values along a padded border
        same = weight == value
        ordered = everything if bool((same == seen).all()) else _sorted(flat[..., same])
        ordered = ordered.expand(*shape, -1).contiguous()
        own = same[places].double() / 2  # double: a number times a float32 tensor stays float32
        below = torch.searchsorted(ordered, asked)
        ranks += value * (below + own)
        if bool(tied.any()):  # rare in attention, so only these maps pay for it
            upto = torch.searchsorted(ordered[tied], asked[tied], right=True)
            ranks[tied] += value * ((upto - below[tied]).double() / 2 - own.expand(asked.shape)[tied])
    return ranks


def _sorted(flat: Tensor) -> Tensor:
    """The values in increasing order; numpy sorts without indices, which torch cannot, and is ten times faster on a CPU."""
    if flat.device.type != "cpu":
        return flat.sort(-1).values
    return torch.from_numpy(np.sort(flat.detach().numpy(), axis=-1))


def average_precision(maps: Tensor, target: Target) -> Tensor:
    """sum over falling values of precision times the share of the mask gained, ties grouped."""
    share, weight = target.share.flatten(-2), target.weight.flatten(-2)
    shape = torch.broadcast_shapes(maps.flatten(-2).shape, share.shape)
    ranked, order = maps.flatten(-2).expand(shape).sort(dim=-1, descending=True)
    starts = torch.ones_like(ranked, dtype=torch.bool)
    starts[..., 1:] = ranked[..., 1:] != ranked[..., :-1]
    group = starts.cumsum(-1) - 1
    amounts = share.expand(shape).gather(-1, order), weight[order]
    inside, total = (torch.zeros_like(one).scatter_add(-1, group, one) for one in amounts)
    # Groups of padding alone come before any weight: 0 / 0 there, where nothing is gained.
    precision = torch.nan_to_num(inside.cumsum(-1) / total.cumsum(-1))
    return (precision * inside).sum(-1) / target.positive


def nss(maps: Tensor, target: Target) -> Tensor:
    """Mean z-score, weighted by w, inside the mask."""
    share, weight = target.share.flatten(-2), target.weight.flatten(-2)
    # The smallest value becomes 0, so that a constant map is exactly 0 and its mean cannot miss it by rounding.
    lowest = extremes(maps, target.weight)[0][..., None].double()
    flat = torch.where(weight > 0, maps.flatten(-2).double() - lowest, 0)
    part = weight / weight.sum()
    centred = flat - (flat @ part)[..., None]
    spread = (centred**2 @ part).sqrt()
    # A constant map has no z-scores; its expected value is 0, and `Metric` makes it NaN unless chance is asked for.
    return torch.where(spread > 0, (centred * share).sum(-1) / target.positive / spread, 0.0)


def extremes(maps: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(...,) smallest and largest value where there is image; NaN if any is NaN, infinite if nothing is seen."""
    flat, seen = maps.flatten(-2), weight.flatten(-2) > 0
    if bool(seen.all()):
        return flat.amin(-1), flat.amax(-1)
    return flat.masked_fill(~seen, inf).amin(-1), flat.masked_fill(~seen, -inf).amax(-1)
