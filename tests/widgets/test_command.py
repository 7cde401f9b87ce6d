"""``probe html``: what it prints and writes, and one line for everything that is asked wrongly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import probe
from tests.records import make_record
from tests.widgets.made import disc, padded_grid, picture
from tests.widgets.test_html import Elements


@pytest.fixture
def folder(tmp_path):
    probe.save(make_record(grid=padded_grid()), tmp_path / "first.safetensors")
    probe.save(make_record(grid=padded_grid(), seed=1), tmp_path / "second.safetensors")
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(disc()).save(tmp_path / "masks" / "red circle.png")
    return tmp_path


def test_a_page_of_two_records(shell, folder):
    code, printed, noise = shell(
        "html", folder / "first.safetensors", folder / "second.safetensors", "--image", folder / "photo.png", "--masks",
        folder / "masks", "--out", folder / "view.html", "--json",
    )  # fmt: skip
    assert (code, noise) == (0, "")
    data = json.loads(printed)
    assert data["page"] == str(folder / "view.html")
    assert data["megabytes"] == (folder / "view.html").stat().st_size / 1e6
    contents = Elements((folder / "view.html").read_text(encoding="utf-8")).contents
    assert [one["label"] for one in contents["records"]] == ["first", "second"]
    assert len(contents["images"]) == 1
    assert [one["text"] for one in contents["records"][1]["phrases"] if one["mask"] == 0] == ["red circle"]
    assert data["said"] == contents["kept"]["said"] == "Every map is kept exactly."


def test_a_record_without_its_image_is_said_to_stand_alone(shell, folder):
    code, printed, _ = shell("html", folder / "first.safetensors", "--out", folder / "view.html", "--label", "mine")
    assert code == 0
    assert "without --image the maps stand alone" in printed
    contents = Elements((folder / "view.html").read_text(encoding="utf-8")).contents
    assert contents["images"] == []
    assert contents["records"][0]["label"] == "mine"


def test_files_of_one_name_are_told_apart_by_their_folder(shell, folder):
    (folder / "other").mkdir()
    probe.save(make_record(grid=padded_grid()), folder / "other" / "first.safetensors")
    code, _, _ = shell(
        "html", folder / "first.safetensors", folder / "other" / "first.safetensors", "--out", folder / "view.html"
    )
    contents = Elements((folder / "view.html").read_text(encoding="utf-8")).contents
    assert code == 0
    assert [one["label"] for one in contents["records"]] == [str(folder / "first"), str(folder / "other" / "first")]


def test_a_record_of_a_newer_version(refused, folder):
    source = folder / "first.safetensors"
    with safe_open(source, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, folder / "newer.safetensors", metadata | {"groundprobe": "2"})
    line = refused("html", folder / "newer.safetensors")
    assert "is a record of format '2' but this version reads format 1" in line


def test_what_is_asked_wrongly_is_one_line(refused, folder):
    first = folder / "first.safetensors"
    Image.fromarray(picture((30, 30))).save(folder / "small.png")
    assert "The image is 30 x 30 but the record was made of one of 40 x 64" in refused(
        "html", first, "--image", folder / "small.png"
    )
    assert "does not exist" in refused("html", folder / "none.safetensors")
    assert "is a folder; give the page's file" in refused("html", first, "--out", folder, writes=False)
    assert "--megabytes must be above 0" in refused("html", first, "--megabytes", 0)
    assert "take more than 0.01 MB" in refused("html", first, "--megabytes", 0.01)
    assert "1 records need as many labels, found 2" in refused("html", first, "--label", "a", "--label", "b")
    Image.fromarray(np.zeros((40, 64), bool)).save(folder / "masks" / "blue square.png")
    assert "is black all over" in refused("html", first, "--masks", folder / "masks")
    (folder / "masks" / "blue square.png").unlink()
    (folder / "masks" / "red circle.png").rename(folder / "masks" / "green dog.png")
    assert "'green dog' is not in the text" in refused("html", first, "--masks", folder / "masks")
    (folder / "empty").mkdir()
    assert "has no PNG files" in refused("html", first, "--masks", folder / "empty")
