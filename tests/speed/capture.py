"""What recording costs in time and memory, paired with the plain model in one run: numbers to read, never a verdict.

python -m tests.speed.capture --json
python -m tests.speed.capture --shape llava-1.5-7b --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probe.capture.passes import inputs_for
from probe.capture.recorder import Recorder
from probe.capture.records import record
from probe.models import Subject
from tests.tiny import picture, tiny_llava

__all__ = ["SHAPES", "ratios", "sized"]

#: Width, layers, heads and inner width of the language model; all see LLaVA-1.5's 24 x 24 patches.
SHAPES = {"small": (512, 8, 8, 1376), "llava-1.5-7b": (4096, 32, 32, 11008)}
ROWS = 64  # text rows that are recorded in one pass, and tokens that are generated
GROWTH = (1000, 2000, 4000)
#: How the model runs: as it is, recorded, or asked for every weight that it has.
WAYS = ("plain", "recorded", "eager")


def sized(shape: str, *, dtype: str, device: str) -> Subject:
    """A random LLaVA of one of ``SHAPES``."""
    width, layers, heads, inner = SHAPES[shape]
    # Made where it stays: drawing billions of weights on a CPU takes minutes.
    with torch.device(device):
        return tiny_llava(
            size=336, patch=14, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, head_dim=width // heads, max_position_embeddings=8192,
            dtype=getattr(torch, dtype),
            # Logits spread alike at every width; the usual range of tiny models makes rows that single precision cannot rebuild.
            initializer_range=0.05 * (SHAPES["small"][0] / width) ** 0.5,
        )  # fmt: skip


def prompt_and_rows(subject: Subject, rows: int) -> tuple[dict[str, Any], int]:
    """The inputs of one pass over a prompt with a picture and that many text tokens after it, and where these begin."""
    inputs, _ = inputs_for(subject, picture(), "Describe the image.")
    ids = inputs["input_ids"]
    random = torch.Generator().manual_seed(0)
    text = torch.randint(10, 300, (1, rows), generator=random).to(ids)
    longer = {"input_ids": torch.cat([ids, text], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    return inputs | longer, ids.shape[1]


def prefill(subject: Subject, way: str, rows: int) -> Callable[[], Any]:
    """One pass over the whole text, whose last rows are recorded in every layer and head."""
    inputs, start = prompt_and_rows(subject, rows)
    options = {"output_attentions": True} if way == "eager" else {}

    def run() -> Any:
        with torch.inference_mode():
            return subject.model(**inputs, use_cache=False, logits_to_keep=1, **options)

    def recorded() -> Any:
        with Recorder(subject.model, subject.processor, answer_start=start) as recorder:
            run()
        return recorder.result(image=picture())

    return recorded if way == "recorded" else run


def generation(subject: Subject, way: str, tokens: int) -> Callable[[], Any]:
    """That many tokens generated with a cache, each recorded in every layer and head."""
    inputs, _ = inputs_for(subject, picture(), "Describe the image.")
    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    if way == "eager":
        options |= {"output_attentions": True, "return_dict_in_generate": True}

    def run() -> Any:
        with torch.inference_mode():
            return subject.model.generate(**inputs, **options)

    def recorded() -> Any:
        with record(subject) as recorder:
            run()
        return recorder.result(image=picture())

    return recorded if way == "recorded" else run


def _seconds(subject: Subject, way: str, action: Callable[[], Any]) -> float:
    subject.model.set_attn_implementation({"text_config": "eager" if way == "eager" else "sdpa"})
    start = time.perf_counter()
    action()
    if subject.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(subject: Subject, make: Callable[..., Callable[[], Any]], size: int, *, pairs: int) -> dict[str, Any]:
    """Ratios to the plain model, each taken in the same round: the median with a 95 % interval of it by bootstrap over rounds."""
    actions = {way: make(subject, way, size) for way in WAYS}
    for way, action in actions.items():
        _seconds(subject, way, action)
    rounds = []
    for number in range(pairs):
        # In another order each time: what runs after eager finds other caches than what runs after itself.
        order = [WAYS[(number + i) % len(WAYS)] for i in range(len(WAYS))]
        gc.collect()
        rounds.append({way: _seconds(subject, way, actions[way]) for way in order})
    found: dict[str, Any] = {"plain_seconds": statistics.median(one["plain"] for one in rounds)}
    return found | {way: _interval([one[way] / one["plain"] for one in rounds]) for way in WAYS[1:]}


def _interval(values: list[float]) -> dict[str, float]:
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def peak(arguments: argparse.Namespace, way: str, rows: int) -> float:
    """Peak resident megabytes of a fresh process that does one pass of that kind."""
    command = [sys.executable, "-m", "tests.speed.capture", "--child", way, "--rows", str(rows)]
    command += ["--shape", arguments.shape, "--dtype", arguments.dtype]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_on_gpu(subject: Subject, way: str, rows: int) -> float:
    """Peak megabytes of GPU memory in one pass of that kind, weights included; torch counts them itself, in any process."""
    action = prefill(subject, way, rows)
    torch.cuda.reset_peak_memory_stats()
    _seconds(subject, way, action)
    return torch.cuda.max_memory_allocated() / 1e6


def child(arguments: argparse.Namespace) -> None:
    """Prints the peak of this process, in MB."""
    subject = sized(arguments.shape, dtype=arguments.dtype, device="cpu")
    _seconds(subject, arguments.child, prefill(subject, arguments.child, arguments.rows))
    print(_peak_of_this_process())


def _peak_of_this_process() -> float:
    """Peak resident megabytes since the process began: the kernel's own mark, since rusage keeps that of the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    raise SystemExit("peak memory is read from /proc, which this system has not")


def rows_megabytes(shape: str, rows: int) -> float:
    """What was asked for: (layer, head, row, patch) float32."""
    _, layers, heads, _ = SHAPES[shape]
    return layers * heads * rows * 24 * 24 * 4 / 1e6


def device_name(device: str) -> str:
    """The device as it is to be read beside a number: a GPU by its own name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    subject = sized(arguments.shape, dtype=arguments.dtype, device=arguments.device)
    whole = ratios(subject, prefill, ROWS, pairs=arguments.pairs)
    steps = ratios(subject, generation, ROWS, pairs=arguments.pairs)
    find_peak = partial(peak, arguments)
    if arguments.device.startswith("cuda"):
        find_peak = partial(peak_on_gpu, subject)
    del subject
    peaks = {way: find_peak(way, ROWS) for way in WAYS}
    growth = []
    for rows in GROWTH:
        plain, recorded = (find_peak(way, rows) for way in ("plain", "recorded"))
        asked = rows_megabytes(arguments.shape, rows)
        growth.append({"tokens": rows, "plain_mb": plain, "extra_mb": recorded - plain, "asked_mb": asked})
    return {
        "shape": arguments.shape, "dtype": arguments.dtype, "device": device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "prefill_ratio": whole["recorded"], "generate_ratio": steps["recorded"],
        "eager_prefill_ratio": whole["eager"], "eager_generate_ratio": steps["eager"],
        "plain_seconds": {"prefill": whole["plain_seconds"], "generate": steps["plain_seconds"]},
        "peak_mb": peaks["recorded"], "plain_peak_mb": peaks["plain"], "eager_peak_mb": peaks["eager"],
        "asked_mb": rows_megabytes(arguments.shape, ROWS), "growth": growth,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    found = measure(arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:22}{value}")


if __name__ == "__main__":
    main()
