"""What the second tap costs: a replaced attribute against a function mode, over forward passes of U-Nets.

    python -m tests.speed.test_tap_speed

prints one line a U-Net. As a test it only sees that both see the same calls: speed is measured here, never asserted.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from probe.capture.sdpa import watch_sdpa
from tests.tiny_diffusion import tiny_sd, unet_inputs

SDPA = torch.nn.functional.scaled_dot_product_attention


class Mode(TorchFunctionMode):
    """The other way to see the calls: it stands before every tensor operation of its thread."""

    def __init__(self, modules: Any, watcher: Callable[[nn.Module, Any], None]) -> None:
        super().__init__()
        self.modules, self.watcher = set(modules), watcher

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is SDPA and (module := _running(self.modules)) is not None:
            self.watcher(module, result)
        return result


def _running(modules: set[nn.Module]) -> nn.Module | None:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is nn.Module.__call__.__code__ and frame.f_locals["self"] in modules:
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _attention(unet: nn.Module) -> list[nn.Module]:
    return [one for one in unet.modules() if type(one).__name__ == "Attention"]


@torch.inference_mode()
def compare(pipeline: Any, *, passes: int) -> dict[str, list[float]]:
    """Seconds of this thread's own computing in each pass without a tap and with either, taken in turns."""
    modules, inputs = _attention(pipeline.unet), unet_inputs(pipeline)
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "no tap": nullcontext,
        "attribute": lambda: watch_sdpa(modules, lambda module, call: None),
        "mode": lambda: Mode(modules, lambda module, call: None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(passes + 2):
        for name, way in ways.items():
            with way():
                start = time.thread_time()
                pipeline.unet(**inputs)
                seconds[name].append(time.thread_time() - start)
    return {name: times[2:] for name, times in seconds.items()}


@torch.inference_mode()
def test_both_ways_see_the_same_calls():
    pipeline = tiny_sd()
    modules, seen = _attention(pipeline.unet), {"attribute": [], "mode": []}
    with watch_sdpa(modules, lambda module, call: seen["attribute"].append(module)):
        pipeline.unet(**unet_inputs(pipeline))
    with Mode(modules, lambda module, call: seen["mode"].append(module)):
        pipeline.unet(**unet_inputs(pipeline))
    assert seen["attribute"] == seen["mode"]
    assert len(seen["mode"]) == len(modules)


def main() -> None:
    torch.set_num_threads(1)
    wide = {"block_out_channels": (64, 128, 128), "attention_head_dim": 4}
    for name, pipeline, passes in (
        ("tiny (8 x 8 latents)", tiny_sd(), 200),
        ("wide (16 x 16 latents)", tiny_sd(size=16, **wide), 80),
        ("wide (32 x 32 latents)", tiny_sd(size=32, **wide), 40),
    ):
        found = compare(pipeline, passes=passes)
        line = [f"{statistics.median(found['no tap']) * 1000:.1f} ms a pass"]
        for way in ("attribute", "mode"):
            ratio = statistics.median(a / b for a, b in zip(found[way], found["no tap"], strict=True))
            line.append(f"{way} {ratio:.3f}x")
        print(f"{name}, {len(_attention(pipeline.unet))} attention calls: {', '.join(line)}")


if __name__ == "__main__":
    main()
