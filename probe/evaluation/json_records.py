"""JSON files of data sets, read with the file and the record named in every complaint."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import FileError, InputError

__all__ = ["JsonRecord", "parsed", "read_json", "read_value", "records_in", "require_file", "shown"]


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises
    ------
    FileError
        The file cannot be opened, or is no ordinary file.
    InputError
        What it holds is not UTF-8, not JSON, nested too deeply, has NaN in it, or is not an object.
    """
    content = read_value(path)
    if not isinstance(content, dict):
        raise InputError(f"{str(path)!r} holds {shown(content)}; a JSON object with named lists is needed")
    return content


def read_value(path: Path) -> Any:
    """Whatever a JSON file holds.

    Raises
    ------
    FileError
        The file cannot be opened, or is no ordinary file.
    InputError
        What it holds is not UTF-8, not JSON, nested too deeply, or has NaN in it.
    """
    require_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    return parsed(data, repr(str(path)))


def require_file(path: Path) -> None:
    """Nothing, once it is certain that the path is an ordinary file.

    Raises
    ------
    FileError
        It is not, or cannot be looked at.
    """
    try:
        # Looked at before it is opened: opening a FIFO waits for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileError(f"{str(path)!r} is not an ordinary file: a JSON file is needed")
    except FileError:
        raise
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
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
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
    for position, fields in enumerate(content[key]):
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
