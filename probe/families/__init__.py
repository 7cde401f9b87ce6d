"""The families that can be recorded. This list is the one place where a family is registered."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from probe.errors import ModelError, did_you_mean
from probe.families.base import Family
from probe.families.llava import LLAVA

__all__ = ["FAMILIES", "Family", "family_of", "matches"]

FAMILIES: tuple[Family, ...] = (LLAVA,)


def matches(thing: Any, patterns: tuple[str, ...]) -> bool:
    """True if the class of ``thing``, or a class that it inherits from, fits one of the shell patterns."""
    names = [kind.__name__ for kind in type(thing).__mro__]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def family_of(model: Any) -> Family:
    """The family of a live model or of a configuration.

    Raises
    ------
    ModelError
        If no family fits: either the model has no image input, or its family is not supported yet.
    """
    config = getattr(model, "config", model)
    model_type = getattr(config, "model_type", "")
    for family in FAMILIES:
        if matches(model, family.models) or (model is config and model_type in family.model_types):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    if not any(hasattr(config, name) for name in ("vision_config", "image_token_id", "image_token_index")):
        raise ModelError(
            f"{type(model).__name__} (model_type {model_type!r}) is not a vision-language model: its configuration has no "
            f"vision part. Families that can be recorded: {known}."
        )
    types = [one for family in FAMILIES for one in family.model_types]
    raise ModelError(
        f"{type(model).__name__} (model_type {model_type!r}) is of a family that cannot be recorded yet; known families: "
        f"{known}.{did_you_mean(str(model_type), types)} CONTRIBUTING.md says how to add one."
    )
