"""JSON files of data sets, read with the file and the record named in every complaint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import FileError, InputError
from probe.ordinary_files import require_file

__all__ = [
    "JsonRecord",
    "by_id",
    "parsed",
    "read_json",
    "read_list",
    "read_value",
    "records_in",
    "records_of",
    "shown",
]

#: The largest JSON file that is read, in bytes. Parsed it takes about six times as much memory, and the largest published
#: file (instances of COCO's training pictures) has 450 MB.
LARGEST = 2**30


@dataclass(frozen=True)
class JsonRecord:
    """One object of a list in a JSON file; its fields are checked as they are read."""

    file: Path
    kind: str
    position: int
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """The file and the record, as the beginning of a message."""
        number = self.fields.get("id")
        if type(number) is str:
            named = f"{self.kind} {shown(number)}"
        else:
            named = f"{self.kind} {number}" if type(number) is int else f"{self.kind} at position {self.position}"
        return f"{str(self.file)!r}, {named}"

    def error(self, reason: str) -> InputError:
        """The error to raise when the record is wrong for this reason."""
        return InputError(f"{self.where}: {reason}")

    def get(self, key: str, kind: type, what: str) -> Any:
        """The field, certain to be of this type (a bool is no int).

        Raises
        ------
        InputError
            The record has no such field, or it is of another type.
        """
        if key not in self.fields:
            raise self.error(f"it has no {key!r}; it needs {what}")
        value = self.fields[key]
        if type(value) is not kind:
            raise self.error(f"its {key!r} is {shown(value)}; it needs {what}")
        return value

    def integer(self, key: str, *, low: int | None = None) -> int:
        """The whole number in this field, at least `low`.

        Raises
        ------
        InputError
            No whole number is there, or it is smaller.
        """
        what = "a whole number" if low is None else f"a whole number of at least {low}"
        value = self.get(key, int, what)
        if low is not None and value < low:
            raise self.error(f"its {key!r} is {shown(value)}; it needs {what}")
        return int(value)

    def flag(self, key: str) -> bool:
        """The truth value in this field.

        Raises
        ------
        InputError
            Neither true nor false is there.
        """
        return bool(self.get(key, bool, "true or false"))

    def identifier(self, key: str) -> str:
        """The id in this field as a text: some data sets write 7, others "7".

        Raises
        ------
        InputError
            Neither a whole number nor a printable text is there.
        """
        if type(self.fields.get(key)) is str:
            return self.text(key)
        return str(self.get(key, int, "a whole number or a text"))

    def text(self, key: str) -> str:
        """The text in this field, printable and not empty.

        Raises
        ------
        InputError
            No text is there, or it is blank or holds control characters.
        """
        value = self.get(key, str, "a text")
        # Line breaks occur in honest captions; terminal escapes and half characters do not.
        if not value.strip() or not value.replace("\n", " ").replace("\t", " ").isprintable():
            raise self.error(f"its {key!r} is {shown(value)}; it needs a text that can be printed")
        return str(value)

    def texts(self, key: str) -> list[str]:
        """The list of printable texts in this field.

        Raises
        ------
        InputError
            No list is there, or something else is in it.
        """
        values = self.get(key, list, "a list of texts")
        return [JsonRecord(self.file, self.kind, self.position, {**self.fields, key: one}).text(key) for one in values]

    def integers(self, key: str) -> list[int]:
        """The list of whole numbers in this field.

        Raises
        ------
        InputError
            No list is there, or something else is in it.
        """
        values = self.get(key, list, "a list of whole numbers")
        for value in values:
            if type(value) is not int:
                raise self.error(f"its {key!r} holds {shown(value)}; it needs whole numbers")
        return list(values)


def by_id(records: Iterable[JsonRecord]) -> Iterator[tuple[int, JsonRecord]]:
    """Each record with its whole number "id".

    Raises
    ------
    InputError
        A record has none, or that of an earlier one.
    """
    seen: set[int] = set()
    for record in records:
        number = record.integer("id")
        if number in seen:
            raise record.error("its id was used before in the same list; ids must differ")
        seen.add(number)
        yield number, record


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    FileError
        The file cannot be opened, is no ordinary file, or is larger than 1 GiB.
    InputError
        What it holds is not UTF-8, not JSON, nested too deeply, has NaN in it, or is not an object.
    """
    content = read_value(path)
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds {shown(content)}; a JSON object with named lists is needed")
    return content


def read_list(path: Path) -> list[Any]:
    """The list in a JSON file.

    Raises
    ------
    FileError, InputError
        As in `read_json`, if it is no list.
    """
    content = read_value(path)
    if not isinstance(content, list):
        raise InputError(f"{str(path)!r} holds {shown(content)}; a JSON list of objects is needed")
    return content


def read_value(path: Path) -> Any:
    """Whatever a JSON file holds.

    Raises
    ------
    FileError
        The file cannot be opened, is no ordinary file, or is larger than 1 GiB.
    InputError
        What it holds is not UTF-8, not JSON, nested too deeply, or has NaN in it.
    """
    require_file(path, largest=LARGEST)
    return parsed(_bytes_of(path), repr(str(path)))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error


def parsed(data: bytes, where: str) -> Any:
    """The value that the JSON text of these bytes says; `where` is how complaints begin.

    Raises
    ------
    InputError
        The bytes are not UTF-8, not JSON, nested too deeply, or have NaN in them.
    """
    try:
        text = data.decode("utf-8")
        del data  # half of what is held while a large table is parsed
        return json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply to be a data set") from error
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error


def records_in(path: Path, content: dict[str, Any], key: str, kind: str) -> Iterator[JsonRecord]:
    """The records of one list of a file, in order.

    Raises
    ------
    InputError
        The list is missing, or something in it is not an object.
    """
    if not isinstance(content.get(key), list):
        found = (
            shown(content[key]) if key in content else "missing; there are " + (", ".join(map(repr, content)) or "none")
        )
        raise InputError(f"{str(path)!r} needs a list {key!r}, which is {found}")
    yield from records_of(path, content[key], kind)


def records_of(path: Path, values: list[Any], kind: str) -> Iterator[JsonRecord]:
    """The objects of a list out of a file as records, in order.

    Raises
    ------
    InputError
        Something in it is not an object.
    """
    for position, fields in enumerate(values):
        if not isinstance(fields, dict):
            raise InputError(
                f"{str(path)!r}, {kind} at position {position}: it is {shown(fields)}; an object is needed"
            )
        yield JsonRecord(path, kind, position, fields)


def shown(value: Any) -> str:
    """The value in at most 40 printable characters."""
    text = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= 40 else text[:37] + "..."


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
