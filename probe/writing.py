"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from probe.errors import FileError

__all__ = ["write_beside"]


def write_beside(target: Path, write: Callable[[Path], Any]) -> None:
    """Nothing; ``target`` then holds what ``write(temporary path)`` wrote, all of it or, on failure, what it held before.

    Raises
    ------
    FileError
        If the folder cannot be made or the file not be written.
    """
    beside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        beside = Path(name)
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.chmod(0o666 & ~_umask())
        os.replace(beside, target)
    except OSError as error:
        raise FileError(
            f"{target} could not be written ({error.strerror or error}); nothing of it was kept. Free some space or choose "
            "another place."
        ) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def _umask() -> int:
    # The only way to read it is to set it.
    current = os.umask(0)
    os.umask(current)
    return current
