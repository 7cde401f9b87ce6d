"""Scenes without end: coloured shapes on textured backgrounds, with captions and the exact mask of every phrase.

>>> from probe.lab.scenes import scene
>>> example = scene(7)
>>> example.image.size, example.caption, example.phrases[0].text      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probe.errors import InputError, did_you_mean
from probe.lab.backdrops import backdrop, clutter
from probe.lab.grammar import COLOURS, listing, relating
from probe.lab.layouts import HELD_OUT, SceneObject, inside, layout
from probe.lab.shapes import SHAPES, pixel_centres

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "SHAPES",
    "Scene",
    "SceneObject",
    "ScenePhrase",
    "SceneSettings",
    "scene",
    "scenes",
]

SPLITS = ("train", "test")
COMBINATIONS = ("seen", "unseen")
MOST_OBJECTS = 6
SMALLEST, LARGEST = 16, 4096


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What the scenes are like; the defaults are what the lab models are trained and tested on.

    Raises
    ------
    InputError
        A value that no scene can be made with.
    """

    size: int = 256
    """Height and width in pixels; the same scene is the same picture at every size."""
    objects: tuple[int, int] = (2, 4)
    """Fewest and most objects."""
    texture: bool = True
    """Gradients, stripes, checks or soft noise behind the objects, instead of one plain tone."""
    occlusion: bool = False
    """Objects may hide up to half of those to their left."""
    relations: bool = False
    """Captions relate each object to the next: "a large red circle to the left of a small blue square"."""
    clutter: bool = False
    """Grey strokes and dots behind the objects, which no caption names."""
    combinations: Literal["seen", "unseen"] = "seen"
    """"seen": no pair of colour and shape in `HELD_OUT`, as in training; "unseen": at least one in every scene."""

    def __post_init__(self) -> None:
        if not _whole(self.size) or not SMALLEST <= self.size <= LARGEST:
            raise InputError(f"size must be a whole number of {SMALLEST} to {LARGEST} pixels, not {self.size!r}.")
        object.__setattr__(self, "objects", _range(self.objects))
        if self.combinations not in COMBINATIONS:
            raise InputError(_not_one_of("combinations", self.combinations, COMBINATIONS))


@dataclass(frozen=True, eq=False)
class ScenePhrase:
    """A phrase of a caption, ``caption[start:end]``, and the pixels it names."""

    text: str
    start: int
    end: int
    mask: NDArray[np.bool_]
    """(height, width): whether a pixel's centre lies in the visible part of the object."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture, its caption, and what the caption names, from left to right."""

    index: int
    image: Image.Image
    caption: str
    objects: tuple[SceneObject, ...]
    phrases: tuple[ScenePhrase, ...]


def scene(
    index: int,
    *,
    split: Literal["train", "test"] = "test",
    seed: int = 0,
    settings: SceneSettings | None = None,
) -> Scene:
    """One scene, which depends on nothing but the arguments.

    The splits never share a stream of random numbers. `size` changes the pixels alone, `texture` and `clutter` the
    background alone, and `relations` the wording alone.

    Raises
    ------
    InputError
        An index or seed that is no whole number from 0, or an unknown split.
    """
    settings = settings or SceneSettings()
    for name, value in (("index", index), ("seed", seed)):
        if not _whole(value) or value < 0:
            raise InputError(f"{name} must be a whole number from 0, not {value!r}.")
    if split not in SPLITS:
        raise InputError(_not_one_of("split", split, SPLITS))
    # One stream for each aspect, so that a switch of one leaves the others as they are.
    streams = np.random.SeedSequence([int(seed), SPLITS.index(split), int(index)]).spawn(4)
    places, back, strokes, words = (np.random.default_rng(stream) for stream in streams)
    items = layout(
        places, objects=settings.objects, unseen=settings.combinations == "unseen", occlusion=settings.occlusion
    )
    picture = backdrop(back, settings.size, texture=settings.texture)
    if settings.clutter:
        clutter(strokes, picture)
    masks = _draw(picture, items)
    names = [item.name for item in items]
    if settings.relations:
        caption, spans = relating(words, names, [(item.row, item.col) for item in items])
    else:
        caption, spans = listing(words, names)
    phrases = tuple(
        ScenePhrase(name, start, end, mask) for name, (start, end), mask in zip(names, spans, masks, strict=True)
    )
    image = Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    return Scene(int(index), image, caption, items, phrases)


def scenes(
    count: int | None = None,
    *,
    start: int = 0,
    split: Literal["train", "test"] = "test",
    seed: int = 0,
    settings: SceneSettings | None = None,
) -> Iterator[Scene]:
    """Scenes `start`, `start` + 1, ...: `count` of them, or without end.

    Raises
    ------
    InputError
        As `scene` does, or a bad count or start.
    """
    if count is not None and (not _whole(count) or count < 0):
        raise InputError(f"count must be a whole number from 0, or None for scenes without end, not {count!r}.")
    if not _whole(start) or start < 0:
        raise InputError(f"start must be a whole number from 0, not {start!r}.")
    numbers = count_from(start) if count is None else range(start, start + count)
    return (scene(index, split=split, seed=seed, settings=settings) for index in numbers)


def _draw(picture: NDArray[np.float64], items: tuple[SceneObject, ...]) -> list[NDArray[np.bool_]]:
    """The visible mask (height, width) of each object; draws them into `picture`, later ones over earlier ones."""
    size = picture.shape[0]
    centres = pixel_centres(size)
    masks: list[NDArray[np.bool_]] = []
    for item in items:
        margin = 1.3 * item.radius + 1.0 / size  # no shape reaches further than 1.3 radii
        rows = slice(*np.searchsorted(centres, [item.row - margin, item.row + margin]))
        cols = slice(*np.searchsorted(centres, [item.col - margin, item.col + margin]))
        points = np.stack(np.meshgrid(centres[rows], centres[cols], indexing="ij"), axis=-1)
        distance = inside(item, points)
        mask = np.zeros((size, size), dtype=bool)
        mask[rows, cols] = distance < 0
        for earlier in masks:
            earlier &= ~mask
        masks.append(mask)
        # A hint of light from above; the outline is blended over one pixel.
        light = 1.0 - 0.10 * (points[..., :1] - item.row) / item.radius
        colour = np.asarray(COLOURS[item.colour], dtype=float) * light
        cover = np.clip(0.5 - distance * size, 0.0, 1.0)[..., None]
        picture[rows, cols] += cover * (colour - picture[rows, cols])
    return masks


def _whole(value: Any) -> bool:
    """Whether `value` is a whole number (True and False are not)."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _range(objects: Any) -> tuple[int, int]:
    """`objects` as (fewest, most)."""
    try:
        low, high = objects
    except (TypeError, ValueError):
        low = high = None
    if not (_whole(low) and _whole(high) and 1 <= low <= high <= MOST_OBJECTS):
        raise InputError(
            f"objects must be (fewest, most) with 1 <= fewest <= most <= {MOST_OBJECTS}, such as (2, 4), "
            f"not {objects!r}."
        )
    return int(low), int(high)


def _not_one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    """The message for a value that is none of the known ones."""
    return f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}.{did_you_mean(str(value), known)}"
