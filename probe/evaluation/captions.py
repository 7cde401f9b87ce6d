"""Captions of pictures without masks, in COCO's format: what a generated caption is compared with.

References: Chen et al. 2015, arXiv 1504.00325.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from probe.errors import InputError
from probe.evaluation.examples import Example
from probe.evaluation.json_records import by_id, read_json, records_in
from probe.evaluation.layouts import check_limit, find_table, picture_folders
from probe.evaluation.pictures import known_number, picture_path, read_pictures

__all__ = ["CAPTIONS", "read_captions"]

#: The name of a table of captions, with its split.
CAPTIONS = r"captions(_(?P<split>.+))?[.]json"


def read_captions(folder: str | Path, *, split: str = "", limit: int | None = None) -> Iterator[Example]:
    """One example for each captioned picture, without phrases: the text is its first caption, the rest are references.

    The folder has `captions.json` or `annotations/captions_val2017.json`; pictures lie where `read_coco_folder` looks for
    them.

    Raises
    ------
    InputError
        A file is missing, or something in it is wrong, with the file and the record.
    FileError
        A file or picture that cannot be read.
    """
    check_limit(limit)
    missing = "captions: looked for captions.json or annotations/captions_SPLIT.json"
    root, split, path = find_table(folder, CAPTIONS, split, name="captions", missing=missing)
    content = read_json(path)
    pictures = read_pictures(path, content)
    texts: dict[int, list[str]] = defaultdict(list)
    for _, record in by_id(records_in(path, content, "annotations", "caption")):
        texts[known_number(record, "image_id", pictures)].append(record.text("caption").strip())
    if not texts:
        raise InputError(f"{str(path)!r} has no captions, so there is nothing to compare with")
    examples = (
        Example(
            picture.name,
            picture_path(root, picture_folders(split), picture),
            texts[number][0],
            (),
            tuple(texts[number][1:]),
            picture.size,
        )
        for number, picture in pictures.items()
        if number in texts
    )
    return islice(examples, limit)
