"""Everything about a model, and about the libraries that run it, that recording or ablating could have changed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import probe
from probe.capture import sdpa, taps

__all__ = ["calls_of", "differences", "raising_at", "raising_in_probe", "snapshot"]

ROOT = str(Path(probe.__file__).parent)


def _modules(thing: Any) -> dict[str, nn.Module]:
    """A model, or the parts of a pipeline, by name."""
    if isinstance(thing, nn.Module):
        return {"model": thing}
    return {name: one for name, one in thing.components.items() if isinstance(one, nn.Module)}


def snapshot(thing: Any, processor: Any = None) -> dict[str, Any]:
    """What to compare before and after, by name. Nothing in it keeps a tensor's storage alive."""
    found: dict[str, Any] = {}
    for part, model in _modules(thing).items():
        for name, module in model.named_modules():
            found[f"{part} {name}"] = _of_module(module)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            found[f"{part} {name} (tensor)"] = (
                id(tensor), tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device, tensor.requires_grad,
                tensor.grad is None, tuple(tensor.shape), None if tensor.is_meta else str(tensor.detach().double().sum()),
            )  # fmt: skip
        for name in ("config", "generation_config"):
            config = getattr(model, name, None)
            found[f"{part} {name}"] = config.to_json_string() if hasattr(config, "to_json_string") else str(config)
    for name, one in (("pipeline", thing), ("processor", processor)):
        found[name] = _values(getattr(one, "__dict__", {}))
    return found | _of_libraries()


def _of_module(module: nn.Module) -> dict[str, Any]:
    own = vars(module)
    tables = {key: tuple(value.items()) for key, value in own.items() if "hook" in key and hasattr(value, "items")}
    # A processor of diffusers is an attribute; so is a method that stands on the instance.
    kernel = getattr(own.get("config"), "_attn_implementation", None)
    return {"class": type(module), "hooks": tables, "kernel": kernel, "values": _values(own)}


def _values(own: dict[str, Any]) -> dict[str, Any]:
    """Objects by what they are, flags by value, and by name alone the plain values that models and pipelines write themselves."""
    plain = (torch.Tensor, dict, list, tuple, str, int, float, type(None), torch.Generator)
    return {
        name: one if isinstance(one, bool) else "plain" if isinstance(one, plain) else id(one)
        for name, one in own.items()
    }


def _of_libraries() -> dict[str, Any]:
    return {
        "look-up": vars(AttentionInterface)["get_interface"],
        "attention functions": dict(AttentionInterface._global_mapping),
        "mask functions": dict(AttentionMaskInterface._global_mapping),
        "torch's attention": torch.nn.functional.scaled_dot_product_attention,
        "torch's softmax": torch.nn.functional.softmax,
        "hooks of all modules": {
            name: tuple(table.items()) for name, table in vars(torch_modules).items() if name.startswith("_global_") and table
        },
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "ours": [dict(one) for one in (taps._watchers, taps._editors, taps._forestallers, sdpa._watchers, sdpa._editors)],
        "ours installed": (taps._original, sdpa._installed),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not as it was."""
    return [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]


@contextmanager
def raising_at(moment: int, error: type[BaseException]) -> Iterator[None]:
    """Raises before the module call of that number in this thread, whatever module it is."""
    thread, calls = threading.get_ident(), iter(range(10**9))

    def hook(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == thread and next(calls) == moment:
            raise error("planted")

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def calls_of(action: Callable[[], Any]) -> int:
    """How many module calls an action makes."""
    count = [0]
    handle = register_module_forward_pre_hook(lambda module, args: count.__setitem__(0, count[0] + 1))
    try:
        action()
    finally:
        handle.remove()
    return count[0]


@contextmanager
def raising_in_probe(moment: int, error: type[BaseException]) -> Iterator[list[int]]:
    """Raises where the project's own code calls its function of that number, but not while it takes away what it attached: what is
    raised there keeps any program from cleaning up. Gives the number of calls so far.
    """
    count = [0]

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(ROOT) or _leaving(frame):
            return
        count[0] += 1
        if count[0] - 1 == moment:
            sys.setprofile(None)
            raise error("planted")

    sys.setprofile(watch)
    try:
        yield count
    finally:
        sys.setprofile(None)


def _leaving(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_name in ("__exit__", "_uninstall_if_idle"):
            return True
        frame = frame.f_back
    return False
