"""Attention weights of a whole pass by a plain softmax in double precision, from what torch's own function is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["plain_softmax"]


def plain_softmax(run: Callable[[], Any]) -> list[Tensor]:
    """(batch, head, query, key) weights of every ``scaled_dot_product_attention`` that ``run()`` calls, in order."""
    found: list[Tensor] = []

    class Plain(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is torch.nn.functional.scaled_dot_product_attention:
                given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
                scale = given.get("scale") or given["query"].shape[-1] ** -0.5
                logits = given["query"].double() @ given["key"].double().mT * scale
                mask = given.get("attn_mask")
                found.append((logits if mask is None else logits + mask).softmax(-1))
            return function(*args, **kwargs)

    with torch.no_grad(), Plain():
        run()
    return found
