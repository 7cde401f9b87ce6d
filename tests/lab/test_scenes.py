"""Scenes: pure, fair, exactly masked, and the same picture at every size."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import islice, pairwise

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from probe.errors import FileError, InputError
from probe.lab.folders import write_folder
from probe.lab.scenes import COLOURS, HELD_OUT, SHAPES, Scene, SceneSettings, scene, scenes

GRID = 8
# Nine pixels to a patch, so that a pixel's centre is the patch's centre.
AT_GRID = SceneSettings(size=9 * GRID)
SMALL = SceneSettings(size=64)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Whether each patch's centre lies in the mask of a phrase: (phrase, row, col), over 1000 test scenes."""
    masks = [phrase.mask[4::9, 4::9] for example in scenes(1000, settings=AT_GRID) for phrase in example.phrases]
    return np.stack(masks)


def same(one: Scene, other: Scene) -> bool:
    pictures = np.array_equal(np.asarray(one.image), np.asarray(other.image))
    masks = all(np.array_equal(a.mask, b.mask) for a, b in zip(one.phrases, other.phrases, strict=True))
    return pictures and masks and one.caption == other.caption and one.objects == other.objects


def test_a_scene_depends_on_its_arguments_alone() -> None:
    first = scene(5, settings=SMALL)
    for index in (7, 5, 9, 4):  # whatever was drawn in between
        scene(index, settings=SMALL)
    assert same(first, scene(5, settings=SMALL))
    assert same(first, next(scenes(1, start=5, settings=SMALL)))
    np.random.seed(1)  # the global generator must not matter
    assert same(first, scene(5, settings=SMALL))
    for other in (scene(6, settings=SMALL), scene(5, seed=1, settings=SMALL), scene(5, split="train", settings=SMALL)):
        assert other.objects != first.objects


def test_the_stream_has_no_end() -> None:
    stream = scenes(start=10**9, settings=SceneSettings(size=16))
    assert [example.index for example in islice(stream, 3)] == [10**9, 10**9 + 1, 10**9 + 2]


def test_no_test_scene_is_a_training_scene() -> None:
    tiny = SceneSettings(size=16)
    layouts = {example.objects for example in scenes(500, settings=tiny)}
    assert len(layouts) == 500
    assert layouts.isdisjoint(example.objects for example in scenes(500, split="train", settings=tiny))


def test_chance_and_the_centre_prior_are_low(patches: np.ndarray) -> None:
    assert patches.mean() <= 0.10
    assert patches.mean(axis=0)[3:5, 3:5].max() <= 0.15
    assert patches.mean(axis=0).max() <= 0.15  # nor is any other patch a good guess
    assert patches.any(axis=(1, 2)).mean() >= 0.95  # and nearly every phrase can be pointed at


def test_every_shape_colour_and_size_is_common_and_no_pair_occurs_twice_in_a_scene() -> None:
    found = [item for example in scenes(300, settings=SceneSettings(size=16)) for item in example.objects]
    for aspect, values in (("shape", SHAPES), ("colour", COLOURS), ("size", ("small", "large"))):
        for value in values:
            assert sum(getattr(item, aspect) == value for item in found) > 0.5 * len(found) / len(values)
    for example in scenes(300, settings=SceneSettings(size=16)):
        pairs = {(item.colour, item.shape) for item in example.objects}
        assert len(pairs) == len(example.objects) == len(example.phrases)
        assert 2 <= len(pairs) <= 4


def test_held_out_pairs_never_occur_in_training_and_always_in_unseen_scenes() -> None:
    assert {colour for colour, _ in HELD_OUT} <= set(COLOURS)
    assert {shape for _, shape in HELD_OUT} <= set(SHAPES)

    def pairs(example: Scene) -> set[tuple[str, str]]:
        return {(item.colour, item.shape) for item in example.objects}

    seen, unseen = SceneSettings(size=16), SceneSettings(size=16, combinations="unseen")
    assert not any(pairs(example) & set(HELD_OUT) for example in scenes(1000, split="train", settings=seen))
    met = [pairs(example) & set(HELD_OUT) for example in scenes(200, settings=unseen)]
    assert all(met)
    assert set().union(*met) == set(HELD_OUT)


@pytest.mark.parametrize("relations", [False, True])
def test_captions_name_the_objects_from_left_to_right(relations: bool) -> None:
    for example in scenes(100, settings=SceneSettings(size=16, relations=relations)):
        assert all(left.col < right.col for left, right in pairwise(example.objects))
        assert all(one.end < other.start for one, other in pairwise(example.phrases))
        for item, phrase in zip(example.objects, example.phrases, strict=True):
            assert example.caption[phrase.start : phrase.end] == phrase.text == item.name
            assert example.caption[: phrase.start].endswith("a ")
            assert phrase.text == f"{item.size} {item.colour} {item.shape}"


