"""Many maps made one: named reductions of whole records."""

from __future__ import annotations

import numpy as np

from probe.attention import AttentionRecord
from probe.errors import InputError

__all__ = ["daam"]


def daam(record: AttentionRecord, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """(height, width) float32: the diffusion attentive attribution map of a record's words, NaN where no patch covers a pixel.

    >>> daam(record["red circle"])

    Every map of every layer, head and timestep is enlarged bicubically first, its undershoot below 0 cut off, and then they are
    summed; of several tokens the mean is taken. So a coarse layer weighs as much as a fine one, head by head, and one with more
    heads weighs more. Where a record holds a mean over timesteps, the sum over them is short of its factor, their number.

    Parameters
    ----------
    record : cross-attention of a diffusion model, with the layers that are wanted; the paper takes those on the way down and up.
    size : (height, width) of the result; the image's own by default.

    Raises
    ------
    InputError
        If the record is not of patches that look at words.

    References
    ----------
    Tang et al., What the DAAM: Interpreting Stable Diffusion Using Cross Attention, ACL 2023, section 2.2.
    """
    if record.softmax_over != "tokens" or record.quantity != "attention":
        raise InputError(
            f"daam() sums the attention of patches to words, but this record holds {record.quantity} of each {record.query_kind}; "
            'record a diffusion model with place="cross-attention".'
        )
    if "minus mean" in record.history:
        raise InputError("daam() sums attention, which is not negative; give the record without minus_mean().")
    total = np.float64(0)
    for layer in record.layers:
        # One head and timestep at a time: enlarged, a layer's maps together may be many times the model's own size.
        for maps in layer.values.flatten(0, 1):
            total = total + np.maximum(layer.grid.upsample(maps, size=size), 0).mean(0, dtype=np.float64)
    return np.asarray(total, dtype=np.float32)
