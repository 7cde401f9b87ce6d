"""Which objects a scene has and where they stand, in fractions of the side, whatever the size of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probe.lab.grammar import COLOURS, SIZES
from probe.lab.shapes import SHAPES, extent, pixel_centres, reach, signed_distance

__all__ = ["HELD_OUT", "RADII", "SceneObject", "inside", "layout"]

# One pair for each colour and each shape, so that every colour and every shape is still often seen in training.
HELD_OUT = (
    ("red", "cross"),
    ("orange", "star"),
    ("yellow", "ring"),
    ("green", "triangle"),
    ("blue", "circle"),
    ("purple", "square"),
)
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

# As large as the chance bounds allow (see the tests); a small circle always covers the centre of a patch of an 8 x 8 grid.
RADII = {"small": (0.100, 0.120), "large": (0.165, 0.200)}
BORDER = 0.012  # free strip at the edge of the image
GAP = 0.015  # free strip between two objects
LEFT_TO_RIGHT = 0.06  # least distance in columns, so that "left to right" is never a matter of taste
TILT = math.radians(14.0)  # small enough that a turned square is no diamond
CLOSEST = 0.55  # occluded scenes: centres at least this share of the two radii apart
VISIBLE = 0.5  # ... and at least this share of every object visible
RESTARTS = 200


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is, and its centre and radius as fractions of the image's side."""

    shape: str
    colour: str
    size: str
    row: float
    col: float
    radius: float
    angle: float = 0.0  # radians, clockwise

    @property
    def name(self) -> str:
        """The phrase that names the object, such as ``"large red circle"``."""
        return f"{self.size} {self.colour} {self.shape}"


def inside(item: SceneObject, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distance (...) of points (..., 2) in (row, col) fractions to the object's outline; negative inside."""
    centre = np.array([item.row, item.col])
    return signed_distance(item.shape, (points - centre) / item.radius, item.angle) * item.radius


def layout(
    rng: np.random.Generator, *, objects: tuple[int, int], unseen: bool, occlusion: bool
) -> tuple[SceneObject, ...]:
    """The objects of a scene, from left to right."""
    count = int(rng.integers(objects[0], objects[1] + 1))
    pairs = _pairs(rng, count, unseen=unseen)
    for restart in range(10 * RESTARTS):
        crowded = restart >= RESTARTS  # so many that large ones hardly fit: all small, which always fits in the end
        placed = _place(rng, pairs, occlusion=occlusion, sizes=SIZES[:1] if crowded else SIZES)
        if placed is not None:
            return tuple(sorted(placed, key=lambda item: item.col))
    raise RuntimeError(f"no room for {count} objects")


def _pairs(rng: np.random.Generator, count: int, *, unseen: bool) -> list[tuple[str, str]]:
    """Distinct (colour, shape) pairs; with `unseen` at least one of them is held out of training, otherwise none."""
    if not unseen:
        return [SEEN[number] for number in rng.permutation(len(SEEN))[:count]]
    first = HELD_OUT[rng.integers(len(HELD_OUT))]
    others = [pair for pair in PAIRS if pair != first]
    return [first, *(others[number] for number in rng.permutation(len(others))[: count - 1])]


def _place(
    rng: np.random.Generator, pairs: list[tuple[str, str]], *, occlusion: bool, sizes: tuple[str, ...]
) -> list[SceneObject] | None:
    """The objects at free random places, or None when this attempt found no room."""
    drafts = []
    for colour, shape in pairs:
        size = sizes[rng.integers(len(sizes))]
        drafts.append((rng.uniform(*RADII[size]), colour, shape, size))
    placed: list[SceneObject] = []
    for radius, colour, shape, size in sorted(drafts, reverse=True):  # the largest first, while there is room
        for _ in range(20):
            angle = rng.uniform(-TILT, TILT)
            up, down, left, right = (radius * far + BORDER for far in reach(shape, angle))
            row, col = rng.uniform(up, 1.0 - down), rng.uniform(left, 1.0 - right)
            item = SceneObject(shape, colour, size, float(row), float(col), float(radius), float(angle))
            if all(_apart(item, other, occlusion=occlusion) for other in placed):
                placed.append(item)
                break
        else:
            return None
    return placed if not occlusion or _visible(placed) else None


def _apart(item: SceneObject, other: SceneObject, *, occlusion: bool) -> bool:
    """Whether two objects stand far enough apart."""
    if abs(item.col - other.col) < LEFT_TO_RIGHT:
        return False
    distance = math.hypot(item.row - other.row, item.col - other.col)
    if occlusion:
        return distance >= CLOSEST * (item.radius + other.radius)
    return distance >= item.radius * extent(item.shape) + other.radius * extent(other.shape) + GAP


def _visible(items: list[SceneObject]) -> bool:
    """Whether enough of every object stays visible when it is drawn before those to its right."""
    centres = pixel_centres(64)  # a fixed grid: the layout must not depend on the size of the picture
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)
    hidden = np.zeros(points.shape[:2], dtype=bool)
    for item in sorted(items, key=lambda item: -item.col):
        mask = inside(item, points) < 0
        if (mask & ~hidden).sum() < VISIBLE * mask.sum():
            return False
        hidden |= mask
    return True
