"""GranD-f, the data set of grounded conversation generation: captions whose phrases have masks, as GLaMM evaluates them.

References: Rasheed et al. 2024 (GLaMM), arXiv 2311.03356.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.evaluation.grandf_annotations import read_annotations
from probe.evaluation.json_records import JsonRecord, read_json, records_in, shown
from probe.evaluation.layouts import check_limit, choose_split, data_root, folder_contents, tables
from probe.evaluation.paths import some_file_inside
from probe.evaluation.pictures import measured_size
from probe.evaluation.segmentations import annotation_mask
from probe.evaluation.sentences import loose_spans
from probe.text import find_phrase

__all__ = ["grandf_tables", "read_grandf"]

PLACES = tuple(
    f"{above}{place}"
    for above in ("", "GranDf/")
    for place in ("", "annotations", "annotations/val_test", "annotations/train", "val_test", "train")
)
#: Where the pictures lie: in a set of one's own, or as the authors arrange those of SA-1B, COCO and Flickr30k.
PICTURES = (
    "images",
    *(f"{above}GranDf_HA_images/{split}" for above in ("", "GranDf/") for split in ("val_test", "train")),
    "coco_2017/train2017",
    "coco_2014/train2014",
    "flikcr_30k/train",
    "train2017",
    "train2014",
    ".",
)
MASKS = r"(?P<split>.+)_gcg_coco_mask_gt[.]json"
CAPTIONS = r"(?P<split>.+)_gcg_coco_caption_gt[.]json"
ANNOTATIONS = r"(?P<split>.+_GCG_.+|OpenPsgGCG_.+)[.]json"


@dataclass(frozen=True, eq=False)
class _Truth:
    """One picture of the evaluation pair: its caption, and each mask's annotation with the words it is labelled with."""

    picture: JsonRecord
    number: str
    caption: JsonRecord
    others: tuple[str, ...]
    labels: tuple[str, ...]
    annotations: tuple[JsonRecord, ...]


def read_grandf(folder: str | Path, *, split: str = "", limit: int | None = None) -> Iterator[Example]:
    """One example for each captioned picture: every (phrase, mask) of it is a phrase, also where several share their words.

        for example in read_grandf("data", split="test"): ...

    `split` is "val" or "test" for the pair of tables that GLaMM is evaluated with, `test_gcg_coco_caption_gt.json` (captions
    with "labels") and `test_gcg_coco_mask_gt.json` (COCO's annotations; the n-th mask of a picture belongs to its n-th label);
    or the name of an annotation table, such as "OpenPsgGCG_val", "RefCOCOg_GCG_val", "flickr_mergedGT_GCG_val" or
    "GranDf_HA_GCG_train". Tables lie in the folder, in `annotations/val_test/` or `annotations/train/`, with or without
    `GranDf/` before; pictures in `images/`, `GranDf_HA_images/val_test/` and the like.

    A label that is said several times takes its next place in the caption each time. Where a label does not stand in the
    caption word for word, the phrase is the last of its words that does, and its `label` is the whole.

    Raises
    ------
    InputError
        A file is missing, or something in it is wrong, with the file and the record.
    FileError
        A file or picture that cannot be read.
    """
    check_limit(limit)
    root = data_root(folder)
    found = grandf_tables(root)
    if not found:
        raise InputError(
            f"{str(folder)!r} has no GranD-f tables: looked for SPLIT_gcg_coco_mask_gt.json with"
            f" SPLIT_gcg_coco_caption_gt.json, and for NAME_GCG_SPLIT.json; {folder_contents(root)}"
        )
    masks, captions = found[choose_split(root, found, split, name="grandf")]
    if captions is None:
        return islice(read_annotations(masks, root, PICTURES), limit)
    return islice(_examples(root, _pair(captions, masks)), limit)


