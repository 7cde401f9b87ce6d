"""The names of attend-and-segment's choices."""

from __future__ import annotations

from typing import Literal

__all__ = ["Combine", "PointKind", "Reduction"]

#: How the maps of several tokens become one.
Combine = Literal["mean", "first", "max"]
#: Which heads the map of a token is averaged over.
Reduction = Literal["all-heads", "as-first-released"]
#: Where in the map the point is taken.
PointKind = Literal["bicubic", "patch centre"]
