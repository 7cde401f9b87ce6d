"""A folder of pictures and masks needs no table, and a mask that could mean two things is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probe.errors import FileError, InputError, ProbeError
from probe.evaluation.plain_folders import read_plain_folder
from tests.evaluation.published import DOG, PHOTO, SKY, write


def files(**more: Any) -> dict[str, Any]:
    return {
        "five.jpg": "",
        "masks/five/dog.png": DOG,
        "masks/five/red sky.png": np.where(SKY, 255, 0).astype(np.uint8),
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, files())
    Image.fromarray(PHOTO).save(tmp_path / "five.jpg")
    return tmp_path


def test_a_sentence_of_the_phrases(folder: Path) -> None:
    write(folder, {"alone.png": PHOTO, "six.png": PHOTO, "masks/six/dog.png": SKY})  # one picture without masks
    first, second = read_plain_folder(folder)
    assert (first.name, first.text) == ("five", "a dog and a red sky")
    assert first.image == folder / "five.jpg"
    assert [(one.text, one.start) for one in first.phrases] == [("dog", 2), ("red sky", 12)]
    assert np.array_equal(first.phrases[0].mask, DOG)
    assert np.array_equal(first.phrases[1].mask, SKY)
    assert (second.name, second.text) == ("six", "a dog")
    assert [one.name for one in read_plain_folder(folder, limit=1)] == ["five"]


def test_a_caption(folder: Path) -> None:
    write(folder, {"five.txt": "\ufeffA hot dog under a Red Sky\n"})
    (example,) = read_plain_folder(folder)
    assert example.text == "A hot dog under a Red Sky"
    assert [(one.text, one.start) for one in example.phrases] == [("dog", 6), ("Red Sky", 18)]
    write(folder, {"five.txt": "A hotdog"})
    with pytest.raises(InputError, match=r"five\.jpg': the phrase 'dog' of a mask is not in the caption"):
        list(read_plain_folder(folder))
    for text, message in (("", "has no text"), ("\x1b[31m dog", "has no text that can be printed")):
        write(folder, {"five.txt": text})
        with pytest.raises(InputError, match=message):
            list(read_plain_folder(folder))
    (folder / "five.txt").write_bytes(b"dog \xff")
    with pytest.raises(InputError, match=r"five\.txt' is not UTF-8 text \(byte 4\)"):
        list(read_plain_folder(folder))
    (folder / "five.txt").unlink()
    os.mkfifo(folder / "five.txt")
    with pytest.raises(FileError, match=r"five\.txt' is not an ordinary file"):
        list(read_plain_folder(folder))


def test_what_counts_as_a_mask(folder: Path) -> None:
    path = folder / "masks" / "five" / "dog.png"
    clear = np.zeros((4, 6, 4), np.uint8)
    clear[:, :, 0] = 200  # red everywhere, and transparent outside the dog
    clear[DOG, 3] = 255
    palette = Image.fromarray(DOG.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 0, 90, 0])
    for image in (Image.fromarray(clear), palette, Image.fromarray(DOG.astype(np.uint8))):
        image.save(path)
        (example,) = read_plain_folder(folder)
        assert np.array_equal(example.phrases[0].mask, DOG)
    soft = DOG * 255
    soft[0, 0] = 100
    for content, message in (
        (soft.astype(np.uint8), r"dog\.png' has 2 colours beside black"),
        (np.zeros((4, 6), np.uint8), r"dog\.png' is black all over"),
        (DOG.T, r"dog\.png' is 6 x 4 \(height x width\), and its picture is 4 x 6"),
    ):
        write(folder, {"masks/five/dog.png": content})
        with pytest.raises(InputError, match=message):
            list(read_plain_folder(folder))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no picture with masks: looked for .*; it has no files"):
        read_plain_folder(tmp_path)
    folder = write(tmp_path / "in", files(**{"five.jpg": PHOTO, "five.png": PHOTO, "five-b.png": PHOTO}))
    with pytest.raises(InputError, match=r"five\.png' and 'five\.jpg' share one folder of masks"):
        read_plain_folder(folder)
    (folder / "five.jpg").unlink()
    mask = folder / "masks" / "five" / "dog.png"
    mask.rename(tmp_path / "outside.png")
    mask.symlink_to(tmp_path / "outside.png")
    with pytest.raises(InputError, match=r"dog\.png' is a link that leads out of"):
        list(read_plain_folder(folder))
    mask.unlink()
    os.mkfifo(mask)
    with pytest.raises(FileError, match=r"dog\.png' is a pipe"):
        list(read_plain_folder(folder))
    mask.unlink()
    mask.symlink_to(mask)
    with pytest.raises(ProbeError, match=r"dog\.png"):
        list(read_plain_folder(folder))
    mask.unlink()
    (folder / "masks" / "five" / "red sky.png").rename(folder / "masks" / "five" / "red\x1b.png")
    with pytest.raises(InputError, match=r"a mask is named .*x1b.*, which is no phrase"):
        list(read_plain_folder(folder))
    (folder / "masks" / "five" / "red\x1b.png").unlink()
    with pytest.raises(InputError, match="has no PNG files"):
        list(read_plain_folder(folder))
