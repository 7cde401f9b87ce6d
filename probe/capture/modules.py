"""Which modules of a model are its attention layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from probe.errors import CaptureError
from probe.families import Family, matches

__all__ = ["attention_modules"]


def attention_modules(model: Any, family: Family) -> list[tuple[str, nn.Module]]:
    """Name and module of every attention module of the language model, in the order of its layers.

    Raises
    ------
    CaptureError
        If there are not as many as ``config.num_hidden_layers`` states.
    """
    decoder = model.get_decoder()
    inside = {id(one) for one in decoder.modules()}
    found = [
        (name, one)
        for name, one in model.named_modules()
        if id(one) in inside and matches(one, family.attention) and getattr(one, "layer_idx", None) is not None
    ]
    found.sort(key=lambda pair: pair[1].layer_idx)
    stated = model.config.get_text_config().num_hidden_layers
    if [one.layer_idx for _, one in found] != list(range(stated)):
        raise CaptureError(
            f"{type(model).__name__} states {stated} layers but {len(found)} attention modules were found "
            f"({', '.join(sorted({type(one).__name__ for _, one in found})) or 'none'}): it is not built as its family is."
        )
    return found
