"""A data set by its name: lab scenes, or a folder in COCO style."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from probe.evaluation.coco import read_coco_folder
from probe.evaluation.examples import Example
from probe.evaluation.lab import lab_settings, read_lab

__all__ = ["is_lab", "read_data"]

#: Lab scenes are endless; this many are read where no limit is given.
SCENES = 500


def is_lab(data: str | os.PathLike[str]) -> bool:
    """True if this names scenes of the lab, whose captions can be put in other words."""
    return str(data).split(":")[0] == "lab"


def read_data(
    data: str | os.PathLike[str], *, limit: int | None = None, seed: int = 0
) -> tuple[Iterable[Example], int | None]:
    """The examples of a lab data set or of a folder in COCO style, and how many there are where that is known.

    >>> examples, count = read_data("lab:clutter", limit=100)

    Raises
    ------
    InputError
        If there is no such data set or folder.
    """
    if is_lab(data):
        lab_settings(str(data))  # an unknown name is said before a model is loaded
        count = limit or SCENES
        return read_lab(str(data), limit=count, seed=seed), count
    return read_coco_folder(Path(data), limit=limit), limit
