"""The families that can be recorded. This list is the one place where a family is registered."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from probe.errors import ModelError, did_you_mean
from probe.families.base import Family
from probe.families.blip_2 import BLIP_2, BLIP_2_VISION, INSTRUCTBLIP
from probe.families.clip import CLIP
from probe.families.difflmm import DIFFLMM
from probe.families.dinov2 import DINOV2
from probe.families.dinov3 import DINOV3
from probe.families.flux import FLUX
from probe.families.gemma3 import GEMMA3
from probe.families.idefics3 import IDEFICS3, SMOLVLM
from probe.families.internvl import INTERNVL
from probe.families.llava import LLAVA
from probe.families.llava_next import LLAVA_NEXT
from probe.families.llava_onevision import LLAVA_ONEVISION
from probe.families.mistral3 import MISTRAL3
from probe.families.mllama import MLLAMA
from probe.families.paligemma import PALIGEMMA
from probe.families.pixart import PIXART
from probe.families.pixtral import PIXTRAL
from probe.families.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from probe.families.siglip import SIGLIP
from probe.families.siglip_2 import SIGLIP_2
from probe.families.stable_diffusion import STABLE_DIFFUSION
from probe.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from probe.families.vit import VIT

__all__ = ["FAMILIES", "Family", "family_of", "matches"]

FAMILIES: tuple[Family, ...] = (
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    INTERNVL,
    PALIGEMMA,
    GEMMA3,
    IDEFICS3,
    SMOLVLM,
    MISTRAL3,
    PIXTRAL,
    MLLAMA,
    DIFFLMM,
    BLIP_2,
    INSTRUCTBLIP,
    BLIP_2_VISION,
    CLIP,
    SIGLIP,
    SIGLIP_2,
    DINOV2,
    DINOV3,
    VIT,
    STABLE_DIFFUSION,
    PIXART,
    STABLE_DIFFUSION_3,
    FLUX,
)


# Those of a vision tower alone come before others of the same class.
_NARROW_FIRST = sorted(FAMILIES, key=lambda family: not family.vision_types)


def matches(thing: Any, patterns: tuple[str, ...]) -> bool:
    """True if the class of ``thing``, or a class that it inherits from, fits one of the shell patterns."""
    names = [kind.__name__ for kind in type(thing).__mro__]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def family_of(model: Any) -> Family:
    """The family of a live model, of a live pipeline, or of a configuration.

    Raises
    ------
    ModelError
        If no family fits: either the model has no image input, or its family is not supported yet.
    """
    config = getattr(model, "config", model)
    model_type = getattr(config, "model_type", "")
    # From the class itself to those it inherits from: a model built on another family's is of its own.
    for kind in type(model).__mro__:
        for family in _NARROW_FIRST:
            if any(fnmatchcase(kind.__name__, pattern) for pattern in family.models) and _sees_like(config, family):
                return family
    for family in _NARROW_FIRST:
        if model is config and model_type in family.model_types and _sees_like(config, family):
            return family
    raise ModelError(_unknown(type(model).__name__, model_type, config))


def _sees_like(config: Any, family: Family) -> bool:
    """True if the vision tower is one of the family's, where that tells it from others of the same class."""
    found = getattr(getattr(config, "vision_config", None), "model_type", None)
    return not family.vision_types or found in family.vision_types


def _unknown(name: str, model_type: Any, config: Any) -> str:
    """Why a model of this class is of no family."""
    known = ", ".join(family.name for family in FAMILIES)
    if not any(hasattr(config, field) for field in ("vision_config", "image_token_id", "image_token_index")):
        return (
            f"{name} (model_type {model_type!r}) is not a vision-language model: its configuration has no vision part, and it is "
            f"no image encoder or diffusion pipeline that is known. Families that can be recorded: {known}."
        )
    types = [one for family in FAMILIES for one in family.model_types]
    return (
        f"{name} (model_type {model_type!r}) is of a family that cannot be recorded yet; known families: {known}."
        f"{did_you_mean(str(model_type), types)} CONTRIBUTING.md says how to add one."
    )
