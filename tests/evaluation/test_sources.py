"""A data set is found by its name, or by what lies in its folder, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.errors import InputError
from probe.evaluation.sources import FORMATS, find_format, is_lab, read_data
from tests.evaluation.published import (
    DOG,
    PHOTO,
    PUBLISHED,
    captions_files,
    grandf_files,
    panoptic_files,
    png_files,
    refcoco_files,
    write,
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_format_is_recognised(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, PUBLISHED[name]())
    expected = name.split()[0]
    assert find_format(folder) == expected
    by_folder, by_name = read_data(folder)[0], read_data(f"{expected}:{folder}", limit=1)
    assert next(iter(by_folder)).text == next(iter(by_name[0])).text
    assert by_name[1] == 1


def test_coco_keeps_what_lies_beside_its_instances(coco_mini: Path) -> None:
    assert find_format(coco_mini) == "coco"
    texts = {
        name: next(iter(read_data(f"{name}:{coco_mini}")[0])) for name in ("coco", "instances", "panoptic", "captions")
    }
    assert texts["coco"].phrases
    assert all(one.text == one.category for one in texts["instances"].phrases)
    assert {one.thing for one in texts["panoptic"].phrases} == {True, False}
    assert not texts["captions"].phrases


def test_a_plain_folder_is_recognised_last(tmp_path: Path) -> None:
    write(tmp_path, {"five.png": PHOTO, "masks/five/dog.png": DOG})
    assert find_format(tmp_path) == "folder"
    assert next(iter(read_data(f"folder:{tmp_path}")[0])).text == "a dog"
    with pytest.raises(InputError, match="a plain folder has no splits, and 'val' was asked for"):
        read_data(f"folder/val:{tmp_path}")
    write(tmp_path, captions_files())
    assert find_format(tmp_path) == "captions"
    write(tmp_path, panoptic_files())
    assert find_format(tmp_path) == "panoptic"


def test_splits_stand_before_the_colon(tmp_path: Path) -> None:
    write(tmp_path, refcoco_files())
    assert next(iter(read_data(f"refcoco/testA:{tmp_path}")[0])).text == "the left dog"
    with pytest.raises(InputError, match="no split 'val'"):
        read_data(f"refcoco/val:{tmp_path}")


def test_a_folder_of_two_data_sets(tmp_path: Path) -> None:
    write(tmp_path, png_files() | grandf_files())
    with pytest.raises(InputError, match=r"holds several data sets: say which, 'png:.*' or 'grandf:"):
        read_data(tmp_path)
    assert next(iter(read_data(f"png:{tmp_path}")[0])).phrases[0].category == "dog"


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(InputError, match=r"is not a data set: looked for instances\.json, .*; it has 'a\.txt'"):
        read_data(tmp_path / "notes")
    with pytest.raises(InputError, match="no such folder"):
        read_data(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"no format 'refcocog' of data sets; there are coco, .*Did you mean 'refcoco'"
    ):
        read_data(f"refcocog:{tmp_path}")
    with pytest.raises(InputError, match="is not a number of examples"):
        read_data(f"coco:{tmp_path}", limit=0)
    for name in FORMATS:
        with pytest.raises(InputError, match=r"looked for .*; it has 'notes'"):
            read_data(f"{name}:{tmp_path}")


def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set:one", captions_files())
    monkeypatch.chdir(tmp_path)
    assert next(iter(read_data("set:one")[0])).references


def test_lab_scenes_say_what_they_show() -> None:
    assert is_lab("lab:clutter")
    (example,) = read_data("lab:clutter", limit=1)[0]
    for phrase in example.phrases:
        assert phrase.text.endswith(phrase.category)
        assert (phrase.thing, phrase.plural) == (True, False)
