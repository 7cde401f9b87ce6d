"""Rows of decode steps, which wait for each other: computing many rows of a layer at once costs little more than one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.taps import AttentionCall
from probe.capture.weights import require_understood

__all__ = ["PendingRows", "keeps_keys"]

# What these hand out at a step still holds, unchanged, the keys of every earlier step. Others quantise or rotate them.
_KEEPING = frozenset(["DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer"])


def keeps_keys(cache: Any) -> bool:
    """True if the keys of an early decode step can be read from those of a later one, and holding them costs nothing."""
    layers = list(getattr(cache, "layers", ()))
    # A cache that moves its layers to host memory would be kept from doing so.
    return bool(layers) and not cache.offloading and all(type(one).__name__ in _KEEPING for one in layers)


@dataclass
class PendingRows:
    """The queries of single-row calls of one layer, with the keys of the last of them, which hold those of all.

    That they do is not taken on trust: each row's weights have to rebuild what the kernel gave out at its own step.

    Attributes
    ----------
    tokens : which token each row stands for.
    keys : how many keys each row had.
    """

    tokens: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    _last: AttentionCall | None = None
    _queries: list[Tensor] = field(default_factory=list)
    _outputs: list[Tensor] = field(default_factory=list)
    _masks: list[Tensor] = field(default_factory=list)

    def fits(self, call: AttentionCall) -> bool:
        """True if the call's one row can wait with those that are here."""
        if call.query.shape[2] != 1:
            return False
        mask = call.mask
        if mask is None:
            # Flash attention is given its window beside the mask; a longer one would have to be worked out for each row.
            fits = not (call.kernel.startswith("flash_attention") and call.options.get("sliding_window"))
        else:
            fits = isinstance(mask, Tensor) and mask.ndim == 4
        if self._last is None or not fits:
            return fits
        before = self._masks[-1] if self._masks else None
        alike = mask is None if before is None else mask is not None and mask.dtype == before.dtype
        return alike and call.key.shape[2] >= self.keys[-1]

    def add(self, module: nn.Module, call: AttentionCall, token: int, *, checked: bool) -> None:
        """Keep the row of a call that fits; where it will be ``checked``, also what the kernel gave out.

        Raises
        ------
        CaptureError
            If the call has something that is not understood.
        """
        require_understood(module, call)
        self.tokens.append(token)
        self.keys.append(call.key.shape[2])
        self._queries.append(call.query)
        if call.mask is not None:
            self._masks.append(call.mask)
        if checked:
            # Hooks of the user's on the output projection may write into it.
            self._outputs.append(call.output.clone())
        self._last = call

    def call(self) -> AttentionCall:
        """All rows as one call, under a mask that shows each row the keys that it had."""
        assert self._last is not None  # for the type checker: rows were added
        last, device = self._last, self._last.query.device
        keys = last.key.shape[2]
        if self._masks:
            mask = torch.cat([_widened(one, own, keys) for one, own in zip(self._masks, self.keys, strict=True)], dim=2)
        else:
            own = torch.tensor(self.keys, device=device)
            mask = (torch.arange(keys, device=device) < own[:, None])[None, None]
        output = torch.cat(self._outputs, dim=1) if self._outputs else last.output
        return replace(last, query=torch.cat(self._queries, dim=2), mask=mask, output=output)


def _widened(mask: Tensor, own: int, keys: int) -> Tensor:
    """A row's mask of its own keys, closed for those that came later."""
    closed = False if mask.dtype == torch.bool else -torch.inf
    return torch.nn.functional.pad(mask[..., :own], (0, keys - own), value=closed)
