"""The tap for ``torch.nn.MultiheadAttention``: the module is asked a second time, for a few query rows with a weight a head."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.hooks import watch_forward
from probe.errors import CaptureError

__all__ = ["MultiheadCall", "multihead_error", "multihead_rows", "watch_multihead"]


@dataclass(frozen=True, eq=False)
class MultiheadCall:
    """One call of a ``MultiheadAttention``: its arguments, and its own output, the batch first whatever the module's own order.

    Attributes
    ----------
    query, key, value : (1, position, channel) as they were given, before the module's own projections.
    output : (1, query, channel), the module's own.
    options : everything else it was given.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    options: dict[str, Any]


@contextmanager
def watch_multihead(
    modules: Iterable[nn.Module], watcher: Callable[[nn.Module, MultiheadCall], None]
) -> Iterator[None]:
    """Calls ``watcher(module, call)`` after each forward of these modules.

    Under ``no_grad`` such a module takes a fused path in which no attention function can be seen, and to ask it for weights
    changes its output in the last bits: so its own output goes on as it is, and the weights come from a second call.
    """
    # Several threads may use one module at a time.
    given: dict[tuple[int, nn.Module], dict[str, Any]] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
        given[threading.get_ident(), module] = dict(zip(names, args, strict=False)) | kwargs

    def after(module: nn.Module, output: Any) -> None:
        options = given.pop((threading.get_ident(), module))
        tensors = [*(options.pop(name) for name in ("query", "key", "value")), output[0]]
        if tensors[0].ndim == 2:  # without a batch
            tensors = [one[None] for one in tensors]
        elif not module.batch_first:
            tensors = [one.transpose(0, 1) for one in tensors]
        query, key, value, own = tensors
        watcher(module, MultiheadCall(query, key, value, own, options))

    with watch_forward(modules, before=before, after=after):
        yield


def _require_understood(module: Any, call: MultiheadCall) -> None:
    if module.bias_k is not None or module.add_zero_attn:
        raise CaptureError(f"{type(module).__name__} attends with keys of its own, which is not understood yet.")
    if call.query.ndim != 3 or call.query.shape[0] != 1:
        raise CaptureError(
            f"{type(module).__name__} was given queries of shape {tuple(call.query.shape)}; expected (1, query, channel): one "
            "image at a time can be recorded."
        )
    if module.training and module.dropout > 0:
        raise CaptureError("Attention dropout is on (the model is in training mode); call model.eval() first.")


@torch.no_grad()
def multihead_rows(module: Any, call: MultiheadCall, *, rows: Tensor) -> Tensor:
    """(head, row, key) attention weights of these query rows, in float32 (float64 if the queries are).

    Raises
    ------
    CaptureError
        If the call has something that is not understood: keys of its own, several images, dropout.
    """
    _require_understood(module, call)
    tensors = [call.query.index_select(1, rows), call.key, call.value]
    if not module.batch_first:
        tensors = [one.transpose(0, 1) for one in tensors]
    mask = call.options.get("attn_mask")
    if mask is not None:
        mask = mask.index_select(-2, rows)
    padding = call.options.get("key_padding_mask")
    if padding is not None and padding.ndim == 1:
        padding = padding[None]
    # forward itself, not the module: nobody's hooks are to see this call. That the mask is causal is a hint, and no longer true.
    _, weights = module.forward(
        *tensors, key_padding_mask=padding, attn_mask=mask, need_weights=True, average_attn_weights=False
    )
    found: Tensor = weights[0]
    return found if found.dtype == torch.float64 else found.float()


@torch.no_grad()
def multihead_error(module: Any, call: MultiheadCall, weights: Tensor, *, rows: Tensor) -> Tensor:
    """Largest |weights times v through the module's own projections - its output|, relative to its largest |output|.

    A tensor of no dimension, on the call's device. The output projection mixes the heads, so it takes all of them: ``weights``
    are (head, row, key) for every head.
    """
    width, heads = module.embed_dim, module.num_heads
    weight = module.v_proj_weight if module.in_proj_weight is None else module.in_proj_weight[2 * width :]
    bias = None if module.in_proj_bias is None else module.in_proj_bias[2 * width :].to(weights.dtype)
    value = nn.functional.linear(call.value[0].to(weights.dtype), weight.to(weights.dtype), bias)
    each = weights @ value.unflatten(-1, (heads, -1)).transpose(0, 1)  # (head, row, channel of a head)
    projection = module.out_proj
    bias = None if projection.bias is None else projection.bias.to(weights.dtype)
    rebuilt = nn.functional.linear(each.transpose(0, 1).flatten(1), projection.weight.to(weights.dtype), bias)
    output = call.output[0].index_select(0, rows).to(weights.dtype)
    error = (rebuilt - output).abs().amax() / output.abs().amax().clamp(min=torch.finfo(weights.dtype).tiny)
    # A NaN compares false with everything, and is never right.
    return torch.nan_to_num(error, nan=torch.inf)
