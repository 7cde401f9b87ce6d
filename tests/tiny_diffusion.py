"""What tests of diffusion models share: inputs, what a U-Net hears, and the library's own attention maps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from probe.tiny.pipelines import LENGTH, tiny_sd, tiny_sdxl

__all__ = ["LENGTH", "eager_maps", "heard", "tiny_sd", "tiny_sdxl", "unet_inputs"]


def unet_inputs(pipeline: Any, *, batch: int = 1, keys: int = LENGTH, seed: int = 0) -> dict[str, Any]:
    """What a U-Net takes, at random: latents, timestep, text states, and what SDXL's takes besides."""
    unet, random = pipeline.unet, torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(unet.dtype)

    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    inputs = {
        "sample": noise(batch, 4, height, width),
        "timestep": 300,
        "encoder_hidden_states": noise(batch, keys, unet.config.cross_attention_dim),
    }
    if unet.config.addition_embed_type == "text_time":
        times = torch.tensor([[height, width, 0, 0, height, width]] * batch).to(unet.dtype)
        inputs["added_cond_kwargs"] = {"text_embeds": noise(batch, 12), "time_ids": times}
    return inputs


def eager_maps(pipeline: Any, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], *, crossed: bool) -> list[Any]:
    """For each U-Net call, {module name: (batch, head, query, key)}, from diffusers' own processor that computes every weight.

    Each attention module is given what it is given in the U-Net itself, whose kernel rounds differently on the way there.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor

    wanted = {
        name: one
        for name, one in pipeline.unet.named_modules()
        if isinstance(one, Attention) and one.is_cross_attention == crossed
    }
    found = []
    for args, kwargs in calls:
        maps: dict[str, Tensor] = {}

        def keep(module: Any, args: Any, kwargs: Any, name: str, maps: dict[str, Tensor]) -> None:
            scores = module.get_attention_scores

            def kept(query: Tensor, key: Tensor, mask: Any = None) -> Tensor:
                weights = scores(query, key, mask)
                maps[name] = weights.reshape(-1, module.heads, *weights.shape[1:])
                return weights

            module.get_attention_scores = kept
            try:
                AttnProcessor()(module, *args, **kwargs)
            finally:
                del module.get_attention_scores

        handles = [
            one.register_forward_pre_hook(functools.partial(keep, name=name, maps=maps), with_kwargs=True)
            for name, one in wanted.items()
        ]
        with torch.no_grad():
            pipeline.unet(*args, **kwargs)
        for one in handles:
            one.remove()
        assert set(maps) == set(wanted)
        found.append(maps)
    return found


@contextmanager
def heard(unet: Any) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The arguments of every call of the U-Net inside the context."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = unet.register_forward_pre_hook(lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
