"""Intervals by bootstrap over images, in one pass and in memory that does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from probe.errors import InputError

__all__ = ["Interval", "Intervals", "Pictures", "PoissonBootstrap", "poisson_weights"]

#: Images kept back before their weights are multiplied in: one matrix product for 32 images instead of 32 outer products.
BATCH = 32


@dataclass(frozen=True)
class Interval:
    """A mean over phrases with its percentile interval, and how many images and phrases it rests on.

    ``low`` and ``high`` are NaN where fewer than two images count: one image says nothing about other images.
    """

    value: float
    low: float
    high: float
    images: int
    phrases: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {self.phrases} phrases in {self.images} images"


@dataclass(frozen=True, eq=False)
class Intervals:
    """The same for many cells at once, each field with shape (cell,)."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    images: NDArray[np.int64]
    phrases: NDArray[np.int64]

    def __getitem__(self, cell: int) -> Interval:
        low, high = float(self.low[cell]), float(self.high[cell])
        return Interval(float(self.value[cell]), low, high, int(self.images[cell]), int(self.phrases[cell]))


def poisson_weights(index: int, *, replicates: int, seed: int = 0) -> NDArray[np.float64]:
    """(replicate,) how often each replicate draws the image of this index: independent Poisson(1) counts.

    The generator is keyed by (seed, index), so an image has the same weights whoever works on it, and whenever.
    """
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).poisson(1.0, replicates).astype(np.float64)


class Pictures:
    """Numbers of pictures by what tells them apart: examples that share a picture are drawn together or not at all.

    Memory is a bit for each picture and cell, and the key.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._counted: list[NDArray[np.uint8]] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, picture: Hashable) -> int:
        """The picture's number, from 0 in the order in which they came."""
        return self._numbers.setdefault(picture, len(self._numbers))

    def new(self, picture: Hashable, counts: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(cell,) where this example is the first of its picture to count."""
        number, here = self.number(picture), np.asarray(counts) > 0
        if number == len(self._counted):
            self._counted.append(np.packbits(here))
            return here
        before = np.unpackbits(self._counted[number], count=len(here)).astype(bool)
        self._counted[number] = np.packbits(before | here)
        return np.asarray(here & ~before)


class PoissonBootstrap:
    """Running sums from which a mean over phrases and its bootstrap interval over images are read at any time.

    >>> bootstrap = PoissonBootstrap(cells=1024)
    >>> bootstrap.add(0, sums, counts)                     # image 0: per cell, the sum and number of its phrases' scores
    >>> bootstrap.intervals(confidence=0.95).low           # (cell,)

    Resampling n images with replacement draws image i a multinomial number of times, which needs n in advance and all scores in
    memory. Here every image is drawn Poisson(1) times in every replicate, independently of the others: the limit of the
    multinomial for many images, with a random total that the ratio divides out. Each image can then be forgotten once its
    weighted scores are added, and shards can be summed.

    The estimate is a ratio, sum of scores / number of phrases, because images differ in their number of phrases; images are
    drawn, not phrases, because phrases of one image are not independent. Memory is 2 x replicates x cells numbers, and 32 images.

    References
    ----------
    Hanley and MacGibbon, Creating non-parametric bootstrap samples using Poisson frequencies, Computer Methods and Programs in
    Biomedicine 2006. Chamandy, Muralidharan, Najmi, Naidu, Estimating Uncertainty for Massive Data Streams, Google 2012.
    """

    def __init__(self, cells: int, *, replicates: int = 1000, seed: int = 0) -> None:
        if replicates < 1 or seed < 0:
            raise InputError(f"replicates must be at least 1 and seed at least 0, found {replicates} and {seed}.")
        self.cells, self.replicates, self.seed = cells, replicates, seed
        self._totals = np.zeros((3, cells))  # sums, phrases, images
        self._drawn = np.zeros((2, replicates, cells))  # the same sums and phrases in each replicate
        self._waiting: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []

    def add(
        self,
        index: int,
        sums: NDArray[np.float64],
        counts: NDArray[np.float64],
        *,
        new: NDArray[np.bool_] | None = None,
    ) -> None:
        """Adds the image of this index: (cell,) sums of its phrases' scores, and how many phrases were summed in each cell.

        An index that comes again is drawn as often as before; ``new`` then says in which cells the image was not counted yet.
        """
        sums = np.where(counts > 0, sums, 0.0)
        self._totals += np.stack([sums, counts, counts > 0 if new is None else new])
        self._waiting.append((index, sums, np.asarray(counts, dtype=np.float64)))
        if len(self._waiting) >= BATCH:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        indices, sums, counts = zip(*self._waiting, strict=True)
        weights = [poisson_weights(one, replicates=self.replicates, seed=self.seed) for one in indices]
        drawn = np.stack(weights, axis=1)
        self._drawn[0] += drawn @ np.stack(sums)
        self._drawn[1] += drawn @ np.stack(counts)
        self._waiting.clear()

    def __add__(self, other: PoissonBootstrap) -> PoissonBootstrap:
        """Both together, as if one had seen the images of both; their indices must differ."""
        alike = [(one.cells, one.replicates, one.seed) for one in (self, other)]
        if alike[0] != alike[1]:
            raise InputError(
                f"Bootstraps to add must agree in (cells, replicates, seed), found {alike[0]} and {alike[1]}."
            )
        both = PoissonBootstrap(self.cells, replicates=self.replicates, seed=self.seed)
        for one in (self, other):
            one._settle()
            both._totals += one._totals
            both._drawn += one._drawn
        return both

    @property
    def value(self) -> NDArray[np.float64]:
        """(cell,) sum of scores / number of phrases, NaN where there is none."""
        with np.errstate(invalid="ignore"):
            return self._totals[0] / self._totals[1]

    def replicated(self) -> NDArray[np.float64]:
        """(replicate, cell) values, NaN where a replicate drew no image of that cell.

        Replicate r of two bootstraps of one seed draws the same images, so what is computed from both is paired.
        """
        self._settle()
        with np.errstate(invalid="ignore"):
            return self._drawn[0] / self._drawn[1]

    def intervals(self, *, confidence: float = 0.95) -> Intervals:
        """Value and percentile interval of every cell.

        A replicate that drew no image of a cell has no value and is left out; with n images its probability is exp(-n).

        Raises
        ------
        InputError
            If ``confidence`` is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise InputError(f"confidence must lie between 0 and 1, for example 0.95; found {confidence}.")
        replicated = self.replicated()
        replicated.sort(axis=0)  # NaN goes last
        known = self.replicates - np.isnan(replicated).sum(0)
        tail = (1 - confidence) / 2
        low, high = (_quantile(replicated, known, share) for share in (tail, 1 - tail))
        phrases, images = self._totals[1:]
        alone = images < 2
        return Intervals(
            value=self.value,
            low=np.where(alone, nan, low),
            high=np.where(alone, nan, high),
            images=images.astype(np.int64),
            phrases=phrases.astype(np.int64),
        )


def _quantile(ordered: NDArray[np.float64], known: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """(cell,) linearly interpolated quantile of the first ``known`` of each column's ordered values."""
    place = share * np.maximum(known - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(known - 1, 0))
    cells = np.arange(ordered.shape[1])
    return ordered[below, cells] + (place - below) * (ordered[above, cells] - ordered[below, cells])
