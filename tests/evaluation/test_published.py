"""Each published format becomes examples with the right text, phrases, masks and classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from probe.errors import FileError, InputError
from probe.evaluation import json_records
from probe.evaluation.captions import read_captions
from probe.evaluation.coco import read_coco_folder, read_instances
from probe.evaluation.examples import Example
from probe.evaluation.grandf import read_grandf
from probe.evaluation.narratives import read_narratives
from probe.evaluation.panoptic import read_panoptic
from probe.evaluation.refcoco import read_refcoco
from tests.evaluation.published import (
    CAPTION,
    DOG,
    PHOTO,
    SKY,
    captions_files,
    colours,
    flickr_files,
    grandf_files,
    groundings_files,
    image,
    panoptic_files,
    png_files,
    refcoco_files,
    refs_files,
    runs,
    write,
)


def shown(example: Example) -> list[tuple[str, int, str, bool | None, bool | None]]:
    """Each phrase without its mask."""
    return [(one.text, one.start, one.category, one.thing, one.plural) for one in example.phrases]


def check_masks(example: Example, *masks: np.ndarray) -> None:
    assert len(example.phrases) == len(masks)
    for phrase, mask in zip(example.phrases, masks, strict=True):
        assert np.array_equal(phrase.mask, mask)


# --- COCO ----------------------------------------------------------------------------------------------------------


def test_the_archives_of_coco_are_read_as_they_unpack(tmp_path: Path) -> None:
    rows = [{"id": 1, "image_id": 5, "category_id": 1, "segmentation": runs(DOG)}]
    table = {"images": [image()], "categories": [{"id": 1, "name": "dog"}], "annotations": rows}
    files = {"annotations/instances_val2017.json": table, "val2017/five.png": PHOTO}
    (example,) = read_coco_folder(write(tmp_path, files))
    assert (example.text, shown(example)) == ("a dog", [("dog", 2, "dog", True, None)])
    check_masks(example, DOG)
    write(tmp_path, {"annotations/instances_train2017.json": {**table, "annotations": []}})
    with pytest.raises(InputError, match=r"the splits 'train2017', 'val2017': choose one, such as 'coco/train2017:"):
        read_coco_folder(tmp_path)
    assert len(list(read_instances(tmp_path, split="val2017"))) == 1
    with pytest.raises(InputError, match=r"no split 'val2018'; it has 'train2017', 'val2017'\. Did you mean 'val2017'"):
        read_coco_folder(tmp_path, split="val2018")
    with pytest.raises(InputError, match="has no annotations"):
        read_coco_folder(tmp_path, split="train2017")


def test_phrases_say_what_their_places_are(tmp_path: Path) -> None:
    rows = [{"id": 1, "image_id": 5, "category_id": 1, "segmentation": runs(DOG)}]
    phrase = {"caption_id": 0, "image_id": 5, "ann_ids": [], "segment_ids": []}
    phrases = [
        {**phrase, "start": 2, "end": 5, "text": "dog", "ann_ids": [1], "category": "animal"},
        {**phrase, "start": 16, "end": 19, "text": "sky", "segment_ids": [70000]},
        {**phrase, "start": 0, "end": 19, "text": CAPTION[:19], "segment_ids": [300, 70000]},
    ]
    files = panoptic_files() | captions_files() | {"phrases.json": {"phrases": phrases}}
    files["instances.json"] = {"images": [image()], "categories": [{"id": 1, "name": "dog"}], "annotations": rows}
    (example,) = read_coco_folder(write(tmp_path, files))
    assert [row[2:4] for row in shown(example)] == [("animal", True), ("", False), ("", None)]
    check_masks(example, DOG, SKY, DOG | SKY)
    assert example.references == ("The dog is outside.",)


def test_panoptic_maps_by_category(tmp_path: Path) -> None:
    files = panoptic_files()
    (example,) = read_panoptic(write(tmp_path, files))
    assert (example.name, example.text) == ("five", "a dog and a sky-other")
    assert shown(example) == [("dog", 2, "dog", True, None), ("sky-other", 12, "sky-other", False, None)]
    check_masks(example, DOG, SKY)
    # A second segment of a class joins the first; pixels of no segment belong to none.
    files["panoptic.json"]["annotations"][0]["segments_info"].append({"id": 1, "category_id": 1})
    corner = np.zeros((4, 6), bool)
    corner[3, 5] = True
    files["panoptic/five.png"] = colours(s300=DOG, s70000=SKY, s1=corner)
    check_masks(next(read_panoptic(write(tmp_path, files))), DOG | corner, SKY)


def test_captions_alone(tmp_path: Path) -> None:
    (example,) = read_captions(write(tmp_path, captions_files()))
    assert (example.text, example.phrases, example.references) == (CAPTION, (), ("The dog is outside.",))
    assert example.image == tmp_path / "images" / "five.png"


def test_photographs_by_panoptic_category(coco_mini: Path) -> None:
    table = json.loads((coco_mini / "panoptic.json").read_text())
    categories = {row["id"]: row for row in table["categories"]}
    names = {row["id"]: Path(row["file_name"]).stem for row in table["images"]}
    examples = {example.name: example for example in read_panoptic(coco_mini)}
    assert len(examples) == len(table["annotations"])
    for row in table["annotations"]:
        found = {part.category: part for part in examples[names[row["image_id"]]].phrases}
        ids = np.asarray(Image.open(coco_mini / "panoptic" / row["file_name"])).astype(int) @ [1, 256, 65536]
        assert set(found) == {categories[part["category_id"]]["name"] for part in row["segments_info"]}
        for name, phrase in found.items():
            (category,) = (one for one in categories.values() if one["name"] == name)
            segments = [part["id"] for part in row["segments_info"] if part["category_id"] == category["id"]]
            assert np.array_equal(phrase.mask, np.isin(ids, segments))
            assert phrase.thing is bool(category["isthing"])


def test_photographs_by_instance_category_and_with_captions(coco_mini: Path) -> None:
    table = json.loads((coco_mini / "instances.json").read_text())
    categories = {row["id"]: row["name"] for row in table["categories"]}
    sizes = {Path(row["file_name"]).stem: (row["id"], row["height"], row["width"]) for row in table["images"]}
    for example in read_instances(coco_mini, limit=12):
        number, height, width = sizes[example.name]
        for phrase in example.phrases:
            expected = np.zeros((height, width), np.uint8)
            for row in table["annotations"]:
                if row["image_id"] == number and categories[row["category_id"]] == phrase.category:
                    encoded = coco_mask.frPyObjects(row["segmentation"], height, width)
                    expected |= coco_mask.decode(encoded if isinstance(encoded, dict) else coco_mask.merge(encoded))
            assert np.array_equal(phrase.mask, expected == 1)
    captions = json.loads((coco_mini / "captions.json").read_text())["annotations"]
    read = [text for example in read_captions(coco_mini) for text in (example.text, *example.references)]
    assert sorted(read) == sorted(row["caption"].strip() for row in captions)


# --- referring expressions -----------------------------------------------------------------------------------------


def test_every_expression_is_an_example(tmp_path: Path) -> None:
    files = refcoco_files()
    first, second = read_refcoco(write(tmp_path, files))
    assert (first.name, first.text, second.name, second.text) == ("five-7", "the left dog", "five-8", "brown one")
    assert shown(first) == [("the left dog", 0, "dog", True, None)]
    check_masks(first, DOG)
    assert first.image == second.image == tmp_path / "images" / "train2014" / "five.png"


def test_the_split_of_expressions_is_chosen(tmp_path: Path) -> None:
    files = refcoco_files()
    (reference,) = files["refs(unc).json"]
    for number, split in enumerate(("testB", "val"), start=20):
        sentences = [{"sent_id": number, "sent": split}]
        files["refs(unc).json"].append({**reference, "split": split, "sentences": sentences})
    write(tmp_path, files)
    assert [one.text for one in read_refcoco(tmp_path, split="val")] == ["val"]
    assert [one.text for one in read_refcoco(tmp_path, split="testA")] == ["the left dog", "brown one"]
    assert [one.text for one in read_refcoco(tmp_path, split="test")] == ["the left dog", "brown one", "testB"]
    with pytest.raises(InputError, match=r"the splits 'testA' \(1 references\), .* such as 'refcoco/testA:"):
        read_refcoco(tmp_path)
    with pytest.raises(InputError, match=r"no split 'testC'"):
        read_refcoco(tmp_path, split="testC")


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    files = refcoco_files()
    files["refs(unc).p"] = json.dumps(files.pop("refs(unc).json"))
    with pytest.raises(
        InputError, match=r"refs\(unc\)\.p' is a pickle, which is not opened.*json\.dump\(pickle\.load"
    ) as caught:
        read_refcoco(write(tmp_path, files))
    assert "\n" not in str(caught.value)
    write(tmp_path, {"refs(google).json": [], "refs.json": []})
    with pytest.raises(InputError, match=r"several tables of references \('refs\(google\)\.json', 'refs\.json'\)"):
        read_refcoco(tmp_path)


# --- narratives ----------------------------------------------------------------------------------------------------


def test_narratives(tmp_path: Path) -> None:
    files = png_files()
    (narrative,) = files["annotations/png_coco_val2017.json"]
    narrative["segments"][3]["plural"] = True
    # What the authors' own preparation writes is not a second split; a narrative without grounded nouns is left out.
    files["annotations/png_coco_val2017_dataloader.json"] = []
    bare = [{"utterance": "a sky", "segment_ids": [], "noun": True, "plural": False}]
    files["annotations/png_coco_val2017.json"].insert(0, {"image_id": 5, "caption": "A sky", "segments": bare})
    (example,) = read_narratives(write(tmp_path, files))
    assert (example.name, example.text) == ("five-1", CAPTION)
    assert shown(example) == [("dog", 2, "dog", True, False), ("sky", 16, "sky-other", False, True)]
    check_masks(example, DOG, SKY)
    # Several segments of several classes are one mask, of no one class; words that are no nouns are no phrases.
    narrative["segments"][1]["segment_ids"] = [300, "70000"]
    narrative["segments"][3]["noun"] = False
    (example,) = read_narratives(write(tmp_path, files))
    assert shown(example) == [("dog", 2, "", None, False)]
    check_masks(example, DOG | SKY)


def test_narratives_need_their_panoptic_table(tmp_path: Path) -> None:
    files = png_files()
    files["panoptic_train2017.json"] = files.pop("annotations/panoptic_val2017.json")
    with pytest.raises(InputError, match=r"names segments of panoptic_val2017\.json, which .* does not have"):
        read_narratives(write(tmp_path, files))


# --- GranD-f -------------------------------------------------------------------------------------------------------


def test_the_pair_that_glamm_is_evaluated_with(tmp_path: Path) -> None:
    (example,) = read_grandf(write(tmp_path, grandf_files()))
    assert (example.name, example.text) == ("five", CAPTION)
    assert [(one.text, one.start, one.label) for one in example.phrases] == [("A dog", 0, ""), ("the sky", 12, "")]
    check_masks(example, DOG, SKY)


def test_labels_take_their_places_in_order(tmp_path: Path) -> None:
    files = grandf_files()
    (caption,) = files["annotations/val_test/val_gcg_coco_caption_gt.json"]["annotations"]
    rows = files["annotations/val_test/val_gcg_coco_mask_gt.json"]["annotations"]
    caption["caption"] = "Two cats: one cat's toy, and a Cat 's bed. A dogfish, a dog"
    caption["labels"] = ["cat's bed", "a dog", "two cats", "two cats", "white dog", "cat", "cat"]
    rows += [{**rows[0], "id": number} for number in range(10, 15)]
    (example,) = read_grandf(write(tmp_path, files))
    assert [(one.text, one.start, one.label) for one in example.phrases] == [
        ("Cat 's bed", 31, ""),
        ("a dog", 54, ""),  # not the one in "A dogfish"
        ("Two cats", 0, ""),
        ("Two cats", 0, ""),  # said twice, and in the caption once
        ("dog", 56, "white dog"),
        ("cat", 14, ""),
        ("Cat", 31, ""),
    ]
    check_masks(example, DOG, SKY, *[DOG] * 5)


@pytest.mark.parametrize(
    ("make", "masks"), [(groundings_files, (DOG, SKY, SKY)), (refs_files, (DOG, SKY)), (flickr_files, (DOG, SKY))]
)
def test_annotation_tables(tmp_path: Path, make, masks) -> None:
    (example,) = read_grandf(write(tmp_path, make()))
    assert example.text == CAPTION
    assert [one.text for one in example.phrases] == ["A dog"] * (len(masks) - 1) + ["the sky"]
    check_masks(example, *masks)


def test_tables_of_grandf_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, grandf_files() | groundings_files())
    with pytest.raises(InputError, match=r"the splits 'val', 'OpenPsgGCG_val': choose one, such as 'grandf/val:"):
        read_grandf(tmp_path)
    assert len(next(read_grandf(tmp_path, split="val")).phrases) == 2
    assert len(next(read_grandf(tmp_path, split="OpenPsgGCG_val")).phrases) == 3
    (tmp_path / "annotations" / "val_test" / "val_gcg_coco_mask_gt.json").unlink()
    with pytest.raises(InputError, match=r"half of a pair: val_gcg_coco_mask_gt\.json is missing"):
        read_grandf(tmp_path, split="val")


# --- large and foreign files ---------------------------------------------------------------------------------------


def test_a_table_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, captions_files())
    size = (tmp_path / "captions.json").stat().st_size
    monkeypatch.setattr(json_records, "LARGEST", size)
    assert len(list(read_captions(tmp_path))) == 1
    monkeypatch.setattr(json_records, "LARGEST", size - 1)
    with pytest.raises(FileError, match=rf"captions\.json' has {size} bytes; at most {size - 1} are read"):
        read_captions(tmp_path)


def test_nothing_is_decoded_before_its_turn(tmp_path: Path) -> None:
    files = grandf_files()
    truth, masks = (files[f"annotations/val_test/val_gcg_coco_{kind}_gt.json"] for kind in ("caption", "mask"))
    truth["images"].append({"id": "six"})
    truth["annotations"].append({"id": 2, "image_id": "six", "caption": "A cat", "labels": ["cat"]})
    masks["annotations"].append({"id": 9, "image_id": "six", "segmentation": "nonsense"})
    write(tmp_path, files)
    shutil.copy(tmp_path / "GranDf_HA_images/val_test/five.png", tmp_path / "GranDf_HA_images/val_test/six.png")
    assert [one.name for one in read_grandf(tmp_path, limit=1)] == ["five"]
    with pytest.raises(InputError, match=r"val_gcg_coco_mask_gt\.json', annotation 9: its segmentation is 'nonsense'"):
        list(read_grandf(tmp_path))
