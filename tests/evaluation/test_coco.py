"""COCO folders become examples with the right masks, and a wrong record is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from probe.errors import FileError, InputError, ProbeError
from probe.evaluation.coco import read_coco_folder
from probe.images import read_image

MINI = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-mini"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason=f"the COCO photographs are not at {MINI}")

Files = dict[str, Any]


def small() -> Files:
    """One picture of 4 x 6 pixels (height x width): a dog at the upper left, an apple at the right, a sky segment."""
    return {
        "instances.json": {
            "images": [{"id": 5, "file_name": "five.png", "height": 4, "width": 6}],
            "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "apple"}, {"id": 3, "name": "car"}],
            "annotations": [
                {"id": 10, "image_id": 5, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 3, 0, 3]]},
                {"id": 11, "image_id": 5, "category_id": 1, "segmentation": {"size": [4, 6], "counts": [8, 1, 15]}},
                {"id": 12, "image_id": 5, "category_id": 2, "segmentation": [[4, 0, 6, 0, 6, 4, 4, 4]]},
            ],
        },
        "captions.json": {"annotations": [{"id": 20, "image_id": 5, "caption": "the dog under the sky"}]},
        "phrases.json": {
            "phrases": [
                phrase(start=4, end=7, text="dog", ann_ids=[10, 11]),
                phrase(start=18, end=21, text="sky", segment_ids=[70000]),
            ]
        },
        "panoptic.json": {"annotations": [{"image_id": 5, "file_name": "five.png", "segments_info": [{"id": 70000}]}]},
    }


def phrase(**fields: Any) -> dict[str, Any]:
    return {"caption_id": 20, "image_id": 5, "ann_ids": [], "segment_ids": [], **fields}


DOG = np.zeros((4, 6), bool)
DOG[:3, :2] = True
DOG[0, 2] = True  # run lengths go down the columns: pixel 8 is the first of the third column
SKY = np.zeros((4, 6), bool)
SKY[3, 1:5] = True


def write(folder: Path, files: Files) -> Path:
    for place in ("images", "panoptic"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    Image.new("RGB", (6, 4)).save(folder / "images" / "five.png")
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[SKY] = (70000 % 256, 70000 // 256 % 256, 70000 // 65536)
    Image.fromarray(colours).save(folder / "panoptic" / "five.png")
    return folder


def test_captions_with_phrases(tmp_path: Path) -> None:
    (example,) = read_coco_folder(write(tmp_path, small()))
    assert (example.name, example.text) == ("five-20", "the dog under the sky")
    assert example.image == tmp_path / "images" / "five.png"
    assert [(found.text, found.start, found.end) for found in example.phrases] == [("dog", 4, 7), ("sky", 18, 21)]
    assert np.array_equal(example.phrases[0].mask, DOG)
    assert np.array_equal(example.phrases[1].mask, SKY)


def test_categories_alone(tmp_path: Path) -> None:
    files = {"instances.json": small()["instances.json"]}
    corner = [0, 3, 1, 3, 1, 4, 0, 4]
    files["instances.json"]["annotations"].append({"id": 13, "image_id": 5, "category_id": 3, "segmentation": [corner]})
    (example,) = read_coco_folder(str(write(tmp_path, files)))
    assert (example.name, example.text) == ("five", "a dog, an apple and a car")
    assert [(found.text, found.start) for found in example.phrases] == [("dog", 2), ("apple", 10), ("car", 22)]
    assert np.array_equal(example.phrases[0].mask, DOG)
    assert np.argwhere(example.phrases[2].mask).tolist() == [[3, 0]]


def test_pictures_beside_the_annotations_and_a_limit(tmp_path: Path) -> None:
    files = {"instances.json": small()["instances.json"]}
    images = files["instances.json"]["images"]
    annotations = files["instances.json"]["annotations"]
    for number in (6, 7):
        images.append({"id": number, "file_name": f"sub/{number}.png", "height": 4, "width": 6})
        annotations.append({**annotations[2], "id": number + 100, "image_id": number})
    write(tmp_path, files)
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "sub" / "6.png")
    # The third picture is missing, and is not asked for.
    assert [example.name for example in read_coco_folder(tmp_path, limit=2)] == ["five", "sub-6"]
    with pytest.raises(
        InputError, match=r"image 7: its file is missing: looked for 'images/sub/7\.png' or 'sub/7\.png'"
    ):
        list(read_coco_folder(tmp_path))
    for limit in (0, True, "3"):
        with pytest.raises(InputError, match="is not a number of examples"):
            read_coco_folder(tmp_path, limit=limit)  # type: ignore[arg-type]


@needs_mini
def test_photographs_with_captions() -> None:
    examples = list(read_coco_folder(MINI))
    instances = {record["id"]: record for record in json.loads((MINI / "instances.json").read_text())["annotations"]}
    images = {record["id"]: record for record in json.loads((MINI / "instances.json").read_text())["images"]}
    records = json.loads((MINI / "phrases.json").read_text())["phrases"]
    assert len(examples) == len({example.name for example in examples}) == len({r["caption_id"] for r in records})
    assert sum(len(example.phrases) for example in examples) == len(records)
    found = {
        (example.name.split("-")[1], part.start, part.text): part.mask
        for example in examples
        for part in example.phrases
    }
    for record in records:
        height, width = images[record["image_id"]]["height"], images[record["image_id"]]["width"]
        expected = np.zeros((height, width), int)
        for number in record["ann_ids"]:
            shape = instances[number]["segmentation"]
            encoded = coco_mask.frPyObjects(shape, height, width)
            expected |= coco_mask.decode(coco_mask.merge(encoded) if isinstance(shape, list) else encoded)
        if record["segment_ids"]:
            colours = np.asarray(Image.open(MINI / "panoptic" / f"{record['image_id']:012}.png")).astype(int)
            expected |= np.isin(colours @ [1, 256, 65536], record["segment_ids"])
        assert np.array_equal(found[str(record["caption_id"]), record["start"], record["text"]], expected == 1)


@needs_mini
def test_photographs_by_category(tmp_path: Path) -> None:
    content = json.loads((MINI / "instances.json").read_text())
    (tmp_path / "instances.json").write_text(json.dumps(content))
    shutil.copytree(MINI / "images", tmp_path / "images")  # links would lead out of the folder
    examples = list(read_coco_folder(tmp_path))
    assert len(examples) == len({record["image_id"] for record in content["annotations"]})
    for example in examples:
        assert all(example.text[part.start : part.end] == part.text for part in example.phrases)


# --- what is refused -----------------------------------------------------------------------------------------------


def edit(change: Callable[[Files], None]) -> Files:
    files = small()
    change(files)
    return files


def shape(segmentation: Any) -> Callable[[Files], None]:
    return lambda files: files["instances.json"]["annotations"][0].update(segmentation=segmentation)


def field(file: str, key: str, position: int = 0, **fields: Any) -> Callable[[Files], None]:
    return lambda files: files[file][key][position].update(fields)


def runs(counts: Any, size: Any = (4, 6)) -> Callable[[Files], None]:
    return shape({"size": list(size), "counts": counts})


WRONG = {
    "not JSON": (lambda files: files.update({"instances.json": "{"}), r"instances\.json' is not valid JSON"),
    "NaN": (lambda files: files.update({"instances.json": "NaN"}), r"NaN is not a JSON number"),
    "a list": (lambda files: files.update({"instances.json": "[]"}), "holds a list of 0; a JSON object"),
    "nested": (lambda files: files.update({"phrases.json": "[" * 100_000}), "phrases.json' is nested too deeply"),
    "no images": (lambda files: files["instances.json"].pop("images"), "needs a list 'images', which is missing"),
    "a number": (lambda files: files["instances.json"]["images"].append(3), "image at position 1: it is 3"),
    "id missing": (lambda files: files["instances.json"]["images"][0].pop("id"), "image at position 0: it has no 'id'"),
    "id twice": (field("instances.json", "annotations", 1, id=10), "annotation 10: its id was used before"),
    "height": (field("instances.json", "images", height=0), "image 5: its 'height' is 0; it needs"),
    "width": (field("instances.json", "images", width=True), "image 5: its 'width' is True; it needs"),
    "other size": (
        field("instances.json", "images", height=6, width=4),
        r"declared as 6 x 4 .* is 4 x 6 once it is upright",
    ),
    "escape": (field("instances.json", "categories", name="\x1b[31m"), "category 1: its 'name' is .* can be printed"),
    "category": (field("instances.json", "annotations", category_id=9), "annotation 10: its 'category_id' is 9, which"),
    "image": (field("instances.json", "annotations", image_id=9), "annotation 10: its 'image_id' is 9, which"),
    "parent": (field("instances.json", "images", file_name="../five.png"), "image 5: its file name .* leads out"),
    "absolute": (field("instances.json", "images", file_name="/etc/passwd"), "image 5: its file name .* leads out"),
    "drive": (field("instances.json", "images", file_name="c:\\a.png"), "image 5: its file name .* leads out"),
    "long": (field("instances.json", "images", file_name="x" * 5000), "image 5: its file .* cannot be looked up"),
    "no shape": (lambda files: files["instances.json"]["annotations"][0].pop("segmentation"), "no 'segmentation'"),
    "shape": (shape("M 0 0"), "annotation 10: its segmentation is 'M 0 0'"),
    "no polygon": (shape([]), "annotation 10: its segmentation is an empty list"),
    "flat": (shape([0, 0, 2, 0, 2, 3]), "annotation 10: its polygon is 0; a list"),
    "box": (shape([[0, 0, 2, 3]]), "its polygon has 4 numbers"),
    "odd": (shape([[0, 0, 2, 0, 2, 3, 0]]), "its polygon has 7 numbers"),
    "text in it": (shape([[0, 0, 2, 0, 2, "3"]]), "its polygon holds '3'"),
    "infinite": (shape([[0, 0, 2, 0, 2, 10**400]]), "its polygon holds 1000"),
    "outside": (shape([[0, 0, 90, 0, 2, 3]]), r"from x = 0 to 90, outside the picture of 4 x 6"),
    "endless": (shape([[0, 0, 6, 0, 6, 4] * 200_000]), "its outline is .* pixels long"),
    "run size": (runs([24], (6, 4)), r"annotation 10: its run lengths are for size \[6, 4\]"),
    "run sum": (runs([8, 1]), "its run lengths sum to 9, and the picture has 4 x 6 = 24"),
    "too long": (runs([30, 0]), "its run lengths hold 30"),
    "negative": (runs([20, -1, 5]), "its run lengths hold -1"),
    "fraction": (runs([23.0, 1]), r"its run lengths hold 23\.0"),
    "no counts": (runs(None), "its 'counts' are None"),
    "letters": (runs("a\u20ac"), "not in COCO's encoding"),
    "unfinished": (runs("P"), "end in the middle of a number"),
    "endless number": (runs("o" * 100), "not in COCO's encoding"),
    "caption": (field("phrases.json", "phrases", caption_id=21), "phrase at position 0: its 'caption_id' is 21"),
    "of another": (field("phrases.json", "phrases", image_id=6), "its 'image_id' is 6, and that of its caption is 5"),
    "span": (field("phrases.json", "phrases", start=5), "its text is 'dog', and its caption says 'og' at characters 5"),
    "before": (field("phrases.json", "phrases", start=-3), "its 'start' is -3; it needs a whole number of at least 0"),
    "nowhere": (field("phrases.json", "phrases", ann_ids=[]), "it names no annotation and no segment"),
    "no such": (field("phrases.json", "phrases", ann_ids=[99]), "its 'ann_ids' name 99"),
    "ids": (field("phrases.json", "phrases", ann_ids=["10"]), "its 'ann_ids' holds '10'"),
    "segment": (field("phrases.json", "phrases", 1, segment_ids=[3]), "its 'segment_ids' name 3"),
    "none drawn": (
        lambda files: (
            files["panoptic.json"]["annotations"][0]["segments_info"].append({"id": 3}),
            files["phrases.json"]["phrases"][1].update(segment_ids=[3]),
        ),
        "phrase at position 1: its segment 3 is declared, but",
    ),
    "empty": (runs([24]), None),
    "covers none": (
        lambda files: (runs([24])(files), files["phrases.json"]["phrases"][0].update(ann_ids=[10])),
        "covers no pixel of image 5",
    ),
    "no phrases": (lambda files: files["phrases.json"]["phrases"].clear(), "has no phrases"),
    "no captions": (lambda files: files.pop("captions.json"), "has phrases.json without captions.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_records_are_named(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    folder = write(tmp_path, edit(change))
    if message is None:
        assert next(read_coco_folder(folder)).phrases[0].mask.sum() == 1
        return
    with pytest.raises(InputError, match=message) as caught:
        list(read_coco_folder(folder))
    assert str(caught.value).isprintable()
    assert str(folder) in str(caught.value)


def test_compressed_run_lengths_equal_those_of_pycocotools(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for density in (0.02, 0.5, 0.98):
        mask = rng.random((4, 6)) < density
        mask[1, 1] = True
        counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        files = {"instances.json": edit(runs(counts))["instances.json"]}
        del files["instances.json"]["annotations"][1:]
        (example,) = read_coco_folder(write(tmp_path, files))
        assert np.array_equal(example.phrases[0].mask, mask)


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    write(tmp_path, small())
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = tmp_path / "images" / "five.png"
    Image.new("RGB", (4, 6)).save(picture, exif=exif)
    assert next(read_coco_folder(tmp_path)).phrases[0].mask.shape == (4, 6)
    Image.new("RGB", (6, 4)).save(picture, exif=exif)
    with pytest.raises(InputError, match=r"declared as 4 x 6 \(height x width\), and .* is 6 x 4 once it is upright"):
        next(read_coco_folder(tmp_path))


def test_files_that_lead_elsewhere(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", small())
    picture = folder / "images" / "five.png"
    picture.rename(tmp_path / "outside.png")
    picture.symlink_to(tmp_path / "outside.png")
    with pytest.raises(InputError, match=r"image 5: its file 'five\.png' is a link that leads out of"):
        list(read_coco_folder(folder))
    picture.unlink()
    (folder / "phrases.json").unlink()
    os.mkfifo(folder / "phrases.json")
    with pytest.raises(FileError, match=r"phrases\.json' is not an ordinary file"):
        read_coco_folder(folder)
    (folder / "instances.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(InputError, match=r"is not UTF-8 text \(byte 12\)"):
        read_coco_folder(folder)


def test_the_truth_about_a_picture_that_cannot_be_read_stands(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", small())
    whole = next(read_coco_folder(folder))
    picture = folder / "images" / "five.png"
    for spoil, message in ((os.mkfifo, "is a pipe"), (lambda path: path.write_text("no picture"), "it is a text file")):
        picture.unlink()
        spoil(picture)
        found = next(read_coco_folder(folder))
        assert [one.mask.tolist() for one in found.phrases] == [one.mask.tolist() for one in whole.phrases]
        with pytest.raises(FileError, match=message):
            read_image(found.image)
    # Masks of a size that no picture has are not made.
    table = json.loads((folder / "instances.json").read_text())
    table["images"][0].update(height=10**6, width=10**6)
    (folder / "instances.json").write_text(json.dumps(table))
    with pytest.raises(FileError, match=r"image 5: .*it is a text file"):
        next(read_coco_folder(folder))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match=r"looked for instances\.json.*it has 'photo\.jpg'"):
        read_coco_folder(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        read_coco_folder(tmp_path / "nowhere")
    files = {"instances.json": small()["instances.json"]}
    files["instances.json"]["annotations"] = []
    with pytest.raises(InputError, match="has no annotations"):
        read_coco_folder(write(tmp_path, files))


def test_random_damage_is_always_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    values: list[Any] = [
        None,
        -1,
        0,
        7,
        2**70,
        1e308,
        "",
        "x",
        "../x",
        [],
        [[]],
        {},
        True,
        [[1e300] * 6],
        {"counts": "0"},
    ]
    write(tmp_path, small())
    refused = 0
    for _ in range(300):
        files = small()
        place: Any = files
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[rng.integers(len(keys))]
            if place is not files and (not isinstance(place[key], (dict, list)) or rng.random() < 0.2):
                place[key] = values[rng.integers(len(values))]
                break
            place = place[key]
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        try:
            list(read_coco_folder(tmp_path))
        except ProbeError:
            refused += 1
    assert refused > 150
