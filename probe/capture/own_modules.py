"""Which modules of any PyTorch model are its attention, by a pattern, and which of them are heads of one layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate

import torch
from torch import nn

from probe.errors import CaptureError, InputError, did_you_mean
from probe.families import matches

__all__ = ["HEAD", "OwnLayer", "find_layers"]

#: What stands in a pattern for the number of a head, where heads are modules of their own.
HEAD = "{head}"


@dataclass(frozen=True, eq=False)
class OwnLayer:
    """One attention layer: a module with all of its heads, or one module for each head, in the order of their numbers."""

    name: str
    modules: tuple[nn.Module, ...]


def find_layers(model: nn.Module, pattern: str) -> list[OwnLayer]:
    """The attention layers of a model that fit a shell pattern, in the order in which the model lists them.

    The pattern is held against the names of its modules ("blocks.*.attn"; "*" stands for anything, dots included), and, where
    no name fits, against the names of their classes ("*Attention"). Where a module fits that holds exactly one
    ``nn.MultiheadAttention`` inside, that one is meant. ``{head}`` in a pattern of names stands for a number: modules whose names
    differ in nothing else are the heads of one layer ("blocks.*.attn.heads.{head}").

    Raises
    ------
    InputError
        If nothing fits.
    CaptureError
        If what fits is run by a fused kernel of ``nn.TransformerEncoderLayer``, in which no attention can be seen.
    """
    if not isinstance(pattern, str) or not pattern:
        raise InputError(f"attention must be a pattern of names, such as 'blocks.*.attn', found {pattern!r}.")
    named = [(name, one) for name, one in model.named_modules() if name]
    grouped: dict[str, list[tuple[int, nn.Module]]] = {}
    if HEAD in pattern:
        # As shell patterns are translated, with a place for the number.
        expression = re.compile(translate(pattern.replace(HEAD, "HEADNUMBER")).replace("HEADNUMBER", r"(?P<head>\d+)"))
        for name, one in named:
            found = expression.match(name)
            if found:
                low, high = found.span("head")
                grouped.setdefault(name[:low].rstrip(".") + name[high:], []).append((int(found["head"]), one))
    else:
        fitting = [(name, one) for name, one in named if fnmatchcase(name, pattern)]
        fitting = fitting or [(name, one) for name, one in named if matches(one, (pattern,))]
        for name, one in fitting:
            inner, module = _multihead(one)
            grouped[".".join(filter(None, (name, inner)))] = [(0, module)]
    if not grouped:
        names = [name for name, one in named if "att" in name.lower() or "att" in type(one).__name__.lower()]
        similar = f" Modules that look like attention: {', '.join(names[:4])}." if names else ""
        raise InputError(
            f"attention={pattern!r} fits no module of {type(model).__name__}, neither by its name nor by its class."
            f"{did_you_mean(pattern, names) or similar}"
        )
    for name, members in grouped.items():
        numbers = sorted(number for number, _ in members)
        if numbers != list(range(len(numbers))):
            raise InputError(
                f"attention={pattern!r} fits the heads {numbers} of {name}; they must be numbered from 0 without a gap, so that "
                "each keeps its own number."
            )
    layers = [
        OwnLayer(name, tuple(one for _, one in sorted(members, key=lambda pair: pair[0])))
        for name, members in grouped.items()
    ]
    _require_unfused(model, layers)
    return layers


def _multihead(module: nn.Module) -> tuple[str, nn.Module]:
    """The only ``nn.MultiheadAttention`` inside a module, by its name there; the module itself where there is none, or several."""
    inside = [(name, one) for name, one in module.named_modules() if isinstance(one, nn.MultiheadAttention)]
    return inside[0] if len(inside) == 1 else ("", module)


def _require_unfused(model: nn.Module, layers: list[OwnLayer]) -> None:
    wanted = {one for layer in layers for one in layer.modules}
    for name, outer in model.named_modules():
        if not isinstance(outer, nn.TransformerEncoderLayer) or not torch.backends.mha.get_fastpath_enabled():
            continue
        if wanted & set(outer.modules()):
            raise CaptureError(
                f"{name or type(outer).__name__!r} is an nn.TransformerEncoderLayer, which runs as one fused kernel unless "
                "somebody watches it, and rounds differently then; call torch.backends.mha.set_fastpath_enabled(False) first."
            )
