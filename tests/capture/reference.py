"""The plain way to the same numbers: an eager copy of the model that keeps every map."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from probe.attention import AttentionRecord
from probe.capture.recorder import Recorder
from probe.models import Subject

__all__ = [
    "eager_batch",
    "eager_maps",
    "exact_softmax",
    "inputs_of",
    "largest_difference",
    "random_answer",
    "read",
    "with_answer",
]

PATCHES = 16  # of the tiny models: 4 x 4


def inputs_of(
    subject: Subject,
    image: Any,
    prompt: str = "Describe the image.",
    *,
    padding: int = 0,
    template: str = "USER: <image>\n{prompt} ASSISTANT:",
) -> dict[str, Any]:
    """What the processor makes of this, with that many padding tokens in front."""
    inputs = dict(subject.processor(images=image, text=template.format(prompt=prompt), return_tensors="pt"))
    inputs["pixel_values"] = inputs["pixel_values"].to(subject.model.dtype)
    front = torch.full((1, padding), subject.processor.tokenizer.pad_token_id)
    return {
        "input_ids": torch.cat([front, inputs["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.zeros_like(front), inputs["attention_mask"]], dim=1),
        "pixel_values": inputs["pixel_values"],
    }


def with_answer(inputs: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    tail = torch.tensor([ids], dtype=torch.long).reshape(1, -1)
    return dict(
        inputs,
        input_ids=torch.cat([inputs["input_ids"], tail], dim=1),
        attention_mask=torch.cat([inputs["attention_mask"], torch.ones_like(tail)], dim=1),
    )


def random_answer(subject: Subject, rng: random.Random, *, longest: int = 8) -> list[int]:
    """Ids of ordinary tokens: neither special ones nor image placeholders."""
    words = subject.processor.tokenizer("a man with a red ball and two dogs", add_special_tokens=False)["input_ids"]
    return [rng.choice(words) for _ in range(rng.randint(1, longest))]


def read(
    subject: Subject, inputs: dict[str, Any], ids: list[int], *, image: Any = None, **options: Any
) -> AttentionRecord:
    """The record of one pass over prompt and answer."""
    settings = {
        "layers": None,
        "heads": None,
        "queries": "answer",
        "query_row": None,
        "offload": False,
        "verify": "all",
    } | options
    start = inputs["input_ids"].shape[1]
    with torch.inference_mode(), Recorder(subject.model, subject.processor, **settings, answer_start=start) as recorder:
        subject.model(**with_answer(inputs, ids), use_cache=False)
    return recorder.result(image=image)


@contextmanager
def exact_softmax(subject: Subject) -> Iterator[None]:
    """Eager attention takes its softmax in float32 whatever the model's number type; a float64 model keeps float64 here."""
    plain = torch.nn.functional.softmax
    with ExitStack() as stack:
        if subject.model.dtype == torch.float64:
            patch = mock.patch("torch.nn.functional.softmax", lambda x, dim, dtype=None: plain(x, dim=dim))
            stack.enter_context(patch)
        yield


def eager_maps(subject: Subject, inputs: dict[str, Any]) -> list[Tensor]:
    """(head, query, key) of every layer for the first sequence, see ``eager_batch``."""
    return [one[0] for one in eager_batch(subject, inputs)]


def eager_batch(subject: Subject, inputs: dict[str, Any]) -> list[Tensor]:
    """(batch, head, query, key) of every layer, from an eager copy of the same weights in one pass.

    Each layer of the copy is given the input that it has in the model itself, whose kernel rounds differently on the way there.
    """
    eager = copy.deepcopy(subject.model)
    eager.set_attn_implementation("eager")
    inward: list[dict[str, Any]] = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        inward.append({name: kwargs[name] for name in ("hidden_states", "cross_attention_states") if name in kwargs})

    def give(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, dict(kwargs, **inward[module.layer_idx])

    handles = [
        (layer.cross_attn if hasattr(layer, "cross_attn") else layer.self_attn).register_forward_pre_hook(
            hook, with_kwargs=True
        )
        for model, hook in ((subject.model, keep), (eager, give))
        for layer in model.get_decoder().layers
    ]
    with torch.inference_mode(), exact_softmax(subject):
        subject.model(**inputs, use_cache=False)
        found = eager(**inputs, output_attentions=True, use_cache=False).attentions
    for one in handles:
        one.remove()
    assert len(found) == len(inward) == eager.config.get_text_config().num_hidden_layers
    return list(found)


def largest_difference(
    record: AttentionRecord,
    maps: list[Tensor],
    rows: list[int],
    inputs: dict[str, Any],
    *,
    layers: list[int] | None = None,
) -> float:
    """Largest difference of patches, beginning and rest from the plain maps, over every recorded row, layer and head."""
    ids = inputs["input_ids"][0].tolist()
    image = [i for i, one in enumerate(ids) if one == 3]
    bos = inputs["attention_mask"][0].tolist().index(1)
    assert len(image) == PATCHES
    assert len(record.tokens) == len(rows)
    worst = 0.0
    for layer, number in zip(record.layers, layers or range(len(maps)), strict=True):
        assert layer.name.endswith(f".layers.{number}.self_attn")
        for place, head in enumerate(layer.heads):
            for token, row in enumerate(rows):
                line = maps[number][head, row].to(layer.values.dtype)
                text = line.sum() - line[bos] - line[image].sum()
                worst = max(
                    worst,
                    float((layer.values[0, place, token].flatten() - line[image]).abs().max()),
                    float((layer.rest[0, place, token] - torch.stack([line[bos], text, torch.zeros(())])).abs().max()),
                )
    return worst
