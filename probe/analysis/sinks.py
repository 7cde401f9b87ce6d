"""Attention sinks among the patches, which every word looks at whatever it says: how they are told, and what is done about them.

>>> sinks = stable_sinks(record)                                     # (row, col) bool, from the record alone
>>> maps = remedied_maps(record, tokens, sinks)                      # remedy -> (phrase, row, col)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from probe.analysis.concentration import SINK_TIMES
from probe.analysis.grids import same_grid
from probe.analysis.scorer import is_one_map, phrase_maps
from probe.attention import AttentionRecord, LayerAttention
from probe.errors import InputError
from probe.layout import REST_PLACES

__all__ = [
    "KEPT",
    "REMEDIES",
    "dimension_sinks",
    "norm_sinks",
    "redistribute_attention",
    "remedied_maps",
    "sink_dimensions",
    "stable_sinks",
]

#: Name -> what is done to a map, in the order of tables.
REMEDIES = {
    "none": "attention as recorded",
    "minus mean": "minus its mean over the answer (Eq. 3)",
    "generic prompt": "divided by the map of a prompt that asks for nothing in particular",
    "redistribution": "what sinks hold is given to the other patches in proportion to what they have (VAR)",
    "dropped sinks": "sinks set to 0",
}

#: The share of its attention that a sink keeps: p of VAR.
KEPT = 0.6

#: A state is a sink's if one of the sink dimensions of its root-mean-square normalised state is larger than this.
SINK_SIZE = 20.0


def stable_sinks(record: AttentionRecord, *, times: float = SINK_TIMES, share: float = 0.9) -> Tensor:
    """(row, col) bool: patches that almost every token looks at more than ``times`` as much as at its median patch.

    A large mean alone may come from a few words that name what is there; a sink is looked at whatever is said. An answer of one
    token tells none, for its object would be one.

    Parameters
    ----------
    record : attention of the whole answer, its layers on one grid; averaged over layers, timesteps and heads.
    share : of the tokens, at least.

    Raises
    ------
    InputError
        If the layers' grids differ, or the record holds no attention as it was recorded.
    """
    grid = _one_grid(record).grid
    if is_one_map(record):
        return torch.zeros(grid.shape, dtype=torch.bool)
    # (token, row, col)
    looked = torch.stack([one.values.mean((0, 1)) for one in record.layers]).mean(0)
    seen = torch.as_tensor(grid.weight, device=looked.device) > 0
    middle = looked[:, seen].median(-1).values[:, None, None]
    return ((looked > times * middle).double().mean(0) >= share) & seen


def norm_sinks(states: Tensor, *, times: float = SINK_TIMES) -> Tensor:
    """(..., row, col) bool: patches whose hidden state has more than ``times`` the norm of the median patch.

    Parameters
    ----------
    states : (..., row, col, channel) hidden states of the patches, of one layer or several.
    """
    norms = states.double().norm(dim=-1)
    return norms > times * norms.flatten(-2).median(-1).values[..., None, None]


def sink_dimensions(states: Tensor, *, threshold: float = SINK_SIZE) -> tuple[int, ...]:
    """The dimensions in which the normalised states of a sequence's first token are larger than the threshold: the model's own.

    The first token is a sink in every language model, and massive in the same few dimensions as the other sinks.

    Parameters
    ----------
    states : (layer, channel) hidden states of the first token, of the layers in which sinks are looked for.

    References
    ----------
    Sun, Chen, Kolter, Liu, Massive Activations in Large Language Models, COLM 2024.
    """
    large = _normalised(states, threshold).abs() > threshold
    return tuple(torch.nonzero(large.any(0))[:, 0].tolist())


def dimension_sinks(states: Tensor, dimensions: Sequence[int], *, threshold: float = SINK_SIZE) -> Tensor:
    """(..., row, col) bool: patches whose normalised hidden state is larger than the threshold in one of the sink dimensions.

    |h_d / sqrt(mean h^2)| > threshold, without the gain of the model's own norm. The first two layers have no sinks yet.

    Parameters
    ----------
    states : (..., row, col, channel) hidden states of the patches.
    dimensions : of the model, from ``sink_dimensions`` or from the literature.

    Raises
    ------
    InputError
        If no dimension is given or one does not exist, or no state of so few channels could be that large.

    References
    ----------
    Kang, Kim, Kim, Hwang, See What You Are Told: Visual Attention Sink in Large Multimodal Models, ICLR 2025.
    """
    channels = states.shape[-1]
    if not dimensions or not all(0 <= one < channels for one in dimensions):
        raise InputError(f"dimensions must be some of 0 to {channels - 1}, found {list(dimensions)}.")
    return (_normalised(states, threshold)[..., list(dimensions)].abs() > threshold).any(-1)


def _normalised(states: Tensor, threshold: float) -> Tensor:
    channels = states.shape[-1]
    if not 0 < threshold < channels**0.5:
        raise InputError(
            f"No dimension of {channels} can be {threshold:g} after normalisation, at most {channels**0.5:.1f}; give a smaller "
            "threshold, or tell sinks by norm_sinks or stable_sinks."
        )
    exact = states.double()
    return exact / exact.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float64).tiny)


def redistribute_attention(layer: LayerAttention, sinks: Tensor, *, kept: float = KEPT) -> Tensor:
    """(timestep, head, token, row, col) attention after part of what sinks hold is given to the other patches, row by row.

    Sinks among the patches and the first token of the sequence (``rest``, place "bos") keep the share ``kept``; what they lose goes
    to the other patches in proportion to what these have, so that the sum over the sequence stays. Rows without attention to any
    other patch stay as they are. The paper does so inside the model, in the heads that look at the image most; here every recorded
    map is changed, and nothing that the model computes.

    Parameters
    ----------
    sinks : (row, col) bool.

    References
    ----------
    Kang, Kim, Kim, Hwang, See What You Are Told: Visual Attention Sink in Large Multimodal Models, ICLR 2025, section 5.
    """
    if not 0 <= kept <= 1:
        raise InputError(f"kept is the share that a sink keeps, 0 to 1, found {kept}.")
    marks = sinks.to(layer.values.device)
    held = (layer.values * marks).sum((-2, -1))
    others = (layer.values * ~marks).sum((-2, -1))
    able = others > 0
    given = (1 - kept) * (held + layer.rest[..., REST_PLACES.index("bos")])
    more = torch.where(able, 1 + given / torch.where(able, others, 1.0), 1.0)
    less = torch.where(able, kept, 1.0)
    return layer.values * torch.where(marks, less[..., None, None], more[..., None, None])


def remedied_maps(
    record: AttentionRecord,
    tokens: Sequence[tuple[int, ...]],
    sinks: Tensor,
    *,
    generic: AttentionRecord | None = None,
    kept: float = KEPT,
) -> dict[str, Tensor]:
    """Each of ``REMEDIES`` -> (phrase, row, col) maps: mean over tokens, timesteps, heads and layers, remedied layer by layer.

    Parameters
    ----------
    tokens : positions of the tokens of each phrase.
    sinks : (row, col) bool.
    generic : the same image under a prompt that asks for nothing in particular; the mean of all its rows is what divides. Without
        it there is no such remedy.

    Raises
    ------
    InputError
        If the layers' grids differ, the sinks have another grid, or ``generic`` has other layers.
    """
    grid = _one_grid(record).grid
    if tuple(sinks.shape) != grid.shape:
        raise InputError(f"The sinks have (row, col) {tuple(sinks.shape)} but the record's grid is {grid.shape}.")
    if generic is not None:
        _require_alike(record, generic)
    alone = is_one_map(record)
    total: dict[str, Tensor] = {}
    for number, layer in enumerate(record.layers):
        maps = phrase_maps(layer, tokens, "mean").mean(0).double()
        one = {"none": maps, "minus mean": torch.zeros_like(maps)}
        if not alone:
            one["minus mean"] = maps - layer.token_mean.mean((0, 1)).double()
        if generic is not None:
            one["generic prompt"] = maps / generic.layers[number].values.mean((0, 1, 2)).double()
        spread = replace(layer, values=redistribute_attention(layer, sinks, kept=kept))
        one["redistribution"] = phrase_maps(spread, tokens, "mean").mean(0).double()
        one["dropped sinks"] = maps * ~sinks.to(maps.device)
        total = {name: total.get(name, 0) + found for name, found in one.items()}
    return {name: total[name] / len(record.layers) for name in REMEDIES if name in total}


def _one_grid(record: AttentionRecord) -> LayerAttention:
    """The first layer, if all are on its grid."""
    if record.quantity != "attention" or "minus mean" in record.history:
        raise InputError(
            f"sinks are told from attention as it was recorded, but the record holds {record.quantity}"
            f"{', minus its mean' if 'minus mean' in record.history else ''}."
        )
    first = record.layers[0]
    for one in record.layers:
        if one.view != first.view or not same_grid(one.grid, first.grid):
            raise InputError(
                f"sinks are told on one grid, but {first.name!r} has {first.grid.shape} patches of {first.view!r} and {one.name!r} "
                f"{one.grid.shape} of {one.view!r}; select layers or a view."
            )
    return first


def _require_alike(record: AttentionRecord, generic: AttentionRecord) -> None:
    layers = [[(one.name, one.heads) for one in some.layers] for some in (record, generic)]
    grid = _one_grid(generic).grid
    if layers[0] != layers[1] or not same_grid(grid, record.layers[0].grid):
        raise InputError(
            f"the generic record has {len(layers[1])} layers on {grid.shape} patches and the record {len(layers[0])} on "
            f"{record.layers[0].grid.shape}, or they differ in names, heads or image; record both alike, of the same image."
        )
