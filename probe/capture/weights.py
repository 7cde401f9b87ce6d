"""Attention weights of a few query rows, computed again from what the kernel was given, and held against what it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn

from probe.capture.taps import AttentionCall
from probe.errors import CaptureError

__all__ = [
    "ROWS_AT_ONCE",
    "TOLERANCES",
    "attention_rows",
    "attention_with_gradient",
    "index_on",
    "reproduction_error",
    "require_understood",
    "rows_at_once",
    "tolerance_of",
    "uniform_rows",
]

#: Largest difference between recomputed and kernel output, relative to that output, by the kernel's number type.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}

#: Rows of one layer that are computed at a time on a CPU, and at least elsewhere.
ROWS_AT_ONCE = 64
_WEIGHTS_AT_ONCE = 2**25

# Kernels that honour a limit on the logits (Gemma-2); the others never see one, or refuse it themselves.
_SOFTCAP_KERNELS = ("eager", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def tolerance_of(dtype: torch.dtype | None, kernel: str) -> float:
    """The largest ``reproduction_error`` that is rounding, for a kernel on queries of this number type."""
    if dtype == torch.float64 and kernel == "eager":
        dtype = torch.float32  # eager attention takes its softmax in float32 whatever the model's number type
    return TOLERANCES.get(dtype or torch.float32, 0.0)


@torch.no_grad()
def attention_rows(
    module: nn.Module, call: AttentionCall, *, rows: Tensor, heads: tuple[int, ...], cut: Tensor | None = None
) -> Tensor:
    """(head, row, key) attention weights of these query rows and heads, in float32 (float64 if the queries are).

    Parameters
    ----------
    rows : positions along the call's query dimension.
    heads : query heads.
    cut : (row, key) bool: edges that are taken away before the softmax, beside what the kernel does not attend to anyway.

    Raises
    ------
    CaptureError
        If the call has something that is not understood: dropout, an unknown kind of mask, quantised tensors.
    """
    return _rows(module, call, rows=rows, heads=heads, cut=cut)


def attention_with_gradient(module: nn.Module, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """(head, query, key) weights of the whole call, which gradients flow through, and (query, head, channel) what they make.

    Both in float32 (float64 if the queries are); the output is computed from these very weights. Raises as ``attention_rows``.
    """
    heads, rows = tuple(range(call.query.shape[1])), torch.arange(call.query.shape[2], device=call.query.device)
    weights = _rows(module, call, rows=rows, heads=heads)
    if not weights.requires_grad:  # the first layer of a frozen model: nothing before it has a gradient
        weights.requires_grad_()
    value = _of_heads(call.value[0], _key_heads(call, heads)).to(weights.dtype)
    return weights, rearrange(weights @ value, "head query channel -> query head channel")


def _rows(
    module: nn.Module, call: AttentionCall, *, rows: Tensor, heads: tuple[int, ...], cut: Tensor | None = None
) -> Tensor:
    require_understood(module, call)
    compute = torch.float64 if call.query.dtype == torch.float64 else torch.float32
    scaling = call.options.get("scaling")
    scaling = call.query.shape[-1] ** -0.5 if scaling is None else scaling
    query = _of_heads(call.query[0].index_select(1, rows), heads)
    key = _of_heads(call.key[0], _key_heads(call, heads))
    # Eager attention rounds its logits to the model's number type before the softmax; the other kernels keep them in full.
    own = query.dtype if call.kernel == "eager" else compute
    with torch.autocast(query.device.type, enabled=False):
        logits = torch.matmul(query.to(own), key.to(own).transpose(1, 2)).mul_(scaling).to(compute)
    cap = call.options.get("softcap")
    if cap is not None and call.kernel.split("|")[-1] in _SOFTCAP_KERNELS:
        logits = torch.tanh(logits / cap) * cap
    logits = _masked(module, call, logits, rows=rows, heads=heads)
    if cut is not None:
        logits = logits.masked_fill(cut, -torch.inf)
    return torch.softmax(logits, dim=-1)


def uniform_rows(module: nn.Module, call: AttentionCall, *, rows: Tensor, heads: tuple[int, ...], batch: int) -> Tensor:
    """(head, row, key) weights that spread evenly over every key that these rows may attend to, under the call's own mask."""
    one = (
        replace(call, mask=call.mask[batch : batch + 1])
        if isinstance(call.mask, Tensor) and len(call.mask) > 1
        else call
    )
    logits = call.query.new_zeros((len(heads), len(rows), call.key.shape[2]), dtype=torch.float32)
    masked = _masked(module, one, logits, rows=rows, heads=heads)
    # A float mask may hold large negative numbers instead of infinity, or a bias that is no mask at all.
    allowed = (masked > torch.finfo(call.query.dtype).min / 2).float()
    return allowed / allowed.sum(-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def reproduction_error(call: AttentionCall, weights: Tensor, *, rows: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Largest |weights times v - kernel output| of any head, relative to that head's largest |output| in these rows.

    A tensor of no dimension, on the call's device: reading it waits for all that was asked of a GPU so far.
    ``weights`` are (head, row, key) as ``attention_rows`` gives them for the same rows and heads.
    """
    value = _of_heads(call.value[0], _key_heads(call, heads)).to(weights.dtype)
    with torch.autocast(value.device.type, enabled=False):
        rebuilt = torch.matmul(weights, value)
    output = rearrange(call.output[0].index_select(0, rows), "row head channel -> head row channel")
    output = _of_heads(output, heads).to(weights.dtype)
    size = output.abs().amax(dim=(1, 2))
    off = (rebuilt - output).abs().amax(dim=(1, 2))
    # A head whose output is exactly zero is right only if the rebuilt one is zero too.
    # Asked so that a NaN, which compares false with everything, is never right.
    relative = torch.where(size > 0, off / size, torch.where(off == 0, 0.0, torch.inf))
    return torch.nan_to_num(relative, nan=torch.inf).amax()


def _key_heads(call: AttentionCall, heads: tuple[int, ...]) -> tuple[int, ...]:
    """The key head that each query head reads: consecutive query heads share one (grouped queries)."""
    query_heads, key_heads = call.query.shape[1], call.key.shape[1]
    if query_heads % key_heads:
        raise CaptureError(f"{query_heads} query heads cannot share {key_heads} key heads evenly.")
    return tuple(head // (query_heads // key_heads) for head in heads)


def _of_heads(tensor: Tensor, heads: tuple[int, ...]) -> Tensor:
    """These heads, along the first dimension; all of them in order is the tensor itself, since keys are large to copy."""
    if heads == tuple(range(tensor.shape[0])):
        return tensor
    return tensor.index_select(0, index_on(heads, tensor.device))


def index_on(numbers: Sequence[int], device: torch.device) -> Tensor:
    """These numbers, one or more, as a tensor on a device: every layer of a pass asks for the same ones.

    A copy to a GPU waits for all that was asked of it so far, so that there is one for a pass and not one for a layer.
    """
    first, last = numbers[0], numbers[-1]
    if list(numbers) == list(range(first, last + 1)):
        return torch.arange(first, last + 1, device=device)
    return _copied(tuple(numbers), device)


@lru_cache(maxsize=16)
def _copied(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    # Kept for later calls, which may want a gradient where this one was made under inference mode.
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)


def rows_at_once(call: AttentionCall, heads: int, *, kept: int) -> int:
    """How many rows of one layer are computed at a time, so that no (token x token) map is ever held.

    A GPU takes hardly longer for many rows than for few, so there are as many as take little memory beside the ``kept`` weights
    of all layers: a 24th of it for each of the few tensors that a step makes, and 128 MB at most.
    """
    if call.query.device.type == "cpu":
        return ROWS_AT_ONCE
    return max(ROWS_AT_ONCE, min(_WEIGHTS_AT_ONCE, kept // 24) // (heads * call.key.shape[2]))


def require_understood(module: nn.Module, call: AttentionCall) -> None:
    """Nothing, if the rows of this call can be computed again from what it was given.

    Raises
    ------
    CaptureError
        If it is of a batch, or has dropout, quantised tensors, or an argument that is not known here.
    """
    if call.query.shape[0] != 1:
        raise CaptureError(
            f"A batch of {call.query.shape[0]} sequences was given; the rows of one sequence at a time can be computed."
        )
    dropout = call.options.get("dropout") or 0.0
    if dropout > 0:
        raise CaptureError(
            f"Attention dropout of {dropout} is on (the model is in training mode), so the weights that were used are random; "
            "call model.eval() first."
        )
    if torch._C._functorch.is_batchedtensor(call.query):
        raise CaptureError("The model runs under vmap, so a row has no values of its own; run it on a batch instead.")
    if not (call.query.dtype.is_floating_point and call.key.dtype.is_floating_point):
        raise CaptureError(
            f"Attention on {call.query.dtype} queries and {call.key.dtype} keys (quantised) cannot be recorded."
        )
    for name in ("position_bias", "s_aux", "cache", "cu_seq_lens_q"):
        if call.options.get(name) is not None:
            raise CaptureError(f"{type(module).__name__} gives its attention {name!r}, which is not understood yet.")


def _masked(module: nn.Module, call: AttentionCall, logits: Tensor, *, rows: Tensor, heads: tuple[int, ...]) -> Tensor:
    """(head, row, key) logits with everything that the kernel does not attend to at minus infinity or below."""
    mask, keys, queries = call.mask, call.key.shape[2], call.query.shape[2]
    if isinstance(mask, Tensor) and mask.ndim == 4:
        part = mask[0, :, :, :keys]
        part = part if part.shape[1] == 1 else part.index_select(1, rows)
        part = part if part.shape[0] == 1 else _of_heads(part, heads)
        return logits.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else logits + part.to(logits.dtype)
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise CaptureError(
            f"The mask of the attention kernel {call.kernel!r} is a {type(mask).__name__}, which is not understood; "
            'load the model with attn_implementation="sdpa".'
        )
    # Flash attention on a cache longer than its text is told so by a mask that is shorter than the keys.
    used = min(keys, mask.shape[1]) if mask is not None else keys
    causal = call.options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    position = torch.arange(keys, device=logits.device)
    flash = call.kernel.startswith("flash_attention")
    # Without a mask, torch's kernel aligns the causal triangle to the first key and flash attention to the last.
    own = rows + (used - queries if flash else 0)
    # transformers drops the triangle for a single query; torch's own function keeps it, and leaves that query one key.
    several = queries > 1 or call.kernel == "scaled_dot_product_attention"
    if call.kernel != "eager" and causal and several:
        logits = logits.masked_fill(position > own[:, None], -torch.inf)
    window = call.options.get("sliding_window") if flash else None
    if window is not None:
        logits = logits.masked_fill(position <= own[:, None] - window, -torch.inf)
    if mask is not None:
        allowed = nn.functional.pad(mask[0, :used].bool(), (0, keys - used))
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits
