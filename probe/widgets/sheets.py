"""What a view of a record draws: for some tokens the map of every layer and head at once, and of their means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis.grids import common_grid, onto_grid, patches_share
from probe.analysis.scorer import is_single_row
from probe.attention import AttentionRecord, LayerAttention, is_whole
from probe.errors import InputError
from probe.layout import PatchGrid

__all__ = [
    "Reading",
    "Sheet",
    "averaged_tokens",
    "make_sheet",
    "map_of",
    "mean_sheet",
    "of_view",
    "readings_of",
    "timesteps_of",
    "view_names",
]

Reading = Literal["minus mean", "attention"]
Maps = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sheet:
    """The maps of some tokens, their mean taken, of every layer and head.

    Attributes
    ----------
    grid : the finest grid of the layers, which ``overall`` is on.
    overall : (row, col) mean over heads and then layers.
    means : for each layer (row, col) on its own grid, mean over heads.
    heads : for each layer (head, row, col).
    """

    grid: PatchGrid
    overall: Maps
    means: tuple[Maps, ...]
    heads: tuple[Maps, ...]


def view_names(record: AttentionRecord) -> tuple[str, ...]:
    """The views of the image that the record's layers have, in their order."""
    return tuple(dict.fromkeys(one.view for one in record.layers))


def of_view(record: AttentionRecord, view: str) -> AttentionRecord:
    """The record with the layers of one view; nothing is copied, as ``select`` would."""
    return replace(record, layers=tuple(one for one in record.layers if one.view == view))


def timesteps_of(record: AttentionRecord) -> tuple[int, ...]:
    """The timesteps that can be chosen: those of every layer, where these are alike and several; else none."""
    several = {one.timesteps for one in record.layers}
    first = next(iter(several))
    return first if len(several) == 1 and len(first) > 1 else ()


def readings_of(record: AttentionRecord) -> tuple[Reading, ...]:
    """How the record's maps can be read, the paper's way first: "minus mean" (Eq. 3) where there is a mean to subtract."""
    if "minus mean" in record.history:
        return ("minus mean",)
    if is_single_row(record):
        return ("attention",)
    if len(record.tokens) == 1:
        try:
            record.minus_mean()
        except InputError:
            return ("attention",)
    return ("minus mean", "attention")


def averaged_tokens(record: AttentionRecord) -> list[int]:
    """The positions of the tokens that the record's mean is over, where that can be told: all of them, or the words alone."""
    everything = list(range(len(record.tokens)))
    words = [place for place, (low, high) in enumerate(record.spans) if high > low]
    for some in (everything, words):
        if some and is_whole(record, some):
            return some
    return []


def make_sheet(
    record: AttentionRecord, tokens: Sequence[int], *, timestep: int | None = None, reading: Reading = "minus mean"
) -> Sheet:
    """The maps of these tokens, the mean of several.

    Parameters
    ----------
    record : of one view.
    tokens : positions in the record.
    timestep : position of a timestep; ``None`` is the mean over all.
    reading : "minus mean" subtracts each head's mean map over the whole answer (Eq. 3), of which exactly 0 is left where the tokens
        are that answer; "attention" is the values as recorded.
    """
    read = _reader(record, tokens, timestep, reading)
    return _sheet(record, [read(one) for one in record.layers])


def mean_sheet(record: AttentionRecord, *, timestep: int | None = None) -> Sheet:
    """The mean maps over the whole answer, which "minus mean" subtracts."""
    return _sheet(record, [_at(one.token_mean, timestep) for one in record.layers])


def map_of(
    record: AttentionRecord,
    tokens: Sequence[int],
    *,
    layer: int | None,
    head: int | None,
    timestep: int | None = None,
    reading: Reading = "minus mean",
) -> tuple[Maps, PatchGrid]:
    """The (row, col) map of one place and its grid: of a head, of a layer's mean over heads, or (layer ``None``) of all of them."""
    if layer is None:
        whole = make_sheet(record, tokens, timestep=timestep, reading=reading)
        return whole.overall, whole.grid
    maps = _reader(record, tokens, timestep, reading)(record.layers[layer])
    return _array(maps.mean(0) if head is None else maps[head]), record.layers[layer].grid


def _reader(
    record: AttentionRecord, tokens: Sequence[int], timestep: int | None, reading: Reading
) -> Callable[[LayerAttention], Tensor]:
    """What makes (head, row, col) on the CPU of a layer."""
    minus = reading == "minus mean"
    # Zero but for rounding, which would look like a map and have scores.
    nothing = minus and is_whole(record, tokens)

    def read(layer: LayerAttention) -> Tensor:
        # One token after the other: only these are read, however many tokens there are.
        maps = torch.stack([_at(layer.values[:, :, one], timestep) for one in tokens]).mean(0)
        if nothing:
            return torch.zeros_like(maps)
        return maps - _at(layer.token_mean, timestep) if minus else maps

    return read


def _at(values: Tensor, timestep: int | None) -> Tensor:
    """(head, row, col) of (timestep, head, row, col) values."""
    values = values.detach()
    if len(values) == 1:
        return values[0].cpu()
    return (values.mean(0) if timestep is None else values[timestep]).cpu()


def _sheet(record: AttentionRecord, heads: Sequence[Tensor]) -> Sheet:
    grid, mass = common_grid(record.layers), patches_share(record)
    means = [one.mean(0) for one in heads]
    moved = [onto_grid(one, layer.grid, grid, mass=mass) for one, layer in zip(means, record.layers, strict=True)]
    return Sheet(grid, _array(torch.stack(moved).mean(0)), tuple(map(_array, means)), tuple(map(_array, heads)))


def _array(maps: Tensor) -> Maps:
    return maps.float().numpy()
