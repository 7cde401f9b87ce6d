"""The pieces that pictures are cut into, whose image tokens are known in number and order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Part", "Unit"]


@dataclass(frozen=True)
class Part:
    """Cells of one processed picture that became image tokens.

    Attributes
    ----------
    kind : an "image", its "thumbnail", or a "tile" of an image whose tiles are not arranged yet.
    frame : (height, width) of the processed picture in pixels.
    shape : (rows, cols) of cells.
    cell : (height, width) of one cell in pixels of the frame; not whole where the library resized the features.
    start : (row, col) of the first cell's corner in the frame.
    places : which of the unit's tokens the cells are, row by row.
    """

    kind: Literal["image", "thumbnail", "tile"]
    frame: tuple[int, int]
    shape: tuple[int, int]
    cell: tuple[float, float]
    start: tuple[float, float] = (0.0, 0.0)
    places: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Unit:
    """The smallest piece of the pictures whose image tokens are known in number: an image, or one tile of it.

    Attributes
    ----------
    count : its image tokens.
    parts : what they show; tokens of no part, such as newlines and class tokens, lie in no grid.
    pixels : what the processor made of it.
    size : (height, width) of the original image, where the processor says it.
    alone : False for an image that was not tiled because it stands among others.
    apart : True if its tokens are keys of their own, and one placeholder in the sequence stands for all of them.
    """

    count: int
    parts: tuple[Part, ...]
    pixels: Tensor
    size: tuple[int, int] | None = None
    alone: bool = True
    apart: bool = False

    @property
    def placeholders(self) -> int:
        """How many tokens of the sequence stand for it."""
        return 1 if self.apart else self.count

    @property
    def words(self) -> str:
        """Its tokens for people: "4 x 4 = 16 patches"."""
        grids = [f"{one.shape[0]} x {one.shape[1]} = {one.shape[0] * one.shape[1]} patches" for one in self.parts]
        others = self.count - sum(one.shape[0] * one.shape[1] for one in self.parts)
        return " + ".join([*grids, *([f"{others} others"] if others else [])])