def test_relations_are_true() -> None:
    for example in scenes(200, settings=SceneSettings(size=16, relations=True)):
        for (item, phrase), (other, following) in pairwise(zip(example.objects, example.phrases, strict=True)):
            words = example.caption[phrase.end : following.start]
            if "left" in words:
                assert item.col < other.col
            else:
                assert ("above" in words) == (item.row < other.row)
                assert ("below" in words) == (item.row > other.row)


def test_masks_agree_with_a_plain_point_in_shape_test() -> None:
    size, seen = 96, set()
    for example in scenes(60, settings=SceneSettings(size=size)):
        for item, phrase in zip(example.objects, example.phrases, strict=True):
            if item.shape not in ("circle", "square", "ring"):
                continue
            seen.add(item.shape)
            expected = np.zeros((size, size), dtype=bool)
            for row in range(size):
                for col in range(size):
                    down = ((row + 0.5) / size - item.row) / item.radius
                    right = ((col + 0.5) / size - item.col) / item.radius
                    if item.shape == "square":  # a square turned clockwise: turn the point back
                        along = right * math.cos(item.angle) + down * math.sin(item.angle)
                        across = down * math.cos(item.angle) - right * math.sin(item.angle)
                        expected[row, col] = max(abs(along), abs(across)) < 0.88
                    else:
                        hole = 0.48 if item.shape == "ring" else -1.0
                        expected[row, col] = hole < math.hypot(down, right) < 1.0
            assert np.array_equal(phrase.mask, expected)
        if len(seen) == 3:
            return
    pytest.fail("too few shapes met")


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_agree_with_the_colours_of_the_pixels(shape: str) -> None:
    """Objects are saturated and backgrounds are not, so the picture itself says where the objects are."""
    checked = 0
    for example in scenes(80):
        if all(item.shape != shape for item in example.objects):
            continue
        pixels = np.asarray(example.image).astype(float)
        coloured = (pixels.max(axis=2) - pixels.min(axis=2)) / pixels.max(axis=2) > 0.42
        union = np.logical_or.reduce([phrase.mask for phrase in example.phrases])
        assert (coloured & union).sum() / (coloured | union).sum() > 0.95
        for item, phrase in zip(example.objects, example.phrases, strict=True):
            typical = np.median(pixels[phrase.mask], axis=0)
            assert min(COLOURS, key=lambda name: np.abs(typical - COLOURS[name]).sum()) == item.colour
        checked += 1
        if checked == 5:
            return


def test_objects_lie_whole_inside_the_image_and_apart() -> None:
    for example in scenes(200, settings=SMALL):
        masks = np.stack([phrase.mask for phrase in example.phrases])
        assert masks.sum(axis=0).max() == 1
        assert not masks[:, [0, -1], :].any()
        assert not masks[:, :, [0, -1]].any()


def test_with_occlusion_right_hides_left_and_half_stays_visible() -> None:
    hidden = 0
    settings = SceneSettings(size=64, occlusion=True)
    for example in scenes(60, settings=settings):
        masks = np.stack([phrase.mask for phrase in example.phrases])
        assert masks.sum(axis=0).max() == 1
        whole = [item for item in example.objects if item.shape == "circle"]
        for item in whole:
            mask = example.phrases[example.objects.index(item)].mask
            area = math.pi * (item.radius * 64) ** 2
            assert 0.45 * area < mask.sum() < 1.05 * area
            hidden += mask.sum() < 0.9 * area
    assert hidden > 0
    last = [scene(index, settings=settings).objects[-1] for index in range(5)]
    assert last == [max(scene(i, settings=settings).objects, key=lambda item: item.col) for i in range(5)]


@pytest.mark.parametrize("extra", [{}, {"clutter": True, "occlusion": True}])
def test_a_scene_is_the_same_picture_at_another_size(extra: dict[str, bool]) -> None:
    for index in range(12):
        large, small = (scene(index, settings=SceneSettings(size=size, **extra)) for size in (192, 64))
        assert large.caption == small.caption
        assert large.objects == small.objects
        resized = np.asarray(large.image.resize((64, 64), Image.Resampling.BOX)).astype(float)
        assert np.abs(resized - np.asarray(small.image)).mean() < 0.6  # of 255
        for one, other in zip(large.phrases, small.phrases, strict=True):
            # The centre of a pixel at 64 is that of the middle one of 3 x 3 at 192.
            assert np.array_equal(one.mask[1::3, 1::3], other.mask)


