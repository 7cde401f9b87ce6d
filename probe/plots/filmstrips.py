"""One phrase through layers, tokens or checkpoints: pictures side by side on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.plots.maps import Picture, Reading, mask_pixels, muted_pixels, phrase_map
from probe.plots.overlays import draw_map, map_limits, overlay_axes, shared_bar
from probe.plots.styles import style, trim
from probe.plots.tables import layer_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["filmstrip"]

Phrase = str | tuple[str, int]


@style()
def filmstrip(
    found: AttentionRecord | Mapping[Any, AttentionRecord] | Sequence[AttentionRecord],
    phrase: Phrase,
    image: Picture,
    *,
    over: Literal["layer", "timestep", "token", "checkpoint"] = "layer",
    mask: Any = None,
    reading: Reading = "minus mean",
    view: str | None = None,
    axes: Sequence[Axes] | None = None,
    limits: tuple[float, float] | None = None,
    smooth: bool = True,
) -> list[Axes]:
    """The Axes of a phrase's maps through layers, timesteps, its tokens or checkpoints, all on ONE colour scale.

        probe.plots.filmstrip(run.record, "red circle", image, over="layer")
        probe.plots.filmstrip({100: early, 2500: late}, "red circle", image, over="checkpoint")

    One scale tells the truth about size: a picture that stays empty holds little, which a scale of its own would hide.

    Parameters
    ----------
    found : a record; for ``over="checkpoint"`` one for each checkpoint, as a mapping from its step or name, or in a row.
    phrase : as in ``record[phrase]``.
    over : "layer": mean over each layer's heads; "timestep": mean over layers and heads at each step of a diffusion model;
        "token": each token of the phrase, mean over layers and heads; "checkpoint": the phrase's whole map in each record.
    mask : (height, width), the true mask; drawn as an outline in each picture.
    axes : where to draw, one for each picture; by default a new figure, with rows of at most four.
    limits : (low, high) of the common scale; by default 0 to the largest patch of all pictures.

    The other parameters are those of ``probe.plots.overlay``.

    Raises
    ------
    InputError
        If the phrase is not in a record, ``over`` does not fit what is given, or the number of Axes differs.
    """
    frames = _frames(found, phrase, over)
    maps = {label: phrase_map(one, reading=reading, view=view) for label, one in frames.items()}
    if over == "timestep":  # each picture's title says it, and the one bar is of all
        maps = {label: replace(one, detail=one.detail.removesuffix(label).rstrip(", ")) for label, one in maps.items()}
    first = next(iter(frames.values()))
    if any(one.image_size != first.image_size for one in frames.values()):
        raise InputError("The records are of images of different sizes; a filmstrip shows one image.")
    if axes is not None and len(axes) != len(maps):
        raise InputError(f"There are {len(maps)} pictures over {over} but {len(axes)} Axes; give one for each.")
    pixels = muted_pixels(image, first.image_size)
    shape = None if mask is None else mask_pixels(mask, first.image_size)
    scale = map_limits(limits, list(maps.values()))
    drawn = overlay_axes(len(maps), first.image_size) if axes is None else list(axes)
    notes: dict[str, None] = {}
    for ax, (label, one) in zip(drawn, maps.items(), strict=True):
        notes.update(dict.fromkeys(draw_map(ax, one, pixels, shape, scale, smooth=smooth, title=label)))
    said = f"{next(iter(maps.values())).phrase!r}" if over != "token" else f"the tokens of {_words(phrase)!r}"
    shared_bar(drawn, scale, list(maps.values()), pixels, location="bottom", notes=(f"{said}; one scale", *notes))
    if axes is None:
        trim(drawn[0])
    return drawn


def _frames(found: Any, phrase: Phrase, over: str) -> dict[str, AttentionRecord]:
    """Title -> what is drawn below it."""
    if over == "checkpoint":
        if isinstance(found, AttentionRecord) or not len(found):
            raise InputError(
                "over='checkpoint' draws one record for each checkpoint; give a mapping step -> record with at least one."
            )
        named = found.items() if isinstance(found, Mapping) else enumerate(found)
        return {f"step {key}" if isinstance(key, int) else str(key): one[phrase] for key, one in named}
    if over not in ("layer", "timestep", "token"):
        raise InputError(f"over must be 'layer', 'timestep', 'token' or 'checkpoint', found {over!r}.")
    if not isinstance(found, AttentionRecord):
        raise InputError(
            f"over={over!r} draws one record, found {type(found).__name__}; several go with over='checkpoint'."
        )
    part = found[phrase]
    if over == "layer":
        numbers = layer_numbers(tuple(one.name for one in part.layers))
        return {f"layer {number}": part.select(layers=place) for place, number in enumerate(numbers)}
    if over == "timestep":
        steps = part.layers[0].timesteps
        if -1 in steps:
            raise InputError(
                "This record has no timesteps of their own: it is a mean over them, or of a model without any."
            )
        return {f"timestep {step}": part.select(timesteps=place) for place, step in enumerate(steps)}
    # The same token may be said twice: its place keeps the titles apart.
    words = [token.strip() or repr(token) for token in part.tokens]
    return {f"{place + 1}: {word}": part.select(tokens=place) for place, word in enumerate(words)}


def _words(phrase: Phrase) -> str:
    return phrase if isinstance(phrase, str) else phrase[0]
