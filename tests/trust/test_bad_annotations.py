"""Tables of data sets with anything in them: one typed line that names the file, or what the table says; never a crash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probe.errors import ProbeError
from probe.evaluation.predictions import read_predictions
from probe.evaluation.sources import FORMATS
from probe.training.conversations import read_conversations
from tests.evaluation.published import CAPTION, DOG, PHOTO, PUBLISHED, SKY, runs, write
from tests.evaluation.test_coco import small
from tests.trust.damage import BYTES, flipped, spoilt
from tests.trust.isolated import MEMORY, outcomes

TARGET = "0 crashes, 0 hangs, one typed line that names the file, or what the table says"


def prediction_files():
    phrases = [
        {"text": "A dog", "start": 0, "end": 5, "mask": runs(DOG), "point": [1, 1], "score": 0.5, "note": "", "category": ""},
        {"text": "sky", "start": 16, "end": 19, "mask": runs(SKY), "point": None, "score": None, "note": "", "category": ""},
    ]  # fmt: skip
    return {"predictions.json": {"name": "five", "size": [4, 6], "text": CAPTION, "phrases": phrases}}


def conversation_files():
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a ball"}]
    return {"records.json": [{"id": "a", "image": "five.png", "conversations": said}], "five.png": PHOTO}


def coco_files():
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[SKY] = (70000 % 256, 70000 // 256 % 256, 70000 // 65536)
    return {**small(), "images/five.png": PHOTO, "panoptic/five.png": colours}


#: Every reader of the package, with the smallest folder that it reads.
READERS = {
    **{name: (make, FORMATS[name.split()[0]]) for name, make in PUBLISHED.items()},
    "coco": (coco_files, FORMATS["coco"]),
    "instances": (coco_files, FORMATS["instances"]),
    "predictions": (prediction_files, lambda folder: read_predictions(folder / "predictions.json")),
    "conversations": (
        conversation_files,
        lambda folder: refused_records(*read_conversations(folder / "records.json", folder, prompt="plain")),
    ),
}


def refused_records(good, bad):
    bad.refuse("Correct them.")
    return good


def damage(dice: np.random.Generator, folder: Path, files: dict[str, Any]) -> None:
    """Spoils one file of the folder: mostly a table's values, sometimes its bytes, sometimes a picture."""
    names = sorted(files)
    tables = [one for one in names if one.endswith(".json")]
    kind = dice.random()
    if kind < 0.7:
        name = tables[dice.integers(len(tables))]
        (folder / name).write_text(json.dumps(spoilt(dice, files[name])))
        return
    path = folder / names[dice.integers(len(names))] if kind < 0.9 else folder / tables[dice.integers(len(tables))]
    data = path.read_bytes()
    if kind < 0.95:
        path.write_bytes(flipped(dice, data))
    else:
        rest = data[int(dice.integers(len(data))) :] if dice.random() < 0.3 else b""
        path.write_bytes(BYTES[dice.integers(len(BYTES))] + rest)


def right(found: list[Any], folder: Path) -> str:
    """What is wrong with what was read; nothing, mostly."""
    for one in found:
        for phrase in getattr(one, "phrases", ()):
            if one.text[phrase.start : phrase.end] != phrase.text:
                return "a phrase does not stand in its text"
            if isinstance(phrase.mask, np.ndarray) and (phrase.mask.shape != (4, 6) or not phrase.mask.any()):
                return f"a mask of shape {phrase.mask.shape}"
        picture = getattr(one, "image", None)
        if isinstance(picture, Path) and not picture.resolve().is_relative_to(folder.resolve()):
            return f"a picture outside: {picture}"
    return ""


@pytest.mark.promises("R21")
def test_damaged_tables(line, full, tmp_path):
    number = 5000 if full else 480
    damaged = line("R21", target=TARGET, least=number)
    folder = tmp_path / "data"

    def action(seed):
        make, read = READERS[list(READERS)[seed % len(READERS)]]
        shutil.rmtree(folder, ignore_errors=True)
        files = make()
        damage(np.random.default_rng([21, seed]), write(folder, files), files)
        try:
            return {"wrong": right(list(read(folder)), folder)}
        except ProbeError as error:
            return {"refused": str(error)}
        except Exception as error:
            return {"escaped": f"{type(error).__name__}: {error}"}

    found = list(outcomes(action, range(number)))
    for one in found:
        value = one.value or {}
        refusal = value.get("refused")
        named = refusal is not None and refusal.isprintable() and str(folder) in refusal and len(refusal) < 2000
        ok = one.kind == "done" and one.peak <= MEMORY and (named or value.get("wrong") == "")
        what = f"{list(READERS)[one.item % len(READERS)]} {one.item}: {one.kind} {value} {one.peak:,} bytes"
        damaged.trial(ok, silent=bool(value.get("wrong")), what=what)
    refusals = sum("refused" in (one.value or {}) for one in found)
    assert number * 0.4 < refusals < number * 0.95
    damaged.settle()


