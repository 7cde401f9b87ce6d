"""What recording costs: whole passes with and without it, paired in one run. Prints ratios; no test fails on a clock.

python -m pytest tests/speed -s
# the shape of a 7B model:
python -m tests.speed.test_recording_speed --width 4096 --layers 32 --heads 32 --dtype bfloat16 --device cuda
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from probe.capture.passes import inputs_for
from probe.capture.recorder import record
from probe.models import Subject
from tests.tiny import picture, tiny_llava


def _seconds(action: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(subject: Subject, *, tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds of plain generation, and median ratios to it, each taken in the same round."""
    model = subject.model
    inputs, _ = inputs_for(subject, picture(), "Describe the image.")

    def generate(**options: Any) -> Any:
        with torch.inference_mode():
            return model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options
            )  # fmt: skip

    def recorded() -> None:
        with record(subject):
            generate()

    def eager() -> None:
        model.set_attn_implementation({"text_config": "eager"})
        try:
            generate(output_attentions=True, return_dict_in_generate=True)
        finally:
            model.set_attn_implementation({"text_config": "sdpa"})

    actions = {"plain": generate, "recorded": recorded, "eager with output_attentions": eager}
    for action in actions.values():
        action()
    rows = [{name: _seconds(action, model.device) for name, action in actions.items()} for _ in range(rounds)]
    found = {"plain seconds": statistics.median(row["plain"] for row in rows)}
    for name in ("recorded", "eager with output_attentions"):
        found[name] = statistics.median(row[name] / row["plain"] for row in rows)
    return found


def _sized(*, width: int, layers: int, heads: int, **options: Any) -> Subject:
    """A random LLaVA with LLaVA-1.5's 24 x 24 patches and a language model of this shape."""
    return tiny_llava(
        size=336,
        patch=14,
        hidden_size=width,
        intermediate_size=int(width * 2.6875),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        **options,
    )


def _print(title: str, found: dict[str, float]) -> None:
    shown = ", ".join(f"{name} {value:.3g}{'' if 'seconds' in name else 'x'}" for name, value in found.items())
    print(f"\n{title}: {shown}")


def test_recording_beside_plain_generation_and_eager():
    subject = _sized(width=256, layers=8, heads=8)
    found = ratios(subject, tokens=32, rounds=5)
    _print("generate 32 tokens, 8 layers x 8 heads, width 256, 24 x 24 patches", found)
    assert set(found) == {"plain seconds", "recorded", "eager with output_attentions"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("width", 512), ("layers", 8), ("heads", 8), ("tokens", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    made = _sized(width=given.width, layers=given.layers, heads=given.heads, dtype=getattr(torch, given.dtype))
    made.model.to(given.device)
    shape = f"{given.layers} layers x {given.heads} heads, width {given.width}, {given.dtype}, {given.device}"
    _print(f"generate {given.tokens} tokens, {shape}", ratios(made, tokens=given.tokens, rounds=given.rounds))
