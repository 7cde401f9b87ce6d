"""Which rows of a denoiser's attention are read, and what of each: the words that patches look at, or the patches that words do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from probe.capture.places import Place
from probe.capture.prompts import Keys
from probe.layout import REST_PLACES

__all__ = ["IMAGE", "Reading", "Sides"]

#: The pseudo token that stands for all patches together, where patches look at words and patches alike.
IMAGE = "[image]"


@dataclass(frozen=True)
class Sides:
    """Where patches and words stand in one attention call.

    Attributes
    ----------
    rows, cols : of the layer's patches.
    level : how often the finest patches were halved.
    patch, word : position of the first patch, and of the first word.
    keys : number of keys.
    """

    rows: int
    cols: int
    level: int
    patch: int
    word: int
    keys: int

    @property
    def patches(self) -> slice:
        """Positions of the patches."""
        return slice(self.patch, self.patch + self.rows * self.cols)


@dataclass(frozen=True)
class Reading:
    """What is read at one place, with these words and from these patches.

    Attributes
    ----------
    place : see ``probe.capture.places.Place``.
    keys : the words.
    cells : the finest patches from which patches are read, where patches look at patches.
    """

    place: Place
    keys: Keys
    cells: tuple[tuple[int, int], ...] = ()

    @property
    def of_words(self) -> bool:
        """True if there is a map for each word, of the patches that look at it."""
        return self.place in ("cross-attention", "image to text")

    @property
    def joint(self) -> bool:
        """True if one softmax spans patches and words."""
        return self.place.startswith(("image to", "text to"))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Numbers of the words that have a map; padding asks nothing that is worth a map."""
        kept = range(len(self.keys.tokens))
        if self.place == "text to image":
            return tuple(one for one in kept if one not in self.keys.padding)
        return tuple(kept) if self.of_words else ()

    def sides(self, *, queries: int, keys: int, text: int, rows: int, cols: int, level: int, text_first: bool) -> Sides:
        """Where patches and words stand in a call with that many queries and keys."""
        if not self.joint:
            return Sides(rows, cols, level, 0, 0, keys)
        return Sides(rows, cols, level, text if text_first else 0, 0 if text_first else rows * cols, keys)

    def queries(self, sides: Sides) -> list[int]:
        """Positions of the query rows that are read."""
        if self.of_words:
            return list(range(sides.patches.start, sides.patches.stop))
        if self.place == "text to image":
            return [sides.word + self.keys.positions[one][0] for one in self.tokens]
        return [sides.patch + (row >> sides.level) * sides.cols + (col >> sides.level) for row, col in self.cells]

    def part(self, weights: Tensor, sides: Sides) -> Tensor:
        """(head, row, word) or (head, row, patch) of some rows of (head, row, key) weights."""
        if not self.of_words:
            # A copy: a slice would keep the whole row of keys alive.
            return weights[..., sides.patches].clone()
        words = [weights[..., [sides.word + one for one in places]].sum(-1) for places in self.keys.positions]
        if self.joint:
            words.append(weights[..., sides.patches].sum(-1))
        return torch.stack(words, dim=-1)

    def rest(self, weights: Tensor, sides: Sides) -> Tensor | None:
        """(head, row, place) mass on what is no patch, where patches are not all that is looked at."""
        if self.of_words or not self.joint:
            return None
        elsewhere = weights.new_zeros(*weights.shape[:2], len(REST_PLACES))
        text = slice(sides.word, sides.word + self.keys.count)
        elsewhere[..., REST_PLACES.index("text")] = weights[..., text].sum(-1)
        return elsewhere

    def whole(self, parts: list[Tensor], sides: Sides) -> Tensor:
        """(head, token, row, col) maps from the parts of all rows."""
        found = torch.cat(parts, dim=1)
        if self.of_words:
            return rearrange(found, "head (row col) token -> head token row col", row=sides.rows, col=sides.cols)
        return rearrange(found, "head token (row col) -> head token row col", row=sides.rows, col=sides.cols)
