"""The truth about each picture with its masks as run lengths, and which prediction is about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from probe.errors import InputError, did_you_mean
from probe.evaluation.examples import Example
from probe.evaluation.predictions import Prediction
from probe.evaluation.run_lengths import RunLengths, encode
from probe.images import image_size

__all__ = ["Missing", "TruePhrase", "Truth", "encode_example", "pair"]

#: What an example without a prediction is: an error, or a picture in which nothing was found.
Missing = Literal["refuse", "miss"]


@dataclass(frozen=True, eq=False)
class TruePhrase:
    """A phrase of an example, its mask as run lengths; the other fields are those of ``ExamplePhrase``."""

    text: str
    start: int
    end: int
    mask: RunLengths
    category: str = ""
    thing: bool | None = None
    plural: bool | None = None
    label: str = ""

    @property
    def words(self) -> str:
        """What the data set calls the place; `text` where it says nothing else."""
        return self.label or self.text


@dataclass(frozen=True, eq=False)
class Truth:
    """An example as scorers need it: without its pixels.

    Attributes
    ----------
    name, text, references : those of the example.
    picture : the same for examples that share a picture.
    size : (height, width) of the picture.
    phrases : with masks as run lengths.
    """

    name: str
    picture: str
    size: tuple[int, int]
    text: str
    phrases: tuple[TruePhrase, ...]
    references: tuple[str, ...] = ()


def encode_example(example: Example) -> Truth:
    """The example with its masks as run lengths, a thousandth of their size.

    A picture is opened, for its size, only where the example has no phrase and its data set says no size.

    Raises
    ------
    FileError, InputError
        If the picture has to be opened and cannot be read.
    """
    size = example.phrases[0].mask.shape if example.phrases else example.size or image_size(example.image)
    phrases = tuple(
        TruePhrase(one.text, one.start, one.end, encode(one.mask), one.category, one.thing, one.plural, one.label)
        for one in example.phrases
    )
    return Truth(example.name, example.picture, (size[0], size[1]), example.text, phrases, example.references)


def pair(
    truths: Iterable[Truth], predictions: Iterable[Prediction], *, missing: Missing = "refuse"
) -> Iterator[tuple[Truth, Prediction | None]]:
    """Each truth, in order, with the prediction of its name; None where there is none and that is to be a miss.

    Predictions are read as they are needed: in the order of the truths none is kept in memory.

    Raises
    ------
    InputError
        If a name stands twice among the truths or the predictions, a prediction belongs to no truth, a picture has another size
        in both, or a truth has no prediction and ``missing`` is "refuse".
    """
    if missing not in get_args(Missing):
        raise InputError(f"missing must be one of 'refuse', 'miss', found {missing!r}.")
    return _pair(truths, _Waiting(predictions), missing)


class _Waiting:
    """Predictions that were read before their turn."""

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self.coming = iter(predictions)
        self.kept: dict[str, Prediction] = {}
        self.seen: set[str] = set()

    def take(self, name: str) -> Prediction | None:
        while name not in self.kept and self._read():
            pass
        return self.kept.pop(name, None)

    def rest(self) -> list[str]:
        """The names that nobody took."""
        while self._read():
            pass
        return list(self.kept)

    def _read(self) -> bool:
        one = next(self.coming, None)
        if one is None:
            return False
        if one.name in self.seen:
            raise InputError(f"prediction {one.name!r} is there twice; give one prediction for each example")
        self.seen.add(one.name)
        self.kept[one.name] = one
        return True


def _pair(truths: Iterable[Truth], waiting: _Waiting, missing: Missing) -> Iterator[tuple[Truth, Prediction | None]]:
    names: set[str] = set()
    for truth in truths:
        if truth.name in names:
            raise InputError(f"example {truth.name!r} is there twice; names of examples must differ")
        names.add(truth.name)
        found = waiting.take(truth.name)
        if found is None and missing == "refuse":
            raise InputError(
                f"example {truth.name!r} has no prediction.{did_you_mean(truth.name, waiting.kept)} Predict it, or say "
                "missing='miss' to count it as a picture in which nothing was found."
            )
        if found is not None and found.size != truth.size:
            raise InputError(
                f"prediction {truth.name!r} is of a picture of {found.size[0]} x {found.size[1]} (height x width), and its "
                f"example of one of {truth.size[0]} x {truth.size[1]}: masks must be in pixels of the upright original"
            )
        yield truth, found
    if rest := waiting.rest():
        raise InputError(
            f"{len(rest)} predictions are about no example, the first of them {rest[0]!r}.{did_you_mean(rest[0], names)} "
            "Give the data set that was predicted."
        )
