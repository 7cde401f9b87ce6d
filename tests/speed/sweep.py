"""What an ablation costs in a sweep, paired in one run with loops over whole passes: numbers to read, never a verdict.

python -m tests.speed.sweep --json
python -m tests.speed.sweep --shape llava-1.5-7b --device cuda --dtype bfloat16 --cells 64

"Fair" is a loop with one pass per cell that knows what a careful user knows: the image's features are computed once, the language
model alone is run, and only the scored rows become logits. "Naive" is ``model(**inputs)`` for each cell.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probe.capture.hooks import watch_forward
from probe.models import Subject
from probe.sweep.ablations import CUT, Ablation, Cut
from probe.sweep.conversations import Conversation, read_conversation
from probe.sweep.engine import Engine
from tests.speed.capture import SHAPES, device_name, sized
from tests.tiny import picture

__all__ = ["edge_cells", "example_of", "head_cells", "seconds_of"]

ROWS = 64  # tokens of the caption
LOG_PROBABILITIES = ("log_probability", "caption_log_probability")


def example_of(rows: int, *, seed: int = 0) -> Any:
    """A picture with a caption of about that many tokens and one phrase."""
    from probe.evaluation.examples import Example, ExamplePhrase

    words = ("a man with a red ball and two dogs " * rows).split()[: rows - 1]
    text = " ".join(words)
    start = text.index("red ball")
    mask = np.zeros((336, 336), bool)
    mask[60:200, 90:240] = True
    return Example(
        f"image {seed}", picture(336, 336, seed=seed), text, (ExamplePhrase("red ball", start, start + 8, mask),)
    )


def head_cells(shape: str) -> list[Ablation]:
    """Every head of every layer."""
    _, layers, heads, _ = SHAPES[shape]
    return [Ablation("head", layer, head) for layer in range(layers) for head in range(heads)]


def edge_cells(shape: str) -> list[Ablation]:
    """What the answer sees of the image, for every head of every layer."""
    _, layers, heads, _ = SHAPES[shape]
    return [
        Ablation("edge", layer, head, edge="answer to image", how=CUT)
        for layer in range(layers)
        for head in range(heads)
    ]


def cuts_of(engine: Engine, conversation: Conversation) -> list[Cut]:
    return engine._cuts(conversation)


def fair(engine: Engine, example: Any) -> list[torch.Tensor]:
    """(token,) log-probabilities of each cell: image features once, the language model and the scored rows for each cell."""
    conversation = read_conversation(engine.subject, example, engine.prompt, attributes=(), maps=False)
    model, given = engine.subject.model, {}
    with (
        torch.inference_mode(),
        watch_forward([model.get_decoder()], before=lambda _, args, kwargs: given.update(kwargs)),
    ):
        model(**conversation.inputs, use_cache=False, logits_to_keep=1)
    state = given["inputs_embeds"]
    return [
        _taken(conversation, lambda: _decoded(model, conversation, state), cut) for cut in cuts_of(engine, conversation)
    ]


def _decoded(model: Any, conversation: Conversation, state: torch.Tensor) -> torch.Tensor:
    hidden = model.get_decoder()(inputs_embeds=state, use_cache=False).last_hidden_state
    return model.get_output_embeddings()(hidden[:, conversation.start - 1 : -1])


def naive(engine: Engine, example: Any) -> list[torch.Tensor]:
    """(token,) log-probabilities of each cell: the whole model, every row's logits."""
    conversation = read_conversation(engine.subject, example, engine.prompt, attributes=(), maps=False)
    model, inputs = engine.subject.model, conversation.inputs
    return [
        _taken(conversation, lambda: model(**inputs, use_cache=False).logits[:, conversation.start - 1 : -1], cut)
        for cut in cuts_of(engine, conversation)
    ]


def _taken(conversation: Conversation, run: Callable[[], torch.Tensor], cut: Cut) -> torch.Tensor:
    with torch.inference_mode(), cut.context(conversation.subject):
        chances = torch.log_softmax(run()[0].double(), -1)
    return chances.gather(1, conversation.inputs["input_ids"][0, conversation.start :, None])[:, 0].cpu()


