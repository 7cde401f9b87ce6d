"""A tiny random model of every family, with a real processor, made in a second and without a network: what can be checked anywhere.

>>> subject = tiny_model("llava")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from probe.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["TINY", "tiny_model"]


def _llava() -> Subject:
    from probe.tiny.language_models import tiny_llava

    return tiny_llava()


def _clip() -> Subject:
    from probe.tiny.encoders import tiny_clip

    return tiny_clip()


def _siglip() -> Subject:
    from probe.tiny.encoders import tiny_siglip

    return tiny_siglip()


def _siglip2() -> Subject:
    from probe.tiny.encoders import tiny_siglip2

    return tiny_siglip2()


def _difflmm() -> Subject:
    from probe.models import load_model
    from probe.tiny.difflmm import tiny_difflmm

    return load_model(*tiny_difflmm())


def _dino(kind: str) -> Callable[[], Subject]:
    def make() -> Subject:
        from probe.tiny.encoders import tiny_dino

        return tiny_dino(kind)

    return make


def _stable_diffusion() -> Subject:
    from probe.models import load_model
    from probe.tiny.pipelines import tiny_sd

    return load_model(tiny_sd())


def _blip_2(name: str) -> Callable[[], Subject]:
    def make() -> Subject:
        from probe.tiny import blip_2

        subject: Subject = getattr(blip_2, f"tiny_{name}")()
        return subject

    return make


def _tiled(name: str) -> Callable[[], Subject]:
    """What makes the tiny model of a family that has its function in ``vision_language`` or ``canvases``."""

    def make() -> Subject:
        from probe.tiny import canvases, vision_language

        module = canvases if f"tiny_{name}" in canvases.__all__ else vision_language
        subject: Subject = getattr(module, f"tiny_{name}")()
        return subject

    return make


def _pixart() -> Subject:
    from probe.models import load_model
    from probe.tiny.transformers import tiny_pixart

    return load_model(tiny_pixart())


def _stable_diffusion_3() -> Subject:
    from probe.models import load_model
    from probe.tiny.transformers import tiny_sd3

    return load_model(tiny_sd3())


def _flux() -> Subject:
    from probe.models import load_model
    from probe.tiny.transformers import tiny_flux

    return load_model(tiny_flux())


#: Family -> what makes its tiny model.
TINY: dict[str, Callable[[], Subject]] = {
    "llava": _llava,
    "llava_next": _tiled("llava_next"),
    "llava_onevision": _tiled("llava_onevision"),
    "qwen2_vl": _tiled("qwen2_vl"),
    "qwen2_5_vl": _tiled("qwen2_5_vl"),
    "qwen3_vl": _tiled("qwen3_vl"),
    "internvl": _tiled("internvl"),
    "paligemma": _tiled("paligemma"),
    "gemma3": _tiled("gemma3"),
    "idefics3": _tiled("idefics3"),
    "smolvlm": _tiled("smolvlm"),
    "mistral3": _tiled("mistral3"),
    "pixtral": _tiled("pixtral"),
    "mllama": _tiled("mllama"),
    "difflmm": _difflmm,
    "blip_2": _blip_2("blip_2"),
    "instructblip": _blip_2("instructblip"),
    "blip_2_vision": _blip_2("blip_2_vision"),
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "dinov2": _dino("dinov2_with_registers"),
    "dinov3": _dino("dinov3_vit"),
    "vit": _dino("vit"),
    "stable_diffusion": _stable_diffusion,
    "pixart": _pixart,
    "stable_diffusion_3": _stable_diffusion_3,
    "flux": _flux,
}


def tiny_model(family: str) -> Subject:
    """A tiny random model of a family in evaluation mode, with its processor; the same one each time.

    Raises
    ------
    InputError
        If there is no such family.
    """
    if family not in TINY:
        raise InputError(f"There is no family {family!r}; there is {', '.join(TINY)}.{did_you_mean(family, TINY)}")
    return TINY[family]()
