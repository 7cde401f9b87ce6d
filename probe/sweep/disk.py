"""Writing so that a file or folder is there whole or not at all, for several processes and through a loss of power."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.errors import FileError
from probe.ordinary_files import require_file
from probe.sweep.identity import canonical, digest_of

__all__ = [
    "beside",
    "commit_file",
    "commit_folder",
    "read_checked",
    "remove_leftovers",
    "with_checksum",
    "write_durably",
]

#: The largest file of settings that is read, in bytes.
LARGEST = 2**26

# A hard link is how a file appears under its name only if no other does; some file systems have none.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


# Seconds after which what a process left half-written is not being written any more.
_OLD = 600


def write_durably(path: Path, data: bytes) -> None:
    """Nothing; the new file holds the data, on the disk and not in the system's memory alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Nothing; the names in the folder are on the disk."""
    if os.name == "nt":  # there a folder cannot be opened, and its names are written at once
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new folder beside the target to write into, gone afterwards unless it was renamed.

    Raises
    ------
    FileError
        If anything inside fails for want of space or permission.
    """
    made: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name says who writes here, so that what a killed process left can be told from what is being written.
        mark = f".{target.name}.{socket.gethostname()}.{os.getpid()}."
        made = Path(tempfile.mkdtemp(prefix=mark, dir=target.parent))
        yield made
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{target} could not be written ({error.strerror or error}); what was stored before is whole. Free some space, or "
            "mend the disk, and give the same command again to go on."
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def commit_folder(made: Path, target: Path) -> bool:
    """True if the folder now stands under its name; false if another one stands there, which is left as it is."""
    made.chmod(0o755)  # a temporary folder is for its owner alone
    sync_folder(made)
    try:
        # Refused where the target is a folder that holds something.
        os.rename(made, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or (os.name == "nt" and target.exists()):
            return False
        raise
    sync_folder(target.parent)
    return True


def commit_file(target: Path, data: bytes) -> bool:
    """True if the data now stand under this name; false if a file stands there, which is left as it is.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    with beside(target) as folder:
        whole = folder / target.name
        write_durably(whole, data)
        try:
            os.link(whole, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if target.exists():
                return False
            os.rename(whole, target)
        sync_folder(target.parent)
    return True


def remove_leftovers(folder: Path) -> None:
    """Nothing; what processes of this machine that no longer run were writing here is gone."""
    here = socket.gethostname()
    for one in folder.glob(".*"):
        parts = one.name.split(".")
        # .NAME.HOST.PROCESS.RANDOM, where NAME and HOST may have points of their own.
        ours = f".{here}." in one.name and len(parts) > 4 and parts[-2].isdecimal()
        if ours and _is_old(one) and not _runs(int(parts[-2])):
            shutil.rmtree(one, ignore_errors=True)


def _is_old(path: Path) -> bool:
    # Machines can share a name, and containers see only their own processes; nobody writes at one shard for so long.
    try:
        return time.time() - path.stat().st_mtime > _OLD
    except OSError:
        return False


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # there is no harmless way to ask
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def with_checksum(values: Mapping[str, Any]) -> bytes:
    """The values as a JSON file that says itself what it should hold."""
    text = json.dumps({**values, "checksum": digest_of(values)}, indent=2, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def read_checked(path: Path) -> dict[str, Any]:
    """The values of a file that ``with_checksum`` made.

    Raises
    ------
    FileError
        If it cannot be read, or is not what was written.
    """
    require_file(path, largest=LARGEST)
    try:
        values = json.loads(path.read_bytes().decode())
        checksum = values.pop("checksum")
        same = canonical(values) and digest_of(values) == checksum
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same = False
    if not same:
        raise FileError(f"{path} is damaged: it is not what was written.")
    return dict(values)
