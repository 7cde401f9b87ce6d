"""Conversations as LLaVA writes them, read and checked one by one, with a reason for each that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from probe.errors import InputError
from probe.evaluation.json_records import JsonRecord, read_value, shown
from probe.evaluation.paths import file_inside
from probe.text import shorten

__all__ = ["IMAGE_TOKEN", "BadRecords", "Conversation", "read_conversations"]

IMAGE_TOKEN = "<image>"
ROLES = ("human", "gpt")
NAMED = 3  # records of each reason that a message names
#: The most records that are read of one file: several times as many as any published set has.
MOST = 5_000_000


@dataclass(frozen=True, slots=True)
class Conversation:
    """One record that can be trained on.

    Attributes
    ----------
    name : file and record, for messages.
    image : the picture's file; ``None`` for text alone.
    turns : (question, answer) pairs in order; without the image's placeholder, which stands before the first question.
    """

    name: str
    image: str | None
    turns: tuple[tuple[str, str], ...]


@dataclass
class BadRecords:
    """Records that cannot be used, by reason, in the order of the file.

    Attributes
    ----------
    file : where they are from.
    total : how many records there are, good ones too.
    found : reason -> names.
    """

    file: Path
    total: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Note one more."""
        self.found.setdefault(reason, []).append(name)

    def counts(self) -> dict[str, int]:
        """Reason -> how many."""
        return {reason: len(names) for reason, names in self.found.items()}

    def summary(self) -> str:
        """How many of which reason, and the first few of each by name; empty if there are none."""
        return ", ".join(f"{len(names)} with {reason} ({_first(names)})" for reason, names in self.found.items())

    def refuse(self, cure: str) -> None:
        """Nothing, if there are none.

        Raises
        ------
        InputError
            If there are any, with their number, their reasons and the first few by name.
        """
        number = sum(self.counts().values())
        if number:
            raise InputError(
                f"{str(self.file)!r}: {number} of {self.total} records cannot be used: {self.summary()}. {cure}"
            )


class _Unusable(Exception):
    """The reason why a record cannot be used."""


def read_conversations(
    data: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    *,
    prompt: Literal["plain", "conversation"],
    tracked: Callable[[list[Any]], Iterable[Any]] = iter,
) -> tuple[list[Conversation], BadRecords]:
    """The records of a file that can be used, in order, and those that cannot; images are looked up but not opened.

    A question that nobody answers at the end, and an answer to no question at the beginning, are left away as in LLaVA.

    Parameters
    ----------
    prompt : "plain" needs an image and one answer in each record.
    tracked : passes the records through, and shows how far it is.

    Raises
    ------
    FileError
        If the file cannot be read.
    InputError
        If it is not a JSON list, holds nothing, or the folder of images is missing.
    """
    path = Path(data)
    content = read_value(path)
    if not isinstance(content, list):
        raise InputError(f"{str(path)!r} holds {shown(content)}; a JSON list of conversations is needed.")
    if len(content) > MOST:
        raise InputError(f"{str(path)!r} holds {len(content):,} records; at most {MOST:,} are read: split it.")
    if not content:
        raise InputError(f"{str(path)!r} holds no record; there is nothing to train on.")
    root = None if images is None else _existing(Path(images))
    good, bad = [], BadRecords(path, len(content))
    for position, fields in enumerate(tracked(content)):
        name = _name_of(fields, position)
        try:
            good.append(_conversation(JsonRecord(path, "record", position, fields), name, root, prompt=prompt))
        except _Unusable as reason:
            bad.add(str(reason), name)
    return good, bad


def _conversation(record: JsonRecord, name: str, root: Path | None, *, prompt: str) -> Conversation:
    if not isinstance(record.fields, dict):
        raise _Unusable("no object")
    image = _image(record, root)
    turns = _exchanges(_said(record.fields.get("conversations")))
    placed = sum(text.count(IMAGE_TOKEN) for turn in turns for text in turn)
    if image is None and placed:
        raise _Unusable("an image token but no image")
    if image is not None and not placed:
        raise _Unusable("no image token")
    if image is not None and (placed > 1 or IMAGE_TOKEN not in turns[0][0]):
        raise _Unusable("an image token that is not once in the first question")
    if prompt == "plain" and (image is None or len(turns) != 1):
        raise _Unusable("no image or more than one answer, which prompt=plain cannot put")
    if image is not None:
        # LLaVA puts the image first, wherever the record has it.
        turns = [(turns[0][0].replace(IMAGE_TOKEN, "").strip(), turns[0][1]), *turns[1:]]
    return Conversation(f"{str(record.file)!r}, record {name}", image, tuple(turns))


def _said(turns: Any) -> list[tuple[str, str]]:
    """(role, text) of every turn."""
    if not isinstance(turns, list) or not turns or not all(isinstance(one, dict) for one in turns):
        raise _Unusable("no list of turns")
    for one in turns:
        if one.get("from") not in ROLES:
            raise _Unusable("an unknown role")
        text = one.get("value")
        if not isinstance(text, str) or not _encodable(text):
            raise _Unusable("a turn that is no text")
    return [(one["from"], one["value"]) for one in turns]


def _exchanges(said: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(question, answer) pairs."""
    if said[0][0] == "gpt":
        said = said[1:]
    if any(role != ROLES[place % 2] for place, (role, _) in enumerate(said)):
        raise _Unusable("turns out of order")
    pairs = [(said[place][1], said[place + 1][1]) for place in range(0, len(said) - 1, 2)]
    if not pairs:
        raise _Unusable("no answer")
    if any(not answer.strip() for _, answer in pairs):
        raise _Unusable("an empty answer")
    return pairs


def _image(record: JsonRecord, root: Path | None) -> str | None:
    name = record.fields.get("image")
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip() or "\0" in name or not _encodable(name):
        raise _Unusable("an image that is no file name")
    if any(pure.anchor or ".." in pure.parts for pure in (PurePosixPath(name), PureWindowsPath(name))):
        raise _Unusable("an image outside the images folder")
    if root is None:
        raise _Unusable("an image although no images folder is given")
    try:
        found = file_inside(root, ("",), record, name)
    except InputError:
        # What is there and was refused all the same is behind a link that leads out.
        there = os.path.exists(root / name)
        raise _Unusable("an image outside the images folder" if there else "a missing image") from None
    if not found.is_file():  # a folder, or a pipe that would never end
        raise _Unusable("a missing image")
    return str(found)


def _existing(images: Path) -> Path:
    if not images.is_dir():
        raise InputError(
            f"There is no folder of images {str(images)!r}; give the one that the records' image names are below."
        )
    return images.resolve()


def _name_of(fields: Any, position: int) -> str:
    """What a record is called in messages: its id if it has one, else its place from 0."""
    number = fields.get("id") if isinstance(fields, dict) else None
    if isinstance(number, (str, int)) and not isinstance(number, bool) and str(number).strip():
        return shorten(ascii(number) if isinstance(number, str) else str(number), 40)
    return f"at position {position}"


def _encodable(text: str) -> bool:
    """False for half characters, which JSON can hold and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
