"""Scenes as a folder in the format of a published data set, for any tool that reads it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from probe.errors import FileError, InputError, did_you_mean
from probe.lab.coco_tables import fill_coco, fill_panoptic
from probe.lab.phrase_tables import fill_grandf, fill_png, fill_refcoco

if TYPE_CHECKING:
    from probe.lab.scenes import Scene

__all__ = ["Format", "write_folder"]

Format = Literal["coco", "panoptic", "grandf", "refcoco", "png"]

FILL: dict[str, Callable[[Path, Iterable[Scene]], None]] = {
    "coco": fill_coco,
    "panoptic": fill_panoptic,
    "grandf": fill_grandf,
    "refcoco": fill_refcoco,
    "png": fill_png,
}


def write_folder(out: str | Path, scenes: Iterable[Scene], *, format: Format = "coco") -> Path:
    """The folder `out` with the scenes' pictures and tables in this format.

    >>> write_folder("data/scenes", scenes(100))      # doctest: +SKIP

    - coco: ``images/000007.png``, ``instances.json``, ``captions.json`` and ``phrases.json``
    - panoptic: ``panoptic.json`` and ``panoptic/000007.png``, every object a segment of its shape, the background void
    - grandf: GLaMM's evaluation pair for the split "test", every phrase a label with its mask
    - refcoco: ``instances.json`` and ``refs.json``, each object whose phrase no other has, referred to by it; split "test"
    - png: Panoptic Narrative Grounding's tables for the split "test", the caption cut at its phrases

    Ids follow from the scene's index alone: image and caption 7 are scene 7. Masks are exact. The folder appears when
    everything is written, or not at all.

    Raises
    ------
    InputError
        No scenes, two with the same index, or no such format.
    FileError
        `out` already holds something, or cannot be written.
    """
    out = Path(out)
    if format not in FILL:
        raise InputError(
            f"There is no format {format!r} of scenes; there are {', '.join(get_args(Format))}."
            + did_you_mean(str(format), FILL)
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"{out} exists already. Give a new folder.")
    beside: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        FILL[format](beside, scenes)
        beside.chmod(0o755)  # a temporary folder is for its owner alone
        beside.replace(out)
    except OSError as error:
        raise FileError(f"Scenes cannot be written to {out}: {error.strerror or error}.") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    return out
