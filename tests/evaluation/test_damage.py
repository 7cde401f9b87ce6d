"""Whatever is wrong in a published file is said in one typed line that names it; what is right is read bit for bit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from probe.errors import FileError, InputError, ProbeError
from probe.evaluation.sources import FORMATS
from tests.evaluation.published import (
    CAPTION,
    PUBLISHED,
    Files,
    captions_files,
    colours,
    grandf_files,
    groundings_files,
    panoptic_files,
    png_files,
    refcoco_files,
    runs,
    write,
)

MASK = "annotations/val_test/val_gcg_coco_mask_gt.json"
TRUTH = "annotations/val_test/val_gcg_coco_caption_gt.json"
TOLD = "annotations/png_coco_val2017.json"
REFS = "refs(unc).json"
TRAINING = "annotations/train/OpenPsgGCG_val.json"


def read(name: str, folder: Path) -> list[Any]:
    return list(FORMATS[name.split()[0]](folder))


#: What is done to which files of a format, and what is said of it.
WRONG: list[tuple[str, Callable[[], Files], Callable[[Files], Any], str]] = [
    ("panoptic", panoptic_files, lambda f: f["panoptic.json"].pop("categories"), "needs a list 'categories'"),
    (
        "panoptic",
        panoptic_files,
        lambda f: f["panoptic.json"]["categories"][0].update(isthing=2),
        "category 1: its 'isthing' is 2",
    ),
    (
        "panoptic",
        panoptic_files,
        lambda f: f["panoptic.json"]["annotations"][0]["segments_info"][0].update(category_id=9),
        "panoptic map of image 5, segment 300: its 'category_id' is 9",
    ),
    (
        "panoptic",
        panoptic_files,
        lambda f: f["panoptic.json"]["annotations"][0]["segments_info"][0].update(id=301),
        "panoptic map at position 0: its segment 301 is declared, but the panoptic PNG has no pixel of it",
    ),
    (
        "panoptic",
        panoptic_files,
        lambda f: f.update({"panoptic/five.png": "no picture"}),
        "no picture'. The formats read are",
    ),
    (
        "panoptic",
        panoptic_files,
        lambda f: f.update({"panoptic/five.png": np.zeros((6, 4, 3), np.uint8)}),
        "is 6 x 4 (height x width), and image 5 is 4 x 6",
    ),
    ("captions", captions_files, lambda f: f["captions.json"].update(annotations=[]), "has no captions"),
    (
        "captions",
        captions_files,
        lambda f: f["captions.json"]["annotations"][1].update(caption="\x1b[2J"),
        "caption 1: its 'caption' is '\\x1b[2J'; it needs a text that can be printed",
    ),
    (
        "captions",
        captions_files,
        lambda f: f["captions.json"]["images"][0].update(file_name="../5.png"),
        "leads out of",
    ),
    ("refcoco", refcoco_files, lambda f: f.update({REFS: {"refs": []}}), "a JSON list of objects is needed"),
    (
        "refcoco",
        refcoco_files,
        lambda f: f.update({REFS: [3]}),
        "reference at position 0: it is 3; an object is needed",
    ),
    ("refcoco", refcoco_files, lambda f: f.update({REFS: []}), "has no references"),
    (
        "refcoco",
        refcoco_files,
        lambda f: f[REFS][0].update(ann_id=11),
        "reference at position 0: its 'ann_id' is 11, which is not among the 1",
    ),
    (
        "refcoco",
        refcoco_files,
        lambda f: (
            f["instances.json"]["images"].append({"id": 6, "file_name": "six.png", "height": 4, "width": 6}),
            f[REFS][0].update(image_id=6),
        ),
        "reference at position 0: its 'image_id' is 6, and that of its annotation is 5",
    ),
    ("refcoco", refcoco_files, lambda f: f[REFS][0].update(sentences=[]), "it has no sentence"),
    (
        "refcoco",
        refcoco_files,
        lambda f: f[REFS][0]["sentences"][1].update(sent_id=7),
        "reference at position 0, sentence at position 1: its 'sent_id' 7 was used before",
    ),
    (
        "refcoco",
        refcoco_files,
        lambda f: f["instances.json"]["annotations"][0].update(segmentation=runs(np.zeros((4, 6), bool))),
        "reference at position 0: its annotation 10 covers no pixel of image 5",
    ),
    ("png", png_files, lambda f: f[TOLD][0].update(caption="A cat."), "narrative at position 0: its utterances"),
    ("png", png_files, lambda f: f[TOLD][0].update(image_id="6"), "its 'image_id' is '6', which is not among the 1"),
    (
        "png",
        png_files,
        lambda f: f[TOLD][0]["segments"][1].update(segment_ids=["301"]),
        "narrative at position 0, segment at position 1: its 'segment_ids' name '301', which the panoptic table",
    ),
    ("png", png_files, lambda f: f[TOLD][0]["segments"][1].update(segment_ids=[True]), "its 'segment_ids' name True"),
    ("png", png_files, lambda f: f[TOLD][0]["segments"][0].pop("plural"), "segment at position 0: it has no 'plural'"),
    (
        "png",
        png_files,
        lambda f: f[TOLD][0]["segments"][4].update(noun=True, segment_ids=["300"]),
        "segment at position 4: its utterance has neither letters nor digits",
    ),
    (
        "grandf",
        grandf_files,
        lambda f: f[TRUTH]["annotations"][0].update(labels=["a dog"]),
        "caption 1: it has 1 labels, and",
    ),
    (
        "grandf",
        grandf_files,
        lambda f: f[TRUTH]["annotations"][0].update(labels=["a dog", "zebra"]),
        "caption 1: none of the words of its label 'zebra' stands in its caption",
    ),
    ("grandf", grandf_files, lambda f: f[TRUTH]["annotations"][0].update(labels=["a dog", 3]), "its 'labels' is 3"),
    ("grandf", grandf_files, lambda f: f[MASK]["annotations"][0].update(image_id="six"), "its 'image_id' is 'six'"),
    (
        "grandf",
        grandf_files,
        lambda f: f[MASK]["annotations"][1]["segmentation"].update(size=[6, 4]),
        "annotation 1: its run lengths are for size [6, 4], and the picture is [4, 6]",
    ),
    (
        "grandf",
        grandf_files,
        lambda f: f[MASK]["annotations"][1].update(segmentation=runs(np.zeros((4, 6), bool))),
        "annotation 1: its mask covers no pixel of image 'five'",
    ),
    (
        "grandf",
        grandf_files,
        lambda f: f[TRUTH]["images"][0].update(id="../../five", file_name="../five.png"),
        "its 'image_id' is 'five'",
    ),
    (
        "grandf",
        grandf_files,
        lambda f: f[TRUTH]["images"][0].update(file_name="/etc/passwd"),
        "leads out of the folder",
    ),
    (
        "grandf",
        grandf_files,
        lambda f: f.pop("GranDf_HA_images/val_test/five.png"),
        "image 'five': its file is missing",
    ),
    (
        "grandf",
        groundings_files,
        lambda f: f[TRAINING][0]["groundings"]["the sky"].update(token_positives=[0, 5]),
        "caption at position 0, grounding 'the sky' at position 0: its caption says 'A dog' at characters 0 to 5",
    ),
    (
        "grandf",
        groundings_files,
        lambda f: f[TRAINING][0]["groundings"]["the sky"].update(token_positives=[12, 21]),
        "its 'token_positives' are '[12, 21]'; [start, end] in the caption of 20 characters is needed",
    ),
    (
        "grandf",
        groundings_files,
        lambda f: f[TRAINING][0]["groundings"]["the sky"].update(rle_masks=[{"size": [4, 6], "counts": "~"}]),
        "grounding 'the sky' at position 0: its compressed run lengths are not in COCO's encoding",
    ),
]


@pytest.mark.parametrize(("name", "make", "change", "message"), WRONG, ids=[str(at) for at in range(len(WRONG))])
def test_wrong_records_are_named(tmp_path: Path, name, make, change, message) -> None:
    files = make()
    assert read(name, write(tmp_path / "right", files))
    change(files)
    with pytest.raises(ProbeError) as caught:
        read(name, write(tmp_path / "wrong", files))
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(tmp_path / "wrong") in str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tables_that_are_no_tables(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, PUBLISHED[name]())
    for path in list(folder.rglob("*.json")):
        right = path.read_bytes()
        for content, message in (
            (b"", "is not valid JSON"),
            (b'{"a": NaN}', "NaN is not a JSON number"),
            (b'["\xff"]', "is not UTF-8 text"),
            (b"[" * 200_000, "is nested too deeply"),
            (b'"' + b"x" * 5_000_000 + b'"', "holds 'xxx"),
        ):
            path.write_bytes(content)
            with pytest.raises(InputError, match=message) as caught:
                read(name, folder)
            assert str(path) in str(caught.value)
            assert len(str(caught.value)) < 1000
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(FileError, match="is not an ordinary file"):
            read(name, folder)
        path.unlink()
        path.write_bytes(right)
    picture = next(path for path in folder.rglob("five.png") if "panoptic" not in str(path.relative_to(folder)))
    picture.rename(tmp_path.with_suffix(".png"))
    picture.symlink_to(tmp_path.with_suffix(".png"))
    with pytest.raises(InputError, match="is a link that leads out of"):
        read(name, folder)


MASKS = st.tuples(*[arrays(bool, (4, 6)).filter(np.any)] * 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(masks=MASKS, compressed=st.booleans())
def test_any_masks_come_back_bit_for_bit(masks: tuple[np.ndarray, np.ndarray], compressed: bool) -> None:
    def encoded(mask: np.ndarray) -> dict[str, Any]:
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": [4, 6], "counts": rle["counts"].decode()} if compressed else runs(mask)

    dog, sky = masks
    apart = sky & ~dog  # a pixel of a panoptic map is in one segment
    files: dict[str, Files] = {name: make() for name, make in PUBLISHED.items()}
    for row, mask in zip(files["grandf"][MASK]["annotations"], masks, strict=True):
        row["segmentation"] = encoded(mask)
    grounded = files["grandf groundings"][TRAINING][0]["groundings"]
    grounded["the sky"]["rle_masks"], grounded["A dog"]["rle_masks"] = [encoded(sky)], [encoded(dog)]
    files["refcoco"]["instances.json"]["annotations"][0]["segmentation"] = encoded(dog)
    expected = {"grandf": masks, "grandf groundings": masks, "refcoco": (dog,)}
    if apart.any():
        files["png"]["annotations/panoptic_segmentation/val2017/five.png"] = colours(s300=dog, s70000=apart)
        files["panoptic"]["panoptic/five.png"] = colours(s300=dog, s70000=apart)
        expected |= {"png": (dog, apart), "panoptic": (dog, apart)}
    for name, wanted in expected.items():
        with tempfile.TemporaryDirectory() as folder:
            example = read(name, write(Path(folder), files[name]))[0]
        assert [one.mask.tolist() for one in example.phrases] == [mask.tolist() for mask in wanted]
        assert name == "refcoco" or name == "panoptic" or example.text == CAPTION
