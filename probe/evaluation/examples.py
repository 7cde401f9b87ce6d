"""What every reader of a data set gives: one picture, one text about it, and where in the picture its phrases are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from probe.errors import InputError
from probe.images import image_size

__all__ = ["Example", "ExamplePhrase"]


@dataclass(frozen=True, eq=False)
class ExamplePhrase:
    """A phrase of an example's text and the pixels that it names.

    `text` is what stands at the characters `start` to `end` (exclusive) of the example's text. `mask` is a bool array
    (height, width) in the pixels of the upright original image, as `probe.images.read_image` gives it. What a data set says
    besides: `category` is the name of its class, `thing` whether that is countable (a thing) or not (stuff), `plural` whether
    the phrase names several; empty or ``None`` where it does not say. `label` is what the data set calls the place, where
    those words do not stand in the text and `text` is the nearest that does.
    """

    text: str
    start: int
    end: int
    mask: np.ndarray
    category: str = ""
    thing: bool | None = None
    plural: bool | None = None
    label: str = ""


@dataclass(frozen=True, eq=False)
class Example:
    """One picture with one text to be read, and the phrases of that text with their masks.

    `name` is unique in its data set; several examples can share a picture, and those have the same `image`, which is a
    path or a PIL image. All masks have one shape. `references` are other texts about the same picture, without phrases,
    that a generated text is compared with beside this one. `size` is the picture's (height, width) where the data set
    declares it, which counts where there is no mask.

    Raises
    ------
    InputError
        A phrase that does not stand at its characters, or a mask that is not bool, not two-dimensional, or
        of another size than its neighbours or the PIL image. A picture given as a path is not opened here.
    """

    name: str
    image: Path | Image.Image
    text: str
    phrases: tuple[ExamplePhrase, ...]
    references: tuple[str, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.image, (Path, Image.Image)):
            raise InputError(
                f"example {self.name!r}: its image is a {type(self.image).__name__}: give a Path or PIL image"
            )
        size = image_size(self.image) if isinstance(self.image, Image.Image) else None
        for phrase in self.phrases:
            self._check_span(phrase)
            size = self._checked_size(phrase, size)

    @property
    def picture(self) -> str:
        """The same for examples that share a picture; a picture in memory belongs to its example alone."""
        return str(self.image) if isinstance(self.image, Path) else f"picture of {self.name}"

    def _check_span(self, phrase: ExamplePhrase) -> None:
        length = len(self.text)
        if not 0 <= phrase.start < phrase.end <= length:
            raise InputError(
                f"example {self.name!r}, phrase {phrase.text!r}: characters {phrase.start} to {phrase.end} are not in"
                f" its text of {length} characters"
            )
        found = self.text[phrase.start : phrase.end]
        if found != phrase.text:
            raise InputError(
                f"example {self.name!r}, phrase {phrase.text!r}: at characters {phrase.start} to {phrase.end} the text"
                f" says {found!r}"
            )

    def _checked_size(self, phrase: ExamplePhrase, size: tuple[int, int] | None) -> tuple[int, int]:
        """The (height, width) of the phrase's mask, which has to be `size` where that is known."""
        mask = phrase.mask
        where = f"example {self.name!r}, phrase {phrase.text!r}"
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
            found = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InputError(f"{where}: its mask is {found}: give a bool array (height, width)")
        height, width = mask.shape
        if size not in (None, (height, width)):
            raise InputError(
                f"{where}: its mask is {height} x {width} (height x width), and the picture is {size[0]} x {size[1]}"
            )
        return height, width
