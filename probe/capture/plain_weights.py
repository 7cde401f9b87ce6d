"""Attention weights of a denoiser computed a second time in the plainest way, to hold a record against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.hooks import watch_forward
from probe.capture.places import Place
from probe.capture.prompts import Keys

__all__ = ["as_recorded", "processor_weights", "softmax_weights"]

Layers = list[tuple[str, nn.Module]]


@contextmanager
def processor_weights(layers: Layers) -> Iterator[dict[str, Tensor]]:
    """(head, query, key) weights of each module by name, from diffusers' own processor that computes every one."""
    from diffusers.models.attention_processor import AttnProcessor

    found: dict[str, Tensor] = {}
    names = {module: name for name, module in layers}

    def compute(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scores = module.get_attention_scores

        def keep(query: Tensor, key: Tensor, mask: Any = None) -> Tensor:
            weights: Tensor = scores(query, key, mask)
            found[names[module]] = weights.unflatten(0, (-1, module.heads))[-1]
            return weights

        module.get_attention_scores = keep
        try:
            AttnProcessor()(module, *args, **kwargs)
        finally:
            del module.get_attention_scores

    with watch_forward(names, before=compute):
        yield found


@contextmanager
def softmax_weights(layers: Layers) -> Iterator[dict[str, Tensor]]:
    """(head, query, key) weights of each module by name: its forward runs a second time with a plain softmax, in double precision,
    in the place of torch's function. For joint attention, of which diffusers has no processor that computes weights."""
    found: dict[str, Tensor] = {}
    names = {module: name for name, module in layers}

    def compute(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def plain(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **options: Any) -> Tensor:
            logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
            weights = torch.softmax(logits if attn_mask is None else logits + attn_mask.double(), dim=-1)
            found[names[module]] = weights[-1]
            return (weights @ value.double()).to(value.dtype)

        used = torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = plain  # type: ignore[assignment]
        try:
            module.forward(*args, **kwargs)
        finally:
            torch.nn.functional.scaled_dot_product_attention = used

    with watch_forward(names, before=compute):
        yield found


def as_recorded(weights: Tensor, place: Place, keys: Keys, *, text_first: bool) -> Tensor:
    """(head, token, patch) values of a record, from all (head, query, key) weights; of patches that look, from the first."""
    if place == "self-attention":
        return weights[:, :1]
    if place == "cross-attention":
        return torch.stack([weights[..., list(one)].sum(-1) for one in keys.positions], dim=1)
    count = keys.count
    words, image = (slice(0, count), slice(count, None)) if text_first else (slice(-count, None), slice(0, -count))
    if place == "image to image":
        return weights[:, image, image][:, :1]
    if place == "text to image":
        asked = [places[0] for number, places in enumerate(keys.positions) if number not in keys.padding]
        return weights[:, words, image][:, asked]
    of_words = weights[:, image, words]
    maps = [of_words[..., list(one)].sum(-1) for one in keys.positions]
    return torch.stack([*maps, weights[:, image, image].sum(-1)], dim=1)