def seconds_of(subject: Subject, action: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    action()
    if subject.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired(
    subject: Subject, cells: Sequence[Ablation], *, batch: int, pairs: int, ways: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Each loop's seconds over the engine's, in the same round: medians with 95 % intervals by bootstrap over rounds."""
    engine = Engine(subject, cells, LOG_PROBABILITIES, batch=batch)
    engine([example_of(ROWS, seed=seed)])  # the first image verifies one cell of each layer
    loops = {"fair": fair, "naive": naive}
    rounds = []
    for number in range(pairs):
        example = example_of(ROWS, seed=seed + number + 1)
        actions = {"engine": lambda one=example: engine([one])}
        actions |= {way: lambda one=example, way=way: loops[way](engine, one) for way in ways}
        order = list(actions)
        order = order[number % len(order) :] + order[: number % len(order)]
        gc.collect()
        rounds.append({way: seconds_of(subject, actions[way]) for way in order})
    return {
        "cells": len(cells), "engine_seconds": statistics.median(one["engine"] for one in rounds),
        "max_difference": engine.max_difference, "rounds": rounds,
        **{way: interval([one[way] / one["engine"] for one in rounds]) for way in ways},
    }  # fmt: skip


def interval(values: list[float]) -> dict[str, float]:
    """Their median, and the 95 % interval of it."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def largest_difference(subject: Subject, cells: Sequence[Ablation], *, batch: int) -> float:
    """Largest difference of a token's log-probability between the engine and the fair loop, over these cells of one image."""
    engine, example = Engine(subject, cells, LOG_PROBABILITIES, batch=batch, verify="off"), example_of(ROWS)
    conversation = read_conversation(subject, example, engine.prompt, attributes=(), maps=False)
    found, _ = engine._readings(conversation)
    wanted = fair(engine, example)
    return max(float((one.chances - two).abs().max()) for one, two in zip(found, wanted, strict=True))


def resident_megabytes() -> float:
    """What this process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    raise SystemExit("memory is read from /proc, which this system has not")


def growth(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the engine by layer that is ablated and by number of heads, and memory after each image."""
    subject = sized(arguments.shape, dtype=arguments.dtype, device=arguments.device)
    _, layers, heads, _ = SHAPES[arguments.shape]
    by_layer = []
    for layer in range(layers):
        engine = Engine(subject, [Ablation("head", layer, 0)], LOG_PROBABILITIES, batch=arguments.batch, verify="off")
        by_layer.append(seconds_of(subject, lambda one=engine: one([example_of(ROWS)])))
    by_heads = {}
    for count in (1, heads // 2, heads):
        cells = [Ablation("head", 0, head) for head in range(count)]
        engine = Engine(subject, cells, LOG_PROBABILITIES, batch=arguments.batch, verify="off")
        by_heads[count] = seconds_of(subject, lambda one=engine: one([example_of(ROWS)]))
    engine = Engine(
        subject, edge_cells(arguments.shape)[::heads], LOG_PROBABILITIES, batch=arguments.batch, verify="off"
    )
    memory = []
    for number in range(arguments.images):
        engine([example_of(ROWS, seed=number)])
        gc.collect()
        memory.append(resident_megabytes())
    return {"seconds_by_layer": by_layer, "seconds_by_heads_of_layer_0": by_heads, "resident_mb_by_image": memory}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    subject = sized(arguments.shape, dtype=arguments.dtype, device=arguments.device)
    step = max(1, len(head_cells(arguments.shape)) // arguments.cells)
    options = {"batch": arguments.batch, "pairs": arguments.pairs}
    every, edges = head_cells(arguments.shape)[::step], edge_cells(arguments.shape)[::step]
    of_heads = paired(subject, every, ways=("fair", "naive"), **options)
    of_edges = paired(subject, edges, ways=("fair",), seed=100, **options)
    difference = max(largest_difference(subject, some, batch=arguments.batch) for some in (every, edges))
    return {
        "shape": arguments.shape, "dtype": arguments.dtype, "device": device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "batch": arguments.batch, "cells": len(every), "pairs": arguments.pairs,
        "speedup_fair": of_heads["fair"], "speedup_edges": of_edges["fair"], "speedup_naive": of_heads["naive"],
        "seconds_per_head_cell": of_heads["engine_seconds"] / len(every),
        "seconds_per_edge_cell": of_edges["engine_seconds"] / len(edges),
        "max_difference": difference, **(growth(arguments) if arguments.growth else {}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cells", type=int, default=64, help="about so many of all heads, spread over the layers")
    parser.add_argument("--images", type=int, default=12, help="over how many memory is watched")
    parser.add_argument("--growth", action="store_true", help="also by layer, by heads, and memory over images")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28}{value}")


if __name__ == "__main__":
    main()
