"""ablate(): take attention heads away at the place where recording sees them, and prove that they were taken."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.capture.hooks import require_uncompiled, watch_forward
from probe.capture.modules import attention_modules
from probe.capture.passes import inputs_with_answer
from probe.capture.references import HeadMeans, HeadOutputs, fingerprint, require_language_model
from probe.capture.taps import AttentionCall, edit_registry, watch_registry
from probe.capture.weights import uniform_rows
from probe.errors import CaptureError, InputError
from probe.models import Subject
from probe.text import shorten

__all__ = ["WAYS", "HeadMeans", "How", "ablate", "check_heads", "editing", "mean_outputs", "without_heads"]

Heads = Iterable[tuple[int, int]]
How = Literal["zero", "mean", "uniform", "other image"]

#: What can be put in the place of a head.
WAYS: tuple[How, ...] = ("zero", "mean", "uniform", "other image")

# At most this many rows of a uniform head are made at a time, so that no (token x token) map is ever held.
_ROWS_AT_ONCE = 256

_MAKE_IT = "make it with mean_outputs() or head_outputs() and this very model"


def mean_outputs(subject: Subject, conversations: Iterable[tuple[Any, str, str]], *, name: str) -> HeadMeans:
    """The mean output of every head over all positions of some conversations: the reference set of ``ablate(how="mean")``.

    Parameters
    ----------
    conversations : (image, prompt, answer) of each; may be a generator.
    name : what the set is, such as "200 train scenes".

    Raises
    ------
    InputError
        If there is none, or one is not (image, prompt, answer).
    CaptureError
        If the model is compiled, or a layer ran unseen.
    """
    from probe.images import read_image

    require_language_model(subject, "mean_outputs")
    require_uncompiled(subject.model)
    found = attention_modules(subject.model, subject.family)
    number = {module: layer for layer, (_, module) in enumerate(found)}
    sums: dict[int, Tensor] = {}
    rows = 0

    def add(module: nn.Module, call: AttentionCall) -> None:
        total = call.output.detach().double().sum(dim=(0, 1))
        layer = number[module]
        sums[layer] = sums[layer] + total if layer in sums else total

    with watch_registry(number, add), torch.inference_mode():
        for conversation in conversations:
            if not isinstance(conversation, (tuple, list)) or len(conversation) != 3:
                raise InputError(
                    f"mean_outputs() needs (image, prompt, answer) of each conversation, found a {type(conversation).__name__}: "
                    f"{shorten(repr(conversation), 70)}."
                )
            image, prompt, answer = conversation
            inputs, _ = inputs_with_answer(subject, read_image(image), prompt, answer)
            subject.model(**inputs, use_cache=False)
            rows += inputs["input_ids"].shape[1]
    if not rows:
        raise InputError("The reference set of mean_outputs() is empty; give at least one (image, prompt, answer).")
    if len(sums) != len(found):
        raise CaptureError(
            f"Only {len(sums)} of {len(found)} layers were seen: the attention of the others does not go through transformers' "
            "attention functions, so it has no means."
        )
    means = {layer: (total / rows).float() for layer, total in sums.items()}
    return HeadMeans(name, rows, means, fingerprint(subject.model))


@contextmanager
def ablate(
    subject: Subject,
    *,
    heads: Heads,
    how: How = "zero",
    reference: HeadMeans | HeadOutputs | None = None,
) -> Iterator[None]:
    """A context in which these heads say nothing: in ``generate``, in single passes, and while recording.

    >>> with probe.ablate(subject, heads=[(2, 1), (3, 0)]):
    ...     run = probe.run(subject, "photo.jpg", "Describe the image.")

    The head's own output is replaced before the output projection, exactly as if its slice were edited there. A record that is made
    inside still shows what the kernel computed; what comes after the head changes. ``record.source.ablation`` says what was taken.

    Parameters
    ----------
    heads : (layer, head) of each, by number.
    how : "zero" puts nothing in its place; "mean" its mean output over ``reference``; "uniform" the mean of the values that each
        row may attend to, as if it looked everywhere alike; "other image" what it gave out at the same position of the pass in
        ``reference``, for single passes over as many tokens.
    reference : from ``mean_outputs`` for "mean", from ``head_outputs`` for "other image"; needed there, and only there.

    Raises
    ------
    InputError
        If a head does not exist or is named twice, ``reference`` does not go with ``how``, or it was made with another model.
    CaptureError
        If the model is compiled; or, when the context ends, if the model did not run inside, or a layer ran without being edited.
    """
    pairs = check_heads(subject, heads)
    chosen: dict[int, list[int]] = defaultdict(list)
    for layer, head in pairs:
        chosen[layer].append(head)
    _require_reference(subject, how, reference, chosen)

    def edit(module: nn.Module, call: AttentionCall, layer: int) -> Tensor:
        return without_heads(module, call, chosen[layer], how=how, reference=reference, layer=layer)

    done = how if reference is None else f"{how} over {reference.name}"
    with editing(subject, chosen, edit, name=f"{done}: {', '.join(map(str, pairs))}"):
        yield


@contextmanager
def editing(
    subject: Subject, layers: Iterable[int], edit: Callable[[nn.Module, AttentionCall, int], Tensor], *, name: str
) -> Iterator[None]:
    """A context in which ``edit(module, call, layer)`` stands in the place of what the attention of these layers gives out.

    Raises
    ------
    CaptureError
        If the model is compiled; or, when the context ends, if the model did not run inside, or a layer ran without being edited.
    """
    require_uncompiled(subject.model)
    found = attention_modules(subject.model, subject.family)
    number = {found[layer][1]: layer for layer in layers}
    ran, edited = dict.fromkeys(number, 0), dict.fromkeys(number, 0)

    def count(module: nn.Module, output: Any) -> None:
        ran[module] += 1

    def replace(module: nn.Module, call: AttentionCall) -> Tensor:
        edited[module] += 1
        return edit(module, call, number[module])

    with edit_registry(number, replace, name=name), watch_forward(number, after=count):
        yield
    # Not reached where the body raised: its own error is the one to see.
    wrong = [f"layer {number[module]} ran {ran[module]} times and was edited {edited[module]} times" for module in number
             if ran[module] != edited[module]]  # fmt: skip
    if wrong or not any(ran.values()):
        raise CaptureError(
            f"The ablation did not take effect: {'; '.join(wrong) or 'the model did not run inside the context'}. "
            "Heads can be taken away only where attention goes through transformers' attention functions."
        )


def check_heads(subject: Subject, heads: Heads) -> tuple[tuple[int, int], ...]:
    """The heads in order, as (layer, head) in plain whole numbers, after a look at every one of them.

    Raises
    ------
    InputError
        If there is none, one does not exist, is named twice, or is not a pair of whole numbers.
    """
    require_language_model(subject, "ablate")
    layers = len(attention_modules(subject.model, subject.family))
    count = subject.model.config.get_text_config().num_attention_heads
    pairs: list[tuple[int, int]] = []
    for layer, head in _whole_pairs(heads):
        if not (0 <= layer < layers and 0 <= head < count):
            raise InputError(
                f"Head {(layer, head)} does not exist: the model has layers 0 to {layers - 1} with heads 0 to {count - 1} each."
            )
        if (layer, head) in pairs:
            raise InputError(f"Head {(layer, head)} is named twice; name each once.")
        pairs.append((layer, head))
    if not pairs:
        raise InputError("heads is empty; name at least one (layer, head).")
    return tuple(sorted(pairs))


def _whole_pairs(heads: Any) -> list[tuple[int, int]]:
    """The heads as whole numbers: 1.9 is not head 1, "12" is not head (1, 2), and True is no number of a layer."""
    try:
        listed = [tuple(one) for one in ([heads] if isinstance(heads, str) else heads)]
        if any(isinstance(number, bool) for pair in listed for number in pair):
            raise TypeError
        return [(operator.index(layer), operator.index(head)) for layer, head in listed]
    except (TypeError, ValueError):
        raise InputError(
            f"heads={shorten(repr(heads), 70)} is not a list of (layer, head) numbers, such as [(2, 1), (3, 0)]."
        ) from None


def _require_reference(subject: Subject, how: Any, reference: Any, layers: Iterable[int]) -> None:
    """Nothing, if the reference is what this way of taking away needs, and was made with this very model."""
    if how not in WAYS:
        raise InputError(f"how must be 'zero', 'mean', 'uniform' or 'other image', found {how!r}.")
    if reference is not None and not isinstance(reference, (HeadMeans, HeadOutputs)):
        raise InputError(
            "reference must be the HeadMeans of mean_outputs() or the HeadOutputs of head_outputs(), found a "
            f"{type(reference).__name__}."
        )
    needed = {"mean": HeadMeans, "other image": HeadOutputs}.get(how)
    if not isinstance(reference, needed or type(None)):
        maker = "mean_outputs()" if how == "mean" else "head_outputs()"
        found = "" if reference is None else f"; found {type(reference).__name__}"
        raise InputError(
            f"how={how!r} {f'needs reference: the {needed.__name__} of {maker}' if needed else 'takes no reference'}{found}."
        )
    if reference is None:
        return
    absent = [layer for layer in layers if layer not in reference.outputs]
    if absent:
        raise InputError(f"The reference {reference.name!r} holds nothing for layer {absent[0]}; {_MAKE_IT}.")
    if reference.weights and reference.weights != fingerprint(subject.model):
        raise InputError(
            f"The reference {reference.name!r} was made with another model than {subject.name!r}, or with other weights of it or "
            f"another number type; {_MAKE_IT}."
        )


def without_heads(
    module: nn.Module,
    call: AttentionCall,
    heads: list[int],
    *,
    how: How,
    reference: HeadMeans | HeadOutputs | None,
    layer: int,
) -> Tensor:
    """(batch, query, head, channel) output with these heads replaced; the kernel's own tensor stays as it is."""
    output = call.output.clone()
    if how == "zero":
        output[:, :, heads] = 0
    elif reference is not None:
        given = reference.outputs[layer]
        if given.shape[-2:] != output.shape[2:]:
            raise InputError(
                f"The reference {reference.name!r} holds outputs of shape {tuple(given.shape[-2:])}, (head, channel), "
                f"for layer {layer}, which gives out {tuple(output.shape[2:])}; {_MAKE_IT}."
            )
        if given.ndim == 3:
            first = call.key.shape[2] - call.query.shape[2]  # queries are the last of the positions that are keys
            if len(given) < call.key.shape[2] or (first == 0 and len(given) != call.key.shape[2]):
                raise InputError(
                    f"The reference {reference.name!r} holds {len(given)} positions, and this pass has {call.key.shape[2]}: give "
                    "the same prompt and answer with an image that becomes as many tokens."
                )
            given = given[first : call.key.shape[2]]
        output[:, :, heads] = given[..., heads, :].to(output)
    else:
        _spread(module, call, tuple(heads), output)
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
