"""Files looked at before they are opened: opening a pipe waits for a writer, and a device never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from probe.errors import FileError

__all__ = ["require_file", "require_folder"]


def require_file(path: str | os.PathLike[str], *, largest: int | None = None) -> None:
    """Nothing, once it is certain that the path is an ordinary file, of at most ``largest`` bytes.

    Raises
    ------
    FileError
        It is not, or cannot be looked at.
    """
    name = repr(os.fspath(path))
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise FileError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"{name} is not an ordinary file, but a folder, pipe, socket or device")
    if largest is not None and found.st_size > largest:
        raise FileError(f"{name} has {found.st_size:,} bytes; at most {largest:,} are read: keep what is needed")


def require_folder(folder: Path) -> None:
    """Nothing, if all that lies in a folder is ordinary files and folders.

    Raises
    ------
    FileError
        Something is not, or the folder cannot be listed.
    """
    try:
        found = list(folder.iterdir())
    except OSError as error:
        raise FileError(f"{str(folder)!r} cannot be listed: {error.strerror or error}") from error
    for path in found:
        if not path.is_dir():
            require_file(path)
