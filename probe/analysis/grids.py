"""Layers on different grids, brought onto one: what a mean over the layers of a U-Net is taken on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from probe.attention import AttentionRecord, LayerAttention
from probe.layout import PatchGrid

__all__ = ["common_grid", "mean_of_layers", "onto_grid", "patches_share", "same_grid"]


def same_grid(one: PatchGrid, other: PatchGrid) -> bool:
    """True if both cut the image at the same places."""
    return (one.row_edges, one.col_edges) == (other.row_edges, other.col_edges)


def common_grid(layers: Sequence[LayerAttention]) -> PatchGrid:
    """The finest of the layers' grids, on which their mean is taken; where all are alike, that one."""
    return max((one.grid for one in layers), key=lambda grid: grid.shape[0] * grid.shape[1])


def onto_grid(maps: Tensor, grid: PatchGrid, wanted: PatchGrid, *, mass: bool) -> Tensor:
    """(..., row, col) maps of one grid area-averaged to the patches of another; as they are where the grids are alike.

    Parameters
    ----------
    mass : the values are shares of something that the patches divide among them (a softmax over patches, or parts of a sum), so
        that a larger patch has more: they are rescaled to the size of the new patches, and their sum stays. Otherwise each value
        is the patch's own (a softmax over words), and stays as large as it is.
    """
    if same_grid(grid, wanted):
        return maps
    rows, cols = (torch.as_tensor(one, dtype=maps.dtype, device=maps.device) for one in grid.resampling_onto(wanted))
    moved = rows @ maps @ cols.T
    counts = [one.shape[0] * one.shape[1] for one in (grid, wanted)]
    return moved * (counts[0] / counts[1]) if mass else moved


def mean_of_layers(record: AttentionRecord) -> AttentionRecord:
    """The record averaged over its layers, also where their grids and numbers of heads differ: there, heads are averaged first.

    Grids that differ are brought onto the finest of them, and ``history`` names it.
    """
    heads = {one.heads for one in record.layers}
    alike = record if len(heads) == 1 else record.mean("head")
    wanted = common_grid(alike.layers)
    if all(same_grid(one.grid, wanted) for one in alike.layers):
        return alike.mean("layer")
    mass = patches_share(record)
    moved = tuple(
        replace(
            one,
            grid=wanted,
            values=onto_grid(one.values, one.grid, wanted, mass=mass),
            token_mean=onto_grid(one.token_mean, one.grid, wanted, mass=mass),
        )
        for one in alike.layers
    )
    shape = " x ".join(map(str, wanted.shape))
    return replace(alike, layers=moved, history=(*alike.history, f"area-averaged onto {shape} patches")).mean("layer")


def patches_share(record: AttentionRecord) -> bool:
    """True if a layer's values are shares that its patches divide among them; False if each patch has its own."""
    return record.softmax_over != "tokens" and record.query_kind != "patch reading text"
