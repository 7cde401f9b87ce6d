"""What a model said about one picture and where it says each phrase is: checked, and kept as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isinf, isnan, nan
from pathlib import Path
from typing import Any

from probe.errors import FileError, InputError
from probe.evaluation.json_records import JsonRecord, parsed, shown
from probe.evaluation.run_lengths import RunLengths, checked, encode
from probe.grounding.segment import Segmentation
from probe.ordinary_files import require_file
from probe.writing import write_beside

__all__ = ["PredictedPhrase", "Prediction", "from_segmentation", "read_predictions", "write_predictions"]

#: A picture's predictions take kilobytes; what is longer was not written here and is not read into memory.
LONGEST_LINE = 64_000_000


@dataclass(frozen=True, eq=False)
class PredictedPhrase:
    """A phrase of the model's text and the pixels that it is said to name.

    Attributes
    ----------
    text, start, end : the words and their characters in the prediction's text, the end excluded.
    mask : COCO run lengths, {"size": [height, width], "counts": compressed text}, in pixels of the upright original image.
    point : (row, col) of a pixel, or None where there is none.
    score : how sure the model is; NaN where it does not say.
    note : why there is no point, or why it says little; else empty.
    category : the class that the phrase was given; empty where it was given none.

    Raises
    ------
    InputError
        If a field is of another type, or the mask does not fill a picture of its own size.
    """

    text: str
    start: int
    end: int
    mask: RunLengths
    point: tuple[int, int] | None = None
    score: float = nan
    note: str = ""
    category: str = ""

    def __post_init__(self) -> None:
        for name in ("text", "note", "category"):
            if not isinstance(getattr(self, name), str):
                raise self._error(f"its {name} is {shown(getattr(self, name))}; give text")
        if type(self.start) is not int or type(self.end) is not int:
            raise self._error(f"its characters are {shown(self.start)} to {shown(self.end)}; give whole numbers")
        if isinstance(self.score, bool) or not isinstance(self.score, (int, float)) or isinf(self.score):
            raise self._error(f"its score is {shown(self.score)}; give a finite number, or NaN where there is none")
        size = self.mask.get("size") if isinstance(self.mask, dict) else None
        if not isinstance(size, list) or len(size) != 2 or any(type(one) is not int or one < 1 for one in size):
            raise self._error("its mask has no size; give run lengths with 'size' [height, width] and 'counts'")
        try:
            object.__setattr__(self, "mask", checked(self.mask, (size[0], size[1])))
        except InputError as error:
            raise self._error(str(error)) from error
        if self.point is not None:
            self._check_point(*self.size)

    def _check_point(self, height: int, width: int) -> None:
        point = self.point
        whole = isinstance(point, tuple) and len(point) == 2 and all(type(one) is int for one in point)
        if point is None or not whole or not (0 <= point[0] < height and 0 <= point[1] < width):
            raise self._error(
                f"its point is {shown(point)}; give (row, col) in a picture of {height} x {width} (height x width), or None"
            )

    def _error(self, reason: str) -> InputError:
        return InputError(f"predicted phrase {shown(self.text)}: {reason}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the mask."""
        height, width = self.mask["size"]
        return height, width


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's text about the picture of one example, with its phrases and their masks.

    Attributes
    ----------
    name : that of the example.
    size : (height, width) of the upright original image.
    text : all that the model said, or was given to say.
    phrases : in the order of the text, or in the order asked for.

    Raises
    ------
    InputError
        If a phrase does not stand at its characters, or a mask is of another size.
    """

    name: str
    size: tuple[int, int]
    text: str
    phrases: tuple[PredictedPhrase, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.text, str):
            raise self._error(f"its name and text are {shown(self.name)} and {shown(self.text)}; give text for both")
        if (
            not isinstance(self.size, tuple)
            or len(self.size) != 2
            or any(type(one) is not int or one < 1 for one in self.size)
        ):
            raise self._error(f"its size is {shown(self.size)}; give (height, width) in pixels")
        for one in self.phrases:
            if one.size != self.size:
                raise self._error(
                    f"phrase {shown(one.text)}: its mask is {one.size[0]} x {one.size[1]} (height x width), and the picture is "
                    f"{self.size[0]} x {self.size[1]}"
                )
            if not 0 <= one.start < one.end <= len(self.text) or self.text[one.start : one.end] != one.text:
                found = shown(self.text[max(one.start, 0) : max(one.end, 0)])
                raise self._error(
                    f"phrase {shown(one.text)}: at characters {one.start} to {one.end} the text of {len(self.text)} characters "
                    f"says {found}"
                )

    def _error(self, reason: str) -> InputError:
        return InputError(f"prediction {shown(self.name)}: {reason}")


def from_segmentation(name: str, segmentation: Segmentation) -> Prediction:
    """What ``attend_and_segment`` found, as the prediction for the example of this name."""
    phrases = tuple(
        PredictedPhrase(one.text, *one.span, encode(one.mask), one.point, float(one.score), one.note)
        for one in segmentation.phrases
    )
    return Prediction(name, segmentation.image_size, segmentation.text, phrases)


def write_predictions(path: Path | str, predictions: Iterable[Prediction]) -> int:
    """How many predictions were written, one line of JSON each; on failure the file is what it was before.

    Raises
    ------
    InputError
        If two predictions have one name.
    FileError
        If the file cannot be written.
    """
    count = 0

    def write(beside: Path) -> None:
        nonlocal count
        with beside.open("w", encoding="ascii") as file:
            for one in _once(predictions):
                file.write(json.dumps(_plain(one), allow_nan=False) + "\n")
                count += 1

    write_beside(Path(path), write)
    return count


def _once(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    seen: set[str] = set()
    for one in predictions:
        if one.name in seen:
            raise InputError(f"prediction {one.name!r} is there twice; give one prediction for each example")
        seen.add(one.name)
        yield one


def _plain(one: Prediction) -> dict[str, Any]:
    phrases = [
        {
            "text": part.text,
            "start": part.start,
            "end": part.end,
            "mask": part.mask,
            "point": part.point,
            "score": None if isnan(part.score) else part.score,
            "note": part.note,
            "category": part.category,
        }
        for part in one.phrases
    ]
    return {"name": one.name, "size": list(one.size), "text": one.text, "phrases": phrases}


class _Line(JsonRecord):
    """One line of a file; complaints give its number, from 1."""

    @property
    def where(self) -> str:
        return f"{str(self.file)!r}, line {self.position}"


def read_predictions(path: Path | str) -> Iterator[Prediction]:
    """The predictions that ``write_predictions`` wrote, one after the other, in memory for one.

    Raises
    ------
    FileError
        If the file cannot be read, or is no ordinary file.
    InputError
        If a line is no prediction or repeats a name, with the file and the line.
    """
    path = Path(path)
    require_file(path)
    return _read(path)


def _read(path: Path) -> Iterator[Prediction]:
    seen: dict[str, int] = {}
    for number, data in _lines(path):
        where = f"{str(path)!r}, line {number}"
        fields = parsed(data, where)
        if not isinstance(fields, dict):
            raise InputError(f"{where}: it is {shown(fields)}; an object is needed")
        prediction = _prediction(_Line(path, "line", number, fields))
        if prediction.name in seen:
            raise InputError(f"{where}: prediction {prediction.name!r} stands in line {seen[prediction.name]} already")
        seen[prediction.name] = number
        yield prediction


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with path.open("rb") as file:
            while data := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(data) > LONGEST_LINE:
                    raise InputError(
                        f"{str(path)!r}, line {number}: it is longer than {LONGEST_LINE:,} bytes, so it is no prediction"
                    )
                yield number, data
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


def _prediction(line: _Line) -> Prediction:
    size = line.integers("size")
    phrases = []
    for position, fields in enumerate(line.get("phrases", list, "a list of phrases")):
        if not isinstance(fields, dict):
            raise line.error(f"its phrase at position {position} is {shown(fields)}; an object is needed")
        phrases.append(_phrase(_Line(line.file, "line", line.position, fields)))
    try:
        return Prediction(
            line.get("name", str, "a name"), (*size,), line.get("text", str, "a text"), tuple(phrases)  # type: ignore[arg-type]
        )  # fmt: skip
    except InputError as error:
        raise line.error(str(error)) from error


def _phrase(line: _Line) -> PredictedPhrase:
    for name in ("point", "score"):
        if name not in line.fields:
            raise line.error(f"a phrase of it has no {name!r}; it needs one, null where there is none")
    point, score = line.fields["point"], line.fields["score"]
    try:
        return PredictedPhrase(
            text=line.get("text", str, "a text"),
            start=line.integer("start"),
            end=line.integer("end"),
            mask=line.get("mask", dict, "run lengths"),
            point=tuple(point) if isinstance(point, list) else point,
            score=nan if score is None else score,
            note=line.get("note", str, "a text"),
            category=line.get("category", str, "a text"),
        )
    except InputError as error:
        if str(error).startswith(line.where):
            raise
        raise line.error(str(error)) from error
