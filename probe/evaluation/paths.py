"""File names out of data sets, which are not trusted to stay where they belong."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from probe.evaluation.json_records import JsonRecord, shown
from probe.text import shorten

__all__ = ["file_inside", "some_file_inside"]


def file_inside(root: Path, folders: tuple[str, ...], record: JsonRecord, name: str) -> Path:
    """The file of this name, in the first of these folders of the root that has it; links resolved.

    Raises
    ------
    InputError
        No folder has it, or the name or a link leads out of the root.
    """
    return some_file_inside(root, folders, record, (name,))


def some_file_inside(root: Path, folders: tuple[str, ...], record: JsonRecord, names: tuple[str, ...]) -> Path:
    """As `file_inside`, for a file that may have one of several names.

    Raises
    ------
    InputError
        No folder has any of them, or a name or a link leads out of the root.
    """
    for name in names:
        # Both kinds of path, since a data set is written on one system and read on another.
        for pure in (PurePosixPath(name), PureWindowsPath(name)):
            if pure.anchor or ".." in pure.parts:
                raise record.error(
                    f"its file name {shown(name)} leads out of the folder; a path below {str(root)!r} is needed"
                )
        path = _first(root, folders, record, name)
        if path is not None:
            return path
    looked = " or ".join(repr(str(Path(folder) / name)) for name in names for folder in folders[:4])
    raise record.error(f"its file is missing: looked for {shorten(looked, 400)} in {str(root)!r}")


def _first(root: Path, folders: tuple[str, ...], record: JsonRecord, name: str) -> Path | None:
    """The file of this name in the first folder that has it."""
    try:
        for folder in folders:
            path = (root / folder / name).resolve()
            if not path.is_relative_to(root):
                raise record.error(
                    f"its file {shown(name)} is a link that leads out of {str(root)!r}, which is not followed"
                )
            if path.exists():
                return path
    except (OSError, RuntimeError) as error:  # too long a name, or links in a circle
        reason = getattr(error, "strerror", None) or shorten(str(error))
        raise record.error(f"its file {shown(name)} cannot be looked up ({reason})") from error
    return None