def grandf_tables(root: Path) -> dict[str, tuple[Path, Path | None]]:
    """The tables in a folder by split: masks and captions of an evaluation pair, or an annotation table alone.

    Raises
    ------
    InputError
        One half of a pair is missing.
    """
    masks, captions = tables(root, MASKS, places=PLACES), tables(root, CAPTIONS, places=PLACES)
    for split in sorted(masks.keys() ^ captions.keys()):
        have, lack = (masks, "caption") if split in masks else (captions, "mask")
        raise InputError(f"{str(have[split])!r} is half of a pair: {split}_gcg_coco_{lack}_gt.json is missing")
    alone = tables(root, ANNOTATIONS, places=PLACES)
    pairs: dict[str, tuple[Path, Path | None]] = {split: (masks[split], captions[split]) for split in masks}
    return pairs | {split: (path, None) for split, path in alone.items()}


def _pair(caption_path: Path, mask_path: Path) -> list[_Truth]:
    """The pictures of an evaluation pair, with every id in it checked."""
    content = read_json(caption_path)
    pictures: dict[str, JsonRecord] = {}
    for record in records_in(caption_path, content, "images", "image"):
        number = record.identifier("id")
        if number in pictures:
            raise record.error("its id was used before in the same list; ids must differ")
        pictures[number] = record
    captions: dict[str, list[JsonRecord]] = defaultdict(list)
    for record in records_in(caption_path, content, "annotations", "caption"):
        captions[_known(record, pictures)].append(record)
    annotations: dict[str, list[JsonRecord]] = defaultdict(list)
    for record in records_in(mask_path, read_json(mask_path), "annotations", "annotation"):
        annotations[_known(record, pictures)].append(record)
    if not captions:
        raise InputError(f"{str(caption_path)!r} has no captions, so there is nothing to find")
    return [_truth(pictures[number], number, captions[number], annotations[number]) for number in captions]


def _known(record: JsonRecord, pictures: dict[str, JsonRecord]) -> str:
    number = record.identifier("image_id")
    if number not in pictures:
        raise record.error(
            f"its 'image_id' is {shown(number)}, which is not among the {len(pictures)} that are declared"
        )
    return number


def _truth(picture: JsonRecord, number: str, captions: list[JsonRecord], annotations: list[JsonRecord]) -> _Truth:
    caption = captions[0]
    labels = caption.texts("labels")
    if len(labels) != len(annotations):
        raise caption.error(
            f"it has {len(labels)} labels, and {str(annotations[0].file) if annotations else 'the table of masks'!r} has"
            f" {len(annotations)} masks for its picture; the n-th mask belongs to the n-th label"
        )
    others = tuple(other.text("caption").strip() for other in captions[1:])
    return _Truth(picture, number, caption, others, tuple(labels), tuple(annotations))


def _examples(root: Path, truths: list[_Truth]) -> Iterator[Example]:
    for one in truths:
        path = _picture_file(root, one)
        size = measured_size(one.picture, path, [record.fields.get("segmentation") for record in one.annotations])
        text = one.caption.text("caption").strip()
        spans = _label_spans(one.caption, text, one.labels)
        phrases = []
        for label, (start, end), record in zip(one.labels, spans, one.annotations, strict=True):
            mask = annotation_mask(record, size)
            if not mask.any():
                raise record.error(f"its mask covers no pixel of image {shown(one.number)}")
            whole = loose_spans(text[start:end], label)
            phrases.append(ExamplePhrase(text[start:end], start, end, mask, label="" if whole else label))
        yield Example(path.stem, path, text, tuple(phrases), one.others)


def _picture_file(root: Path, one: _Truth) -> Path:
    """The file of a picture: as the table names it, or as the authors' code finds it, by its id."""
    named = (one.picture.text("file_name"),) if "file_name" in one.picture.fields else ()
    return some_file_inside(root, PICTURES, one.picture, (*named, f"{one.number}.jpg", f"{one.number}.png"))


def _label_spans(record: JsonRecord, text: str, labels: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where each label stands in the caption: its n-th place when it is said for the n-th time, if there are as many."""
    said: dict[str, int] = defaultdict(int)
    spans = []
    for label in labels:
        places = find_phrase(text, label) or loose_spans(text, label)
        if not places:
            places = [place for word in label.split() for place in loose_spans(text, word)[:1]][-1:]
        if not places:
            raise record.error(f"none of the words of its label {shown(label)} stands in its caption")
        spans.append(places[min(said[label.casefold()], len(places) - 1)])
        said[label.casefold()] += 1
    return spans
