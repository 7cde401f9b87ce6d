"""Which modules of a model are its attention layers, and which part of it is its image encoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from probe.errors import CaptureError
from probe.families import FAMILIES, Family, matches

__all__ = ["attention_modules", "class_and_registers", "encoder_modules", "image_encoder", "patch_side"]


def attention_modules(model: Any, family: Family) -> list[tuple[str, nn.Module]]:
    """Name and module of every attention module of the language model, in the order of its layers.

    Raises
    ------
    CaptureError
        If there are not as many as ``config.num_hidden_layers`` states, or ``config.cross_attention_layers`` where those alone
        look at a picture.
    """
    decoder = model.get_decoder()
    inside = {id(one) for one in decoder.modules()}
    found = [
        (name, one)
        for name, one in model.named_modules()
        if id(one) in inside and getattr(one, "layer_idx", None) is not None and matches(one, family.attention)
    ]
    found.sort(key=lambda pair: pair[1].layer_idx)
    config = model.config.get_text_config()
    crossing = family.image_tokens == "cross-attention"
    stated = sorted(config.cross_attention_layers) if crossing else list(range(config.num_hidden_layers))
    if [one.layer_idx for _, one in found] != stated:
        raise CaptureError(
            f"{type(model).__name__} states {len(stated)} layers but {len(found)} attention modules were found "
            f"({', '.join(sorted({type(one).__name__ for _, one in found})) or 'none'}): it is not built as its family is."
        )
    return found


def image_encoder(model: Any) -> tuple[str, Any, Family]:
    """Name, module and family of the image encoder that a model is, or has: CLIP's or SigLIP's vision tower, a DINO.

    Raises
    ------
    CaptureError
        If there is none of a known family, or more than one.
    """
    encoders = [one for one in FAMILIES if one.kind == "image encoder"]
    found = [
        (name, one, family)
        for name, one in model.named_modules()
        for family in encoders
        if matches(one, family.models) and hasattr(one, "embeddings")
    ]
    if len(found) != 1:
        known = ", ".join(family.name for family in encoders)
        raise CaptureError(
            f"{type(model).__name__} has {len(found) or 'no'} image encoder{'s' * (len(found) > 1)} of a known family ({known}); "
            "exactly one can be recorded."
        )
    return found[0]


def encoder_modules(model: Any) -> list[tuple[str, nn.Module]]:
    """Name (in the whole model) and module of every attention module of its image encoder, in the order of its layers.

    Raises
    ------
    CaptureError
        If there are not as many as the encoder's configuration states.
    """
    prefix, tower, family = image_encoder(model)
    # Not by a number of their own: these modules have none, but they are listed in the order in which they run.
    found = [
        (".".join(filter(None, (prefix, name))), one)
        for name, one in tower.named_modules()
        if matches(one, family.attention)
        # Older releases wrap the attention in another of that name: the inner one makes the call.
        and not any(matches(inner, family.attention) for inner in one.modules() if inner is not one)
    ]
    stated = tower.config.num_hidden_layers
    if len(found) != stated:
        raise CaptureError(
            f"{type(tower).__name__} states {stated} layers but {len(found)} attention modules were found: it is not built as its "
            "family is."
        )
    return found


def patch_side(tower: Any) -> int:
    """Side of an image encoder's patches in processed pixels.

    Raises
    ------
    CaptureError
        If they are not square.
    """
    size = tower.config.patch_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise CaptureError(f"{type(tower).__name__} has patches of {size} pixels; square ones can be recorded.")
    return int(sides.pop())


def class_and_registers(tower: Any) -> tuple[int, int]:
    """How many class tokens (0 or 1) and how many register tokens stand in front of an image encoder's patches, in this order."""
    embeddings = tower.embeddings
    classes = int(any(getattr(embeddings, name, None) is not None for name in ("class_embedding", "cls_token")))
    registers = getattr(embeddings, "register_tokens", None)
    return classes, 0 if registers is None else int(registers.shape[1])