def test_switches_change_what_they_say_and_nothing_else() -> None:
    plain = scene(3, settings=SMALL)
    for change in ({"texture": False}, {"clutter": True}, {"relations": True}):
        other = scene(3, settings=SceneSettings(size=64, **change))
        assert other.objects == plain.objects
        assert (other.caption == plain.caption) is ("relations" not in change)
        inner = np.logical_or.reduce([phrase.mask for phrase in plain.phrases])
        inner &= np.roll(inner, 2, 0) & np.roll(inner, -2, 0) & np.roll(inner, 2, 1) & np.roll(inner, -2, 1)
        assert np.array_equal(np.asarray(other.image)[inner], np.asarray(plain.image)[inner])
        assert np.array_equal(np.asarray(other.image), np.asarray(plain.image)) is ("relations" in change)
    flat = np.asarray(scene(3, settings=SceneSettings(size=64, texture=False)).image)
    outside = ~np.logical_or.reduce([phrase.mask for phrase in plain.phrases])
    _, counts = np.unique(flat[outside], axis=0, return_counts=True)
    assert counts.max() > 0.8 * outside.sum()


@pytest.mark.parametrize(("fewest", "most"), [(1, 1), (6, 6)])
def test_every_number_of_objects_finds_room(fewest: int, most: int) -> None:
    for example in scenes(30, settings=SceneSettings(size=16, objects=(fewest, most))):
        assert fewest <= len(example.objects) <= most


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "size must be a whole number of 16 to 4096 pixels, not 8"),
        ({"size": 64.0}, "size must be"),
        ({"size": True}, "size must be"),
        ({"objects": (3, 2)}, r"objects must be \(fewest, most\).*not \(3, 2\)"),
        ({"objects": (0, 2)}, "objects must be"),
        ({"objects": 3}, "objects must be"),
        ({"objects": (2, 99)}, "most <= 6"),
        ({"combinations": "unsen"}, "Did you mean 'unseen'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SceneSettings(**settings)  # type: ignore[arg-type]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="index must be a whole number from 0, not -1"):
        scene(-1)
    with pytest.raises(InputError, match="seed must be"):
        scene(0, seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Did you mean 'train'"):
        scene(0, split="trian")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="count must be"):
        scenes(-3)
    with pytest.raises(InputError, match="start must be"):
        scenes(3, start=-1)


def test_a_folder_reads_back_with_pycocotools(tmp_path) -> None:
    settings = SceneSettings(size=64, occlusion=True)
    out = write_folder(tmp_path / "new" / "set", scenes(6, start=20, settings=settings))
    coco = COCO(str(out / "instances.json"))
    captions = {row["id"]: row for row in json.loads((out / "captions.json").read_text())["annotations"]}
    phrases = json.loads((out / "phrases.json").read_text())["phrases"]
    assert coco.getImgIds() == list(range(20, 26))
    for example in scenes(6, start=20, settings=settings):
        with Image.open(out / "images" / coco.imgs[example.index]["file_name"]) as image:
            assert np.array_equal(np.asarray(image), np.asarray(example.image))
        rows = [row for row in phrases if row["image_id"] == example.index]
        for row, phrase, item in zip(rows, example.phrases, example.objects, strict=True):
            (note,) = coco.loadAnns(row["ann_ids"])
            assert np.array_equal(coco.annToMask(note).astype(bool), phrase.mask)
            assert note["area"] == phrase.mask.sum()
            assert coco_mask.toBbox(note["segmentation"]).tolist() == note["bbox"]
            assert coco.cats[note["category_id"]]["name"] == row["category"] == item.shape
            assert captions[row["caption_id"]]["caption"][row["start"] : row["end"]] == row["text"] == phrase.text
    assert min(coco.anns) > 0
    # Ids follow from the scene, not from what else is in the folder.
    alone = COCO(str(write_folder(tmp_path / "alone", [scene(23, settings=settings)]) / "instances.json"))
    assert {key: coco.anns[key] for key in alone.anns} == alone.anns


def test_a_folder_appears_whole_or_not_at_all(tmp_path) -> None:
    def broken():
        yield scene(0, settings=SMALL)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_folder(tmp_path / "set", broken())
    with pytest.raises(InputError, match="Two scenes have index 1"):
        write_folder(tmp_path / "set", [scene(1, settings=SMALL)] * 2)
    with pytest.raises(InputError, match="no scene"):
        write_folder(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path / "set", scenes(1, settings=SMALL))
    with pytest.raises(FileError, match="exists already"):
        write_folder(tmp_path / "set", scenes(1, settings=SMALL))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        write_folder(tmp_path / "file" / "set", scenes(1, settings=SMALL))


def test_scenes_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, probe.lab, probe.lab.scenes; probe.lab.scenes.scene(0);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
