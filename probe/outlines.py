"""The outline of a mask as the path of a drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.measure import approximate_polygon, find_contours

__all__ = ["outline_path"]


def outline_path(mask: Any) -> str:
    """The path around a (height, width) mask, in its pixels: x before y, as SVG wants it, each part closed.

    Straight runs of masks larger than 130 pixels are simplified to a thousandth of the longer side.
    """
    inside = np.pad(np.asarray(mask, dtype=np.uint8), 1)
    tolerance = 0.0 if max(inside.shape) <= 130 else max(inside.shape) / 1000
    lines = [approximate_polygon(one, tolerance) for one in find_contours(inside, 0.5)]
    # Padding moved all by one pixel, and the middle of a pixel lies half a pixel from its edge.
    return "".join("M" + "L".join(f"{col - 0.5:.1f} {row - 0.5:.1f}" for row, col in line) + "Z" for line in lines)
