"""Where attention can be read in each kind of model, and what can be asked there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from probe.errors import InputError, did_you_mean
from probe.families import Family, matches

__all__ = ["Place", "choose_place", "places_of"]

#: Whose attention is read in a diffusion model. Where patches and words have separate attentions: from patches to words, and
#: from patches to patches. Where one softmax spans both, what looks comes first: "image to text" are patches that read words.
Place = Literal["cross-attention", "self-attention", "image to text", "text to image", "image to image"]

#: What each place takes besides layers, heads, offload and verify.
_OPTIONS = {
    "language model": ("queries", "query_row"),
    "image encoder": ("queries",),
    "q-former": (),
    "cross-attention": ("timesteps", "guidance"),
    "self-attention": ("timesteps", "guidance", "patches"),
    "image to text": ("timesteps", "guidance"),
    "text to image": ("timesteps", "guidance"),
    "image to image": ("timesteps", "guidance", "patches"),
}


def choose_place(model: Any, family: Family, place: str | None, options: Iterable[str]) -> str:
    """The place asked for, or the first that the model has, after a look at the names of the options.

    Raises
    ------
    InputError
        If the model has no such place, or the place no such option.
    """
    places = places_of(model, family)
    chosen = places[0] if place is None else place
    if chosen not in places:
        raise InputError(
            f"place={place!r} is not in a model of family {family.name!r}, which has {', '.join(map(repr, places))}."
            f"{did_you_mean(str(place), places)}"
        )
    known = ", ".join(_OPTIONS[chosen]) or "nothing"
    for name in options:
        if name not in _OPTIONS[chosen]:
            raise InputError(
                f"{name}= is no option of place {chosen!r}, which takes {known} besides layers, heads, "
                f"offload and verify.{did_you_mean(name, _OPTIONS[chosen])}"
            )
    return chosen


def places_of(model: Any, family: Family) -> tuple[str, ...]:
    """Where attention can be read in this model, the default first."""
    unet = ("cross-attention", "self-attention")
    if family.kind == "diffusion":
        return unet if family.text_first is None else ("image to text", "text to image", "image to image")
    if family.kind == "q-former":
        return ("q-former", "image encoder")
    if family.kind == "image encoder":
        return ("image encoder",)
    inside = any(matches(one, ("UNet2DConditionModel",)) for one in model.modules())
    return ("language model", "image encoder", *(unet if inside else ()))
