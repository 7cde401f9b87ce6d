"""File names out of data sets, which are not trusted to stay where they belong."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from probe.evaluation.json_records import JsonRecord

__all__ = ["file_inside"]


def file_inside(root: Path, folders: tuple[str, ...], record: JsonRecord, name: str) -> Path:
    """The file of this name, in the first of these folders of the root that has it; links resolved.

    Raises
    ------
    InputError
        No folder has it, or the name or a link leads out of the root.
    """
    # Both kinds of path, since a data set is written on one system and read on another.
    for pure in (PurePosixPath(name), PureWindowsPath(name)):
        if pure.anchor or ".." in pure.parts:
            raise record.error(f"its file name {name!r} leads out of the folder; a path below {str(root)!r} is needed")
    try:
        for folder in folders:
            path = (root / folder / name).resolve()
            if not path.is_relative_to(root):
                raise record.error(
                    f"its file {name!r} is a link that leads out of {str(root)!r}, which is not followed"
                )
            if path.exists():
                return path
    except (OSError, RuntimeError) as error:  # too long a name, or links in a circle
        raise record.error(f"its file {name!r} cannot be looked up ({error})") from error
    looked = " or ".join(repr(str(Path(folder) / name)) for folder in folders)
    raise record.error(f"its file is missing: looked for {looked} in {str(root)!r}")
