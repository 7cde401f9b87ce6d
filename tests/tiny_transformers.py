"""What tests of diffusion transformers share: pipelines by family, a call of each, and plain weights of every attention call."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probe.tiny.transformers import T5_LENGTH, tiny_flux, tiny_pixart, tiny_sd3

__all__ = ["PIPELINES", "T5_LENGTH", "generate", "plain_maps", "tiny_flux", "tiny_pixart", "tiny_sd3"]

PIPELINES = {
    "pixart": tiny_pixart,
    "pixart sigma": functools.partial(tiny_pixart, sigma=True),
    "sd3": functools.partial(tiny_sd3, dual=False),
    "sd3.5": tiny_sd3,
    "sd3 without T5": functools.partial(tiny_sd3, t5=False),
    "flux": tiny_flux,
    "flux with guidance": functools.partial(tiny_flux, guidance=True),
}


def generate(pipeline: Any, prompt: Any = "a red circle", *, steps: int = 2, **options: Any) -> Any:
    """A picture as an array, of 32 x 32 pixels unless told otherwise."""
    plain = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": T5_LENGTH}
    names = inspect.signature(type(pipeline).__call__).parameters
    options = {name: value for name, value in plain.items() if name in names} | options
    random = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=steps, output_type="np", generator=random, **options).images


def plain_maps(pipeline: Any, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[dict[str, Tensor]]:
    """For each call of the transformer, {module name: (batch, head, query, key)} as a plain softmax gives them."""

    class Plain(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is torch.nn.functional.scaled_dot_product_attention and running:
                given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
                logits = given["query"].double() @ given["key"].double().mT / given["query"].shape[-1] ** 0.5
                mask = given.get("attn_mask")
                maps[running[-1]] = (logits if mask is None else logits + mask).softmax(-1)
            return function(*args, **kwargs)

    found, running = [], []
    handles = []
    for name, one in pipeline.transformer.named_modules():
        if type(one).__name__ in ("Attention", "FluxAttention"):
            handles.append(one.register_forward_pre_hook(lambda module, args, name=name: running.append(name)))
            handles.append(one.register_forward_hook(lambda module, args, output: running.pop() and None))
    for args, kwargs in calls:
        maps: dict[str, Tensor] = {}
        with torch.no_grad(), Plain():
            pipeline.transformer(*args, **kwargs)
        found.append(maps)
    for one in handles:
        one.remove()
    return found
