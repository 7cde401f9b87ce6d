"""Referring expressions in the format of RefCOCO, RefCOCO+ and RefCOCOg, as JSON: one example for each expression.

References: Kazemzadeh et al. 2014 (ReferItGame); Yu et al. 2016, arXiv 1608.00272; Mao et al. 2016, arXiv 1511.02283.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from probe.errors import InputError, did_you_mean
from probe.evaluation.coco import CocoFolder, read_instance_folder
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.json_records import JsonRecord, read_list, records_in, records_of
from probe.evaluation.layouts import check_limit, data_root, folder_contents
from probe.evaluation.pictures import Picture, known_number, picture_path

__all__ = ["find_refs", "read_refcoco"]

#: Where the pictures lie: in a set of one's own, or as the authors of the data sets and their users arrange COCO's.
PICTURES = ("images", "images/train2014", "train2014", "images/mscoco/images/train2014", ".")


@dataclass(frozen=True, eq=False)
class _Expression:
    """One sentence about one object, its record and that of its object."""

    name: str
    text: str
    reference: JsonRecord
    annotation: JsonRecord


def read_refcoco(folder: str | Path, *, split: str = "", limit: int | None = None) -> Iterator[Example]:
    """One example for each expression of a split: its text is the expression, its one phrase all of it with the mask.

        for example in read_refcoco("data/refcoco", split="testA"): ...

    The folder has `instances.json` as RefCOCO, RefCOCO+ and RefCOCOg ship it, `refs.json`, `refs(unc).json` or the like
    (a list of {ref_id, ann_id, image_id, category_id, split, sentences: [{sent_id, sent}]}), and COCO's training pictures of
    2014 in `images/` or `train2014/`. `split` is train, val, testA, testB or test; "test" alone is every test split.
    The authors ship the references as a pickle, which is refused: opening one runs what it holds.

    Raises
    ------
    InputError
        A file is missing or something in it is wrong, with the file and the record; no such split, or none given.
    FileError
        A file or picture that cannot be read.
    """
    check_limit(limit)
    root = data_root(folder)
    path = find_refs(root)
    if path is None:
        raise InputError(
            f"{str(folder)!r} has no referring expressions: looked for refs.json or refs(NAME).json; {folder_contents(root)}"
        )
    instances = read_instance_folder(root)
    references = list(records_of(path, read_list(path), "reference"))
    split = _chosen(path, references, split)
    wanted = [one for one in references if _within(one.text("split"), split)]
    return islice(_examples(instances, _expressions(wanted, instances)), limit)


def find_refs(root: Path) -> Path | None:
    """The table of references in a folder; ``None`` if it has none.

    Raises
    ------
    InputError
        There are several, or only a pickle.
    """
    found = sorted(path for path in root.glob("*refs*.json") if path.name.lstrip("g").startswith("refs"))
    if len(found) > 1:
        names = ", ".join(repr(path.name) for path in found)
        raise InputError(f"{str(root)!r} has several tables of references ({names}): keep one in a folder")
    pickles = sorted(root.glob("refs*.p"))
    if not found and pickles:
        name = pickles[0].name
        new = f"{pickles[0].stem}.json"
        raise InputError(
            f"{str(pickles[0])!r} is a pickle, which is not opened, since that runs whatever it holds. If you trust it, write"
            f" it as JSON once: python -c \"import json, pickle; json.dump(pickle.load(open('{name}', 'rb'),"
            f" encoding='latin1'), open('{new}', 'w'))\""
        )
    return found[0] if found else None


def _within(found: str, split: str) -> bool:
    """Whether a reference of this split belongs to the one asked for; "test" is testA and testB too."""
    return found == split or (split == "test" and found.startswith("test"))


def _chosen(path: Path, references: list[JsonRecord], split: str) -> str:
    """The split asked for, or the only one there is."""
    counts = Counter(record.text("split") for record in references)
    if not counts:
        raise InputError(f"{str(path)!r} has no references, so there is nothing to find")
    known = ", ".join(f"{one!r} ({count:,} references)" for one, count in list(counts.items())[:10])
    if split and not any(_within(one, split) for one in counts):
        raise InputError(f"{str(path)!r} has no split {split!r}; it has {known}." + did_you_mean(split, counts))
    if not split and len(counts) > 1:
        example = f"refcoco/{next(iter(counts))}:{path.parent}"
        raise InputError(f"{str(path)!r} has the splits {known}: choose one, such as {example!r}")
    return split or next(iter(counts))


def _expressions(references: list[JsonRecord], folder: CocoFolder) -> list[_Expression]:
    """The expressions of these references in order, with every id in them checked."""
    found: list[_Expression] = []
    seen: set[int] = set()
    for record in references:
        annotation = folder.annotations[known_number(record, "ann_id", folder.annotations)]
        for key in ("image_id", "category_id"):
            number = known_number(record, key, folder.pictures if key == "image_id" else folder.categories)
            if number != annotation.integer(key):
                raise record.error(f"its {key!r} is {number}, and that of its annotation is {annotation.integer(key)}")
        picture = folder.pictures[annotation.integer("image_id")]
        inner = list(
            records_in(record.file, record.fields, "sentences", f"reference at position {record.position}, sentence")
        )
        if not inner:
            raise record.error("it has no sentence, so nothing refers to its object")
        for sentence in inner:
            number = sentence.integer("sent_id")
            if number in seen:
                raise sentence.error(f"its 'sent_id' {number} was used before; they must differ")
            seen.add(number)
            found.append(_Expression(f"{picture.name}-{number}", sentence.text("sent").strip(), record, annotation))
    return found


def _examples(folder: CocoFolder, expressions: list[_Expression]) -> Iterator[Example]:
    for one in expressions:
        picture: Picture = folder.pictures[one.annotation.integer("image_id")]
        path = picture_path(folder.root, PICTURES, picture)
        number = one.annotation.integer("id")
        mask = folder.mask([number], picture.size)
        if not mask.any():
            raise one.reference.error(f"its annotation {number} covers no pixel of image {picture.number}")
        category = folder.categories[one.annotation.integer("category_id")]
        phrase = ExamplePhrase(one.text, 0, len(one.text), mask, category.name, category.thing)
        yield Example(one.name, path, one.text, (phrase,))
