"""What is put in the place of a head: its mean over a named set of inputs, or what it gave out for another picture."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.hooks import require_uncompiled
from probe.capture.modules import attention_modules
from probe.capture.passes import inputs_with_answer
from probe.capture.taps import AttentionCall, watch_registry
from probe.errors import CaptureError, InputError
from probe.models import Subject

__all__ = ["HeadMeans", "HeadOutputs", "fingerprint", "head_outputs", "require_language_model"]


@dataclass(frozen=True, eq=False)
class HeadMeans:
    """What each head gives out on average over a named set of inputs.

    Attributes
    ----------
    name : what the set is, for the record of what was done.
    rows : number of query rows that were averaged.
    outputs : (head, channel) float32 mean output for each layer number.
    weights : fingerprint of the model that gave them, so that those of another are refused; empty where that is not known.
    """

    name: str
    rows: int
    outputs: dict[int, Tensor]
    weights: str = ""


@dataclass(frozen=True, eq=False)
class HeadOutputs:
    """What each head gives out in one pass, position by position.

    Attributes
    ----------
    name : what was read, for the record of what was done.
    rows : number of positions of that pass.
    outputs : (row, head, channel) output for each layer number, in the model's own number type.
    weights : fingerprint of the model that gave them.
    """

    name: str
    rows: int
    outputs: dict[int, Tensor]
    weights: str = ""


def head_outputs(subject: Subject, image: Any, prompt: str, answer: str, *, name: str) -> HeadOutputs:
    """What every head gives out while the model reads one conversation: the reference of ``ablate(how="other image")``.

    Give the prompt and answer of the pass that is to be ablated and another image, so that positions mean the same in both.

    Raises
    ------
    InputError
        If the answer is empty, or the image cannot be read.
    CaptureError
        If the model is compiled, or a layer ran unseen.
    """
    from probe.images import read_image

    require_language_model(subject, "head_outputs")
    require_uncompiled(subject.model)
    found = attention_modules(subject.model, subject.family)
    number = {module: layer for layer, (_, module) in enumerate(found)}
    outputs: dict[int, Tensor] = {}

    def keep(module: nn.Module, call: AttentionCall) -> None:
        outputs[number[module]] = call.output[0].detach()

    inputs, _ = inputs_with_answer(subject, read_image(image), prompt, answer)
    with watch_registry(number, keep), torch.inference_mode():
        subject.model(**inputs, use_cache=False)
    if len(outputs) != len(found):
        raise CaptureError(
            f"Only {len(outputs)} of {len(found)} layers were seen: the attention of the others does not go through transformers' "
            "attention functions, so what their heads give out is not known."
        )
    return HeadOutputs(name, inputs["input_ids"].shape[1], outputs, fingerprint(subject.model))


def require_language_model(subject: Any, asked: str) -> None:
    """Nothing, if this is a subject whose language model has heads to take away.

    Raises
    ------
    InputError
        If it is not.
    """
    if not isinstance(subject, Subject):
        raise InputError(
            f"{asked}() needs a Subject, found a {type(subject).__name__}; make one with probe.load_model(...)."
        )
    if subject.family.kind != "language model":
        raise InputError(
            f"{asked}() works on a language model's heads, and {subject.name!r} ({subject.family.name}) has no language model; "
            "give a vision-language model such as LLaVA."
        )


def fingerprint(model: nn.Module) -> str:
    """A digest of a few values of every parameter: alike for equal weights, and quick for a model of any size."""
    digest = hashlib.sha256()
    picked: dict[torch.device, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        # What was moved out of memory has no values to look at.
        if parameter.numel() and not parameter.is_meta:
            values = parameter.detach().reshape(-1)
            picked[values.device].append(values[:: max(1, len(values) // 16)][:16].double())
    for on_device in picked.values():  # one copy from each device, not one for each parameter
        digest.update(torch.cat(on_device).cpu().numpy().tobytes())
    return digest.hexdigest()
