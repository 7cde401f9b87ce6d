"""Backgrounds of scenes: muted, low in contrast, and without detail finer than training pixels can show."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from probe.lab.shapes import pixel_centres

__all__ = ["BASES", "backdrop", "clutter"]

Floats = NDArray[np.float64]

# Greyish tones: none comes near one of the saturated object colours.
BASES = (
    (216, 207, 192),
    (186, 184, 178),
    (124, 133, 144),
    (172, 182, 170),
    (98, 105, 118),
    (204, 193, 174),
    (207, 213, 217),
    (178, 168, 176),
    (150, 144, 136),
    (76, 82, 92),
)
KINDS = ("gradient", "stripes", "checks", "noise")
# Cycles per side: seven are nine pixels per cycle at the 64 pixels of training, coarse enough to survive a resize.
SLOWEST, FASTEST = 2.0, 7.0


def backdrop(rng: np.random.Generator, size: int, *, texture: bool) -> Floats:
    """A background (height, width, 3) in 0 to 255, the same picture at every `size`."""
    base = np.asarray(BASES[rng.integers(len(BASES))], dtype=float)
    kind = KINDS[rng.integers(len(KINDS))]
    contrast, tint = rng.uniform(8.0, 15.0), rng.uniform(-3.0, 3.0, size=3)
    pattern = _pattern(rng, kind, size)
    light = _waves(rng, size, count=1, cycles=(0.3, 0.5))  # less than a cycle: light falling off to one side
    if not texture:
        return np.broadcast_to(base, (size, size, 3)).copy()
    return base + pattern[..., None] * (contrast + tint) + 6.0 * light[..., None]


def _pattern(rng: np.random.Generator, kind: str, size: int) -> Floats:
    """A pattern (height, width) of about -1 to 1."""
    if kind == "gradient":
        return _waves(rng, size, count=2, cycles=(0.3, 0.6))
    if kind == "noise":
        return _waves(rng, size, count=16, cycles=(0.7, 4.5))
    stripes = _waves(rng, size, count=1, cycles=(SLOWEST, FASTEST))
    if kind == "stripes":
        return stripes
    cycles, turn = rng.uniform(SLOWEST, 0.8 * FASTEST), rng.uniform(0.0, 0.5 * math.pi)
    centres = 2 * math.pi * cycles * (pixel_centres(size) - rng.uniform())
    along = math.cos(turn) * centres[:, None] + math.sin(turn) * centres[None, :]
    across = math.cos(turn) * centres[None, :] - math.sin(turn) * centres[:, None]
    return np.sin(along) * np.sin(across)


def _waves(rng: np.random.Generator, size: int, *, count: int, cycles: tuple[float, float]) -> Floats:
    """The sum (height, width) of `count` plane waves in random directions, scaled to about -1 to 1."""
    speed, turn = rng.uniform(*cycles, size=count), rng.uniform(0.0, 2 * math.pi, size=count)
    phase, weight = rng.uniform(0.0, 2 * math.pi, size=count), rng.uniform(0.5, 1.0, size=count)
    centres = 2j * math.pi * pixel_centres(size)[:, None]
    # A plane wave is a product of a wave in the rows and one in the columns: one small matrix product draws them all.
    down = np.exp(centres * speed * np.cos(turn)) * (weight / math.sqrt((weight**2).sum()) * np.exp(1j * phase))
    right = np.exp(centres * speed * np.sin(turn))
    return np.real(down @ right.T)


def clutter(rng: np.random.Generator, picture: Floats) -> None:
    """Nothing; draws grey strokes and dots into `picture` (height, width, 3)."""
    size = picture.shape[0]
    centres = pixel_centres(size)
    for _ in range(int(rng.integers(5, 11))):
        row, col, turn = rng.uniform(0.05, 0.95), rng.uniform(0.05, 0.95), rng.uniform(0.0, math.pi)
        half = 0.0 if rng.uniform() < 0.4 else rng.uniform(0.03, 0.09)  # no length: a dot
        width, grey = rng.uniform(0.010, 0.022), rng.uniform(40.0, 235.0)
        down, right = centres[:, None] - row, centres[None, :] - col
        along = np.clip(down * math.cos(turn) + right * math.sin(turn), -half, half)
        gap = np.hypot(down - along * math.cos(turn), right - along * math.sin(turn)) - width
        cover = np.clip(0.5 - gap * size, 0.0, 1.0)[..., None]
        picture += cover * (grey - picture)
