"""Where the files of a published data set lie: its tables by split, and the folders of its pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from probe.errors import FileError, InputError, did_you_mean

__all__ = ["check_limit", "choose_split", "data_root", "find_table", "folder_contents", "picture_folders", "tables"]

#: Tables lie in the folder itself, as in a set of one's own, or where the archives of COCO put them.
PLACES = (".", "annotations")


def data_root(folder: str | Path) -> Path:
    """The folder with its links resolved.

    Raises
    ------
    InputError
        There is no such folder.
    """
    try:
        root = Path(folder).resolve()
        if root.is_dir():
            return root
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, too long a name, a null character
        raise InputError(f"{str(folder)!r} cannot be looked up ({error}): give the folder of a data set") from error
    raise InputError(f"{str(folder)!r}: there is no such folder")


def check_limit(limit: int | None) -> None:
    """Nothing, if this is a number of examples or ``None``.

    Raises
    ------
    InputError
        It is not.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"limit={limit!r} is not a number of examples: give a whole number from 1, or None for all")


def folder_contents(root: Path) -> str:
    """The first few names in a folder, as the end of a message."""
    try:
        names = sorted(path.name for path in islice(root.iterdir(), 1000))
    except OSError as error:
        raise FileError(f"{str(root)!r} cannot be listed: {error.strerror or error}") from error
    return "it has " + (", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "") if names else "no files")


def tables(root: Path, pattern: str, *, places: tuple[str, ...] = PLACES) -> dict[str, Path]:
    """The files whose name matches a regular expression, by its group "split"; "" where a name has no split.

    ``tables(root, r"instances(_(?P<split>.+))?[.]json")`` finds instances.json and annotations/instances_val2017.json.
    Where two places have the same split, the earlier place counts.
    """
    found: dict[str, Path] = {}
    for place in places:
        folder = root / place
        try:
            names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            raise FileError(f"{str(folder)!r} cannot be listed: {error.strerror or error}") from error
        for name in names:
            match = re.fullmatch(pattern, name)
            if match:
                found.setdefault(match["split"] or "", folder / name)
    return found


def find_table(folder: str | Path, pattern: str, split: str, *, name: str, missing: str) -> tuple[Path, str, Path]:
    """The folder with its links resolved, the split that is meant, and the table of it that fits the pattern.

    Parameters
    ----------
    name : the format as a user types it.
    missing : what to say of a folder without such a table: what it lacks, and where that was looked for.

    Raises
    ------
    InputError
        There is no such folder, table or split, or there are several splits and none was asked for.
    """
    root = data_root(folder)
    found = tables(root, pattern)
    if not found:
        raise InputError(f"{str(folder)!r} has no {missing}; {folder_contents(root)}")
    split = choose_split(root, found, split, name=name)
    return root, split, found[split]


def choose_split(root: Path, found: Mapping[str, object], split: str, *, name: str) -> str:
    """The split that is meant: the one asked for, or the only one there is.

    `name` is the format as a user types it, for the message.

    Raises
    ------
    InputError
        There is no such split, or there are several and none was asked for.
    """
    known = ", ".join(repr(one) for one in found if one)
    if split:
        if split in found:
            return split
        raise InputError(
            f"{str(root)!r} has no split {split!r}; it has {known or 'one table without a split'}."
            + did_you_mean(split, found)
        )
    if len(found) == 1:
        return next(iter(found))
    if "" in found:
        return ""  # a table of one's own, beside those of the archives
    example = next(one for one in found if one)
    raise InputError(f"{str(root)!r} has the splits {known}: choose one, such as {f'{name}/{example}:{root}'!r}")


def picture_folders(split: str) -> tuple[str, ...]:
    """Where the pictures of a split may lie, most likely first."""
    return ("images", f"images/{split}", split, ".") if split else ("images", ".")
