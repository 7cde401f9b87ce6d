"""Shapes as signed distances in continuous coordinates, so that a scene is the same picture at any number of pixels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHAPES", "extent", "pixel_centres", "reach", "signed_distance"]

Floats = NDArray[np.float64]

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")

# Sizes in units of the object's radius, chosen so that the six shapes look about equally big.
SQUARE_HALF_SIDE = 0.88
TRIANGLE_RADIUS = 1.25
CROSS_HALF_WIDTH = 0.38
STAR_RADII = (1.22, 0.58)
RING_HOLE = 0.48


def _spokes(radii: list[float]) -> Floats:
    """Corners (corner, 2) at equal angles and the given distances, the first one straight up."""
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.stack([-np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]


def _cross() -> Floats:
    """The corners (corner, 2) of an upright cross."""
    arm, half = 1.0, CROSS_HALF_WIDTH
    above = [(-half, -arm), (-half, -half), (-arm, -half), (-arm, half), (-half, half), (-half, arm)]
    return np.array([*above, *((-row, -col) for row, col in above)])


# Corners (corner, 2) in (row, col), around (0, 0) and for radius 1; circle and ring have none.
OUTLINES = {
    "square": SQUARE_HALF_SIDE * np.array([(-1.0, -1.0), (-1.0, 1.0), (1.0, 1.0), (1.0, -1.0)]),
    "triangle": _spokes([TRIANGLE_RADIUS] * 3),
    "cross": _cross(),
    "star": _spokes(list(STAR_RADII) * 5),
}


def _turned(points: Floats, angle: float) -> Floats:
    """Points (point, 2) turned about (0, 0) by `angle` radians, clockwise as seen on the screen."""
    row, col = points[..., 0], points[..., 1]
    return np.stack([row * math.cos(angle) + col * math.sin(angle), col * math.cos(angle) - row * math.sin(angle)], -1)


def reach(shape: str, angle: float) -> tuple[float, float, float, float]:
    """How far a shape of radius 1 reaches (up, down, left, right) from its centre."""
    outline = OUTLINES.get(shape)
    if outline is None:
        return 1.0, 1.0, 1.0, 1.0
    points = _turned(outline, angle)
    (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
    return -float(top), float(bottom), -float(left), float(right)


def extent(shape: str) -> float:
    """How far a shape of radius 1 reaches from its centre in any direction."""
    outline = OUTLINES.get(shape)
    return 1.0 if outline is None else float(np.sqrt((outline**2).sum(axis=1)).max())


def signed_distance(shape: str, points: Floats, angle: float) -> Floats:
    """Distance (...) of points (..., 2) to the outline of a shape of radius 1 around (0, 0); negative inside."""
    distance = np.sqrt((points**2).sum(axis=-1))
    if shape == "circle":
        return distance - 1.0
    if shape == "ring":
        return np.maximum(distance - 1.0, RING_HOLE - distance)
    return _to_polygon(points, _turned(OUTLINES[shape], angle))


def _to_polygon(points: Floats, outline: Floats) -> Floats:
    """Signed distance (...) of points (..., 2) to a closed polygon; one edge at a time keeps memory at one plane."""
    nearest = np.full(points.shape[:-1], np.inf)
    inside = np.zeros(points.shape[:-1], dtype=bool)
    row, col = points[..., 0], points[..., 1]
    for (row_a, col_a), (row_b, col_b) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        d_row, d_col = row_b - row_a, col_b - col_a
        along = ((row - row_a) * d_row + (col - col_a) * d_col) / (d_row**2 + d_col**2)
        along = np.clip(along, 0.0, 1.0)
        gap = (row - row_a - along * d_row) ** 2 + (col - col_a - along * d_col) ** 2
        np.minimum(nearest, gap, out=nearest)
        if d_row != 0.0:  # a level edge is never crossed by a level ray
            crossed = (row_a > row) != (row_b > row)
            inside ^= crossed & (col < col_a + (row - row_a) * d_col / d_row)
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def pixel_centres(size: int) -> Floats:
    """Centres (pixel,) of `size` equal pixels, as fractions of the side."""
    return (np.arange(size) + 0.5) / size