@pytest.mark.promises("R21")
def test_run_lengths(line, full, tmp_path):
    """Of random run lengths those that fill the picture are read, as they are, and no others."""
    number = 2000 if full else 300
    read_right = line("R21", target=TARGET, least=number)
    make, read = READERS["refcoco"]
    files = make()
    folder = write(tmp_path, files)

    def counts_of(dice):
        counts = [int(one) for one in dice.integers(0, 9, dice.integers(1, 8))]
        if dice.random() < 0.6:
            counts[-1] = max(24 - sum(counts[:-1]), 0)
        if dice.random() < 0.1:
            counts[dice.integers(len(counts))] = -1
        return counts

    def action(seed):
        counts = counts_of(np.random.default_rng([210, seed]))
        files["instances.json"]["annotations"][0]["segmentation"] = {"size": [4, 6], "counts": counts}
        (folder / "instances.json").write_text(json.dumps(files["instances.json"]))
        try:
            return next(read(folder)).phrases[0].mask.tolist()
        except ProbeError as error:
            return str(error)

    for one in outcomes(action, range(number)):
        counts = counts_of(np.random.default_rng([210, one.item]))
        inside = [number % 2 for number, count in enumerate(counts) for _ in range(max(count, 0))]
        fills = min(counts) >= 0 and len(inside) == 24 and any(inside)
        mask = [[bool(inside[row + 4 * col]) for col in range(6)] for row in range(4)] if fills else None
        refused = isinstance(one.value, str) and ("annotation 10" in one.value or "position 0" in one.value)
        ok = one.value == mask if fills else refused
        read_right.trial(ok, silent=isinstance(one.value, list), what=f"{counts}: {one}")
    read_right.settle()


@pytest.mark.promises("R21")
def test_a_table_of_one_long_line(line, tmp_path):
    """100 MB without a line break, as a text, as numbers, and as a nest."""
    long = line("R21", target=TARGET, least=3)
    folder = write(tmp_path, READERS["captions"][0]())
    contents = {"a text": b'"' + b"x" * 10**8 + b'"', "a nest": b"[" * 10**8, "blanks": b" " * 10**8}

    def action(name):
        (folder / "captions.json").write_bytes(contents[name])
        try:
            return str(list(READERS["captions"][1](folder)))
        except ProbeError as error:
            return str(error)

    for one in outcomes(action, list(contents)):
        ok = one.kind == "done" and str(folder / "captions.json") in one.value and len(one.value) < 1000
        long.trial(ok, what=f"{one.item}: {one.kind} {str(one.value)[:200]}")
    long.settle()


@pytest.mark.promises("R21")
def test_plain_folders(line, full, tmp_path):
    """Pictures, masks and captions of a folder without tables, any of them damaged."""
    number = 500 if full else 60
    damaged = line("R21", target=TARGET, least=number)
    folder = tmp_path / "data"
    files = {
        "masks/five/dog.png": DOG,
        "masks/five/red sky.png": np.where(SKY, 255, 0).astype(np.uint8),
        "five.txt": "dog, red sky",
    }

    def action(seed):
        dice = np.random.default_rng([211, seed])
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, files)
        Image.fromarray(PHOTO).save(folder / "five.jpg")
        paths = sorted(one for one in folder.rglob("*") if one.is_file())
        path = paths[dice.integers(len(paths))]
        path.write_bytes(flipped(dice, path.read_bytes()))
        try:
            return {"wrong": right(list(FORMATS["folder"](folder)), folder)}
        except ProbeError as error:
            return {"refused": str(error)}

    for one in outcomes(action, range(number)):
        value = one.value or {}
        ok = one.kind == "done" and (value.get("wrong") == "" or str(folder) in value.get("refused", ""))
        damaged.trial(ok, silent=bool(value.get("wrong")), what=f"{one.item}: {one.kind} {value}")
    damaged.settle()
