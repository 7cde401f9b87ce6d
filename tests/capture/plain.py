"""Attention weights of a whole pass by a plain softmax in double precision, from what torch's own function is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["plain_softmax"]


def plain_softmax(run: Callable[[], Any], *, keep: list[tuple[Tensor, Tensor]] | None = None) -> list[Tensor]:
    """(batch, head, query, key) weights of every ``scaled_dot_product_attention`` that ``run()`` calls, in order.

    ``keep`` is given the value and the output of each call.
    """
    found: list[Tensor] = []

    class Plain(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is torch.nn.functional.scaled_dot_product_attention:
                given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
                query, key, mask = given["query"].double(), given["key"].double(), given.get("attn_mask")
                if given.get("enable_gqa"):
                    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
                logits = query @ key.mT * (given.get("scale") or query.shape[-1] ** -0.5)
                if given.get("is_causal"):
                    mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
                if mask is not None:
                    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
                found.append(logits.softmax(-1))
                output = function(*args, **kwargs)
                if keep is not None:
                    keep.append((given["value"], output))
                return output
            return function(*args, **kwargs)

    with torch.no_grad(), Plain():
        run()
    return found
