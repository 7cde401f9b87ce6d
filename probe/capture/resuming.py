"""Many ablations of one conversation: the unablated pass runs once, and each other pass begins where it differs from that."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.hooks import require_uncompiled, watch_forward
from probe.capture.modules import attention_modules
from probe.capture.taps import AttentionCall, edit_registry, watch_registry
from probe.errors import CaptureError
from probe.models import Subject

__all__ = ["DECODERS", "Trunk", "read_trunk", "resume", "why_whole"]

#: Decoders that are known to be a plain list of layers with a norm after it, and nothing from outside entering in the middle.
DECODERS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")

Change = Callable[[nn.Module, AttentionCall], Tensor]
Watch = Callable[[int, AttentionCall], None]


@dataclass(frozen=True, eq=False)
class Trunk:
    """What other passes of the same conversation need of its unablated pass.

    Attributes
    ----------
    first, stop : rows first to stop - 1 predict the answer's tokens.
    states : (1, position, channel) state that each layer was given.
    keys, values : (1, key head, position, channel) of each layer, after rotary embedding.
    logits : (row, vocabulary) of the scored rows.
    reason : why other passes cannot begin in the middle; empty if they can.
    """

    subject: Subject
    first: int
    stop: int
    logits: Tensor
    states: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    reason: str = ""


class _Reached(Exception):
    """The pass has come to the keys and values that it was run for; what follows would be thrown away."""


def why_whole(subject: Subject) -> str:
    """Why passes of this model cannot begin in the middle, in a few words; empty if nothing speaks against it."""
    decoder = subject.model.get_decoder()
    name, config = type(decoder).__name__, subject.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if name not in DECODERS:
        return f"the decoder {name} is not known to be a plain list of layers"
    if subject.family.image_tokens == "cross-attention":
        return "its layers look at the picture from outside the sequence"
    if kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return "its attention slides over the sequence"
    if len(getattr(decoder, "layers", ())) != config.num_hidden_layers or not hasattr(decoder, "norm"):
        return f"the decoder {name} is not built as its configuration says"
    if "forward" in vars(decoder):
        return "the forward of its decoder was replaced"  # by accelerate, for parts on several devices
    if subject.model.training:
        return "it is in training mode"
    return ""


@torch.inference_mode()
def read_trunk(subject: Subject, inputs: dict[str, Any], answer_start: int) -> Trunk:
    """The unablated pass over a conversation with an answer from that position on, kept for ``resume``.

    Where passes cannot begin in the middle, ``reason`` says why, and only the logits are kept.

    Raises
    ------
    CaptureError
        If the model is compiled.
    """
    require_uncompiled(subject.model)
    length = inputs["input_ids"].shape[1]
    reason = why_whole(subject)
    states: dict[nn.Module, Tensor] = {}
    seen: dict[nn.Module, AttentionCall] = {}
    given: dict[str, Any] = {}
    final: list[Tensor] = []
    with ExitStack() as stack:
        if not reason:
            decoder = subject.model.get_decoder()
            modules = [one for _, one in attention_modules(subject.model, subject.family)]
            stack.enter_context(
                watch_forward([decoder], before=lambda _, args, kwargs: given.update(kwargs, args=args))
            )
            stack.enter_context(
                watch_forward([decoder], after=lambda _, output: final.append(output.last_hidden_state))
            )
            stack.enter_context(
                watch_forward(
                    decoder.layers, before=lambda one, args, kwargs: states.update({one: _state(args, kwargs)})
                )
            )
            stack.enter_context(watch_registry(modules, lambda one, call: seen.update({one: call})))
        output = subject.model(**inputs, use_cache=False, logits_to_keep=length - answer_start + 1)
    first, stop = answer_start - 1, length - 1
    logits = output.logits[0, :-1]
    reason = reason or _unlike(
        subject, given, seen, states, final, length=length, logits=logits, first=first, stop=stop
    )
    if reason:
        return Trunk(subject, first, stop, logits, reason=reason)
    calls = [seen[one] for one in modules]
    return Trunk(
        subject, first, stop, logits, [states[one] for one in decoder.layers],
        [one.key for one in calls], [one.value for one in calls],
    )  # fmt: skip


def _state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _unlike(
    subject: Subject,
    given: dict[str, Any],
    seen: dict[nn.Module, AttentionCall],
    states: dict[nn.Module, Tensor],
    final: list[Tensor],
    *,
    length: int,
    logits: Tensor,
    first: int,
    stop: int,
) -> str:
    """How a pass differed from what ``resume`` takes for granted; empty if it did not."""
    decoder, mask, places = subject.model.get_decoder(), given.get("attention_mask"), given.get("position_ids")
    if given.get("args") or not isinstance(given.get("inputs_embeds"), Tensor):
        return "its decoder is not given embeddings by name"
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2 and bool((mask == 1).all())):
        return "its decoder is given a mask of its own"
    if places is not None and not torch.equal(places.reshape(-1).cpu(), torch.arange(length)):
        return "its positions are not 0, 1, 2, ..."
    if len(seen) != len(decoder.layers) or len(states) != len(decoder.layers):
        return "not every layer was seen"
    if any(one.key.shape[2] != length or one.key.shape[0] != 1 for one in seen.values()):
        return "its keys are not one for each position"
    head = subject.model.get_output_embeddings()
    if head is None or not torch.allclose(head(final[0][0, first:stop]), logits, rtol=1e-3, atol=1e-3):
        return "its logits are more than its output embeddings give"
    return ""


@torch.inference_mode()
def resume(
    trunk: Trunk, layer: int, change: Change, *, count: int, answer_alone: bool = False, watch: Watch | None = None
) -> Tensor:
    """(pass, row, vocabulary) logits of the scored rows of ``count`` passes that differ from the trunk from one layer on.

    The model's own decoder runs with its layers from that one on; of the last layer only the scored rows are computed, against
    keys and values that the model made itself. The model is not touched: what runs is a copy of the decoder's shell.

    Parameters
    ----------
    change : (module, call) -> (pass, query, head, channel) what stands in the place of that layer's attention output. Queries of
        the call are the last of its keys' positions.
    answer_alone : the change concerns no row before the first scored one, so that only those are run.
    watch : called with (layer, call) of each layer from that one on; its queries include every scored row.

    Raises
    ------
    CaptureError
        If the change was not asked for.
    """
    decoder = trunk.subject.model.get_decoder()
    modules = [one for _, one in attention_modules(trunk.subject.model, trunk.subject.family)]
    number = {module: place for place, module in enumerate(modules)}
    last, changed = len(modules) - 1, 0

    def edit(module: nn.Module, call: AttentionCall) -> Tensor:
        nonlocal changed
        changed += 1
        return change(module, call)

    keys, values = trunk.keys, trunk.values
    with ExitStack() as stack:
        stack.enter_context(edit_registry([modules[layer]], edit, name=f"resumed at layer {layer}"))
        if answer_alone or layer == last:
            begin, state = layer, trunk.states[layer][:, trunk.first : trunk.stop].expand(count, -1, -1)
        else:
            state, call = _up_to(trunk, layer, modules, count=count, watch=watch)
            begin, keys, values = last, [*keys[:last], call.key], [*values[:last], call.value]
        if watch is not None:
            told = watch  # for the type checker: it is not None inside the function either
            stack.enter_context(watch_registry(modules[begin:], lambda one, seen: told(number[one], seen)))
        cache = _prefix(trunk, keys, values, begin=begin, count=count)
        name = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
        output = _shortened(decoder, decoder.layers[begin:])(inputs_embeds=state, use_cache=True, **{name: cache})
        logits = trunk.subject.model.get_output_embeddings()(output.last_hidden_state)
    if changed != 1:
        raise CaptureError(f"Layer {layer} was resumed and its attention was changed {changed} times instead of once.")
    return logits


def _up_to(
    trunk: Trunk, layer: int, modules: Sequence[nn.Module], *, count: int, watch: Watch | None
) -> tuple[Tensor, AttentionCall]:
    """The scored rows of the state that the last layer is given, and that layer's call, which is not carried out."""
    decoder, last = trunk.subject.model.get_decoder(), len(modules) - 1
    number = {module: place for place, module in enumerate(modules)}
    states: list[Tensor] = []
    calls: list[AttentionCall] = []

    def see(module: nn.Module, call: AttentionCall) -> None:
        if module is modules[last]:
            calls.append(call)
            raise _Reached
        if watch is not None:
            watch(number[module], call)

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(_state(args, kwargs)[:, trunk.first : trunk.stop])

    state = trunk.states[layer].expand(count, -1, -1)
    watched = modules[layer:] if watch is not None else [modules[last]]
    with watch_forward([decoder.layers[last]], before=keep), watch_registry(watched, see):
        try:
            _shortened(decoder, decoder.layers[layer:])(inputs_embeds=state, use_cache=False)
        except _Reached:
            return states[0], calls[0]
    raise CaptureError(f"A pass that was resumed at layer {layer} did not come to the attention of its last layer.")


def _shortened(decoder: nn.Module, layers: Any) -> nn.Module:
    """The decoder with these layers alone: another shell around the same parts, so that nothing has to be put back."""
    shell = copy.copy(decoder)
    shell._modules = {**decoder._modules, "layers": nn.ModuleList(layers)}
    return shell


def _prefix(trunk: Trunk, keys: list[Tensor], values: list[Tensor], *, begin: int, count: int) -> Any:
    """A cache of what the scored rows find before them, for the layers from ``begin`` on; the others only say how much it is."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        if layer < begin:
            cache.update(key[:1, :1, : trunk.first, :1], value[:1, :1, : trunk.first, :1], layer)
        else:
            own = [one[:, :, : trunk.first].expand(count, -1, -1, -1) for one in (key, value)]
            cache.update(own[0], own[1], layer)
    return cache
