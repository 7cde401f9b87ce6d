"""The pictures that a data set declares, each with its size, checked against the file when its turn comes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import FileError
from probe.evaluation.json_records import JsonRecord, by_id, records_in, shown
from probe.evaluation.paths import file_inside
from probe.images import image_size, max_pixels

__all__ = [
    "Category",
    "Picture",
    "known_number",
    "measured_size",
    "picture_path",
    "read_categories",
    "read_pictures",
    "readable_size",
]


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture as a table declares it; `size` is (height, width) of the upright picture."""

    record: JsonRecord
    number: int
    file_name: str
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """The file name without its ending, on one level."""
        return Path(self.file_name).with_suffix("").as_posix().replace("/", "-")


@dataclass(frozen=True)
class Category:
    """The name of a class, and whether it is countable (a thing) or not (stuff)."""

    name: str
    thing: bool


def read_pictures(path: Path, content: dict[str, Any]) -> dict[int, Picture]:
    """The pictures in the list "images" of a table, by id.

    Raises
    ------
    InputError
        An id, size or file name is missing or wrong, with the record.
    """
    pictures: dict[int, Picture] = {}
    for number, record in by_id(records_in(path, content, "images", "image")):
        size = record.integer("height", low=1), record.integer("width", low=1)
        name = record.text("file_name")
        if not Path(name).name:
            raise record.error(f"its 'file_name' is {shown(name)}; it needs the name of a file")
        pictures[number] = Picture(record, number, name, size)
    return pictures


def read_categories(path: Path, content: dict[str, Any]) -> dict[int, Category]:
    """The classes in the list "categories" of a table, by id; those without "isthing" are things, as COCO's instances are.

    Raises
    ------
    InputError
        An id or a name is missing or wrong, or "isthing" is neither 0 nor 1.
    """
    categories: dict[int, Category] = {}
    for number, record in by_id(records_in(path, content, "categories", "category")):
        thing = record.integer("isthing") if "isthing" in record.fields else 1
        if thing not in (0, 1):
            raise record.error(f"its 'isthing' is {thing}; it needs 1 for a thing or 0 for stuff")
        categories[number] = Category(record.text("name"), thing == 1)
    return categories


def known_number(record: JsonRecord, key: str, known: dict[int, Any]) -> int:
    """The number in this field, certain to be one of those declared.

    Raises
    ------
    InputError
        It is not.
    """
    number = record.integer(key)
    if number not in known:
        raise record.error(f"its {key!r} is {number}, which is not among the {len(known)} that are declared")
    return number


def picture_path(root: Path, folders: tuple[str, ...], picture: Picture) -> Path:
    """The picture's file, certain to lie in the data set, and to have the declared size if it can be read.

    One that cannot be read is its example's fault alone: whoever opens it says why, and the truth about it stands.

    Raises
    ------
    InputError
        It is missing, leads out of the folder, or has another size.
    FileError
        It cannot be read, and the declared size is more than is read of any picture.
    """
    path = file_inside(root, folders, picture.record, picture.file_name)
    found = readable_size(path, declared=picture.size)
    if found is None:
        measured_size(picture.record, path, ())
    elif found != picture.size:
        turned = " once it is upright (EXIF)" if found == picture.size[::-1] else ""
        raise picture.record.error(
            f"it is declared as {picture.size[0]} x {picture.size[1]} (height x width), and {str(path)!r} is"
            f" {found[0]} x {found[1]}{turned}"
        )
    return path


def readable_size(path: Path, *, declared: Any = None) -> tuple[int, int] | None:
    """The (height, width) of a picture's file; of one that cannot be read, the size that is declared.

    ``None`` if that is no size, or of more pixels than are read of any picture, which masks need not be made for.
    """
    try:
        return image_size(path)
    except FileError:
        if not isinstance(declared, (list, tuple)) or len(declared) != 2:
            return None
        height, width = declared
        whole = type(height) is int and type(width) is int and height > 0 and width > 0
        return (height, width) if whole and height * width <= max_pixels("JPEG") else None


def measured_size(record: JsonRecord, path: Path, segmentations: Iterable[Any]) -> tuple[int, int]:
    """The (height, width) of a picture's file; of one that cannot be read, what the run lengths of its masks say.

    Raises
    ------
    FileError
        The picture cannot be read, and none of its segmentations says a size; the record is named.
    """
    try:
        return image_size(path)
    except FileError as error:
        for one in segmentations:
            size = readable_size(path, declared=one.get("size") if isinstance(one, dict) else None)
            if size is not None:
                return size
        raise FileError(f"{record.where}: {error}") from error
