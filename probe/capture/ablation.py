"""ablate(): take attention heads away at the place where recording sees them, and prove that they were taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.capture.hooks import require_uncompiled, watch_forward
from probe.capture.modules import attention_modules
from probe.capture.passes import inputs_with_answer
from probe.capture.taps import AttentionCall, edit_registry, watch_registry
from probe.capture.weights import uniform_rows
from probe.errors import CaptureError, InputError
from probe.models import Subject

__all__ = ["HeadMeans", "ablate", "mean_outputs"]

Heads = Sequence[tuple[int, int]]

# At most this many rows of a uniform head are made at a time, so that no (token x token) map is ever held.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class HeadMeans:
    """What each head gives out on average over a named set of inputs.

    Attributes
    ----------
    name : what the set is, for the record of what was done.
    rows : number of query rows that were averaged.
    outputs : (head, channel) float32 mean output for each layer number.
    """

    name: str
    rows: int
    outputs: dict[int, Tensor]


def mean_outputs(subject: Subject, conversations: Iterable[tuple[Any, str, str]], *, name: str) -> HeadMeans:
    """The mean output of every head over all positions of some conversations: the reference set of ``ablate(how="mean")``.

    Parameters
    ----------
    conversations : (image, prompt, answer) of each; may be a generator.
    name : what the set is, such as "200 train scenes".

    Raises
    ------
    InputError
        If there is none.
    """
    from probe.images import read_image

    found = attention_modules(subject.model, subject.family)
    number = {module: layer for layer, (_, module) in enumerate(found)}
    sums: dict[int, Tensor] = {}
    rows = 0

    def add(module: nn.Module, call: AttentionCall) -> None:
        total = call.output.detach().double().sum(dim=(0, 1))
        layer = number[module]
        sums[layer] = sums[layer] + total if layer in sums else total

    with watch_registry(number, add), torch.inference_mode():
        for image, prompt, answer in conversations:
            inputs, _ = inputs_with_answer(subject, read_image(image), prompt, answer)
            subject.model(**inputs, use_cache=False)
            rows += inputs["input_ids"].shape[1]
    if not sums:
        raise InputError("The reference set of mean_outputs() is empty; give at least one (image, prompt, answer).")
    return HeadMeans(name, rows, {layer: (total / rows).float() for layer, total in sums.items()})


@contextmanager
def ablate(
    subject: Subject,
    *,
    heads: Heads,
    how: Literal["zero", "mean", "uniform"] = "zero",
    reference: HeadMeans | None = None,
) -> Iterator[None]:
    """A context in which these heads say nothing: in ``generate``, in single passes, and while recording.

    >>> with probe.ablate(subject, heads=[(2, 1), (3, 0)]):
    ...     run = probe.run(subject, "photo.jpg", "Describe the image.")

    The head's own output is replaced before the output projection, exactly as if its slice were edited there. A record that is made
    inside still shows what the kernel computed; what comes after the head changes.

    Parameters
    ----------
    heads : (layer, head) of each, by number.
    how : "zero" puts nothing in its place; "mean" its mean output over ``reference``; "uniform" the mean of the values that each
        row may attend to, as if it looked everywhere alike.
    reference : from ``mean_outputs``; needed for "mean", and only there.

    Raises
    ------
    InputError
        If a head does not exist or is named twice, or ``reference`` does not go with ``how``.
    CaptureError
        If the model is compiled; or, when the context ends, if the model did not run inside, or a layer ran without being edited.
    """
    model = subject.model
    require_uncompiled(model)
    found = attention_modules(model, subject.family)
    chosen = _by_layer(heads, len(found), model.config.get_text_config().num_attention_heads)
    if how not in ("zero", "mean", "uniform"):
        raise InputError(f"how must be 'zero', 'mean' or 'uniform', found {how!r}.")
    if (how == "mean") != (reference is not None):
        raise InputError(
            f"how={how!r} {'needs' if how == 'mean' else 'takes no'} reference: the HeadMeans of mean_outputs()."
        )
    layers = {found[layer][1]: layer for layer in chosen}
    ran, edited = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0)

    def count(module: nn.Module, output: Any) -> None:
        ran[module] += 1

    def edit(module: nn.Module, call: AttentionCall) -> Tensor:
        edited[module] += 1
        return _without(module, call, chosen[layers[module]], how=how, reference=reference, layer=layers[module])

    with edit_registry(layers, edit), watch_forward(layers, after=count):
        yield
    # Not reached where the body raised: its own error is the one to see.
    wrong = [f"layer {layers[module]} ran {ran[module]} times and was edited {edited[module]} times" for module in layers
             if ran[module] != edited[module]]  # fmt: skip
    if wrong or not any(ran.values()):
        raise CaptureError(
            f"The ablation did not take effect: {'; '.join(wrong) or 'the model did not run inside the context'}. "
            "Heads can be taken away only where attention goes through transformers' attention functions."
        )


def _by_layer(heads: Heads, layers: int, count: int) -> dict[int, tuple[int, ...]]:
    """The heads of each layer, after a look at every one of them."""
    chosen: dict[int, list[int]] = defaultdict(list)
    try:
        pairs = [(int(layer), int(head)) for layer, head in heads]
    except (TypeError, ValueError):
        raise InputError(f"heads={heads!r} is not a list of (layer, head) numbers, such as [(2, 1), (3, 0)].") from None
    if not pairs:
        raise InputError("heads is empty; name at least one (layer, head).")
    for layer, head in pairs:
        if not (0 <= layer < layers and 0 <= head < count):
            raise InputError(
                f"Head {(layer, head)} does not exist: the model has layers 0 to {layers - 1} with heads 0 to {count - 1} each."
            )
        if head in chosen[layer]:
            raise InputError(f"Head {(layer, head)} is named twice; name each once.")
        chosen[layer].append(head)
    return {layer: tuple(sorted(found)) for layer, found in chosen.items()}


def _without(
    module: nn.Module,
    call: AttentionCall,
    heads: tuple[int, ...],
    *,
    how: str,
    reference: HeadMeans | None,
    layer: int,
) -> Tensor:
    """(batch, query, head, channel) output with these heads replaced; the kernel's own tensor stays as it is."""
    output = call.output.clone()
    if how == "zero":
        output[:, :, list(heads)] = 0
    elif reference is not None:
        if layer not in reference.outputs or reference.outputs[layer].shape != output.shape[2:]:
            raise InputError(
                f"The reference {reference.name!r} holds no means for layer {layer} of this model; make it with mean_outputs() and "
                "this very model."
            )
        output[:, :, list(heads)] = reference.outputs[layer][list(heads)].to(output)
    else:
        _spread(module, call, heads, output)
    return output


def _spread(module: nn.Module, call: AttentionCall, heads: tuple[int, ...], output: Tensor) -> None:
    """Nothing; puts each row's mean over the values that it may attend to into ``output``."""
    group = call.query.shape[1] // call.key.shape[1]
    for batch in range(output.shape[0]):
        value = call.value[batch, [head // group for head in heads]].float()
        for start in range(0, output.shape[1], _ROWS_AT_ONCE):
            rows = torch.arange(start, min(start + _ROWS_AT_ONCE, output.shape[1]), device=output.device)
            mean = uniform_rows(module, call, rows=rows, heads=heads, batch=batch) @ value
            output[batch, rows[:, None], torch.tensor(heads, device=output.device)] = mean.transpose(0, 1).to(output)
