"""Packs made to do harm: files that are something else than their names say, and names that lead elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import probe
from probe.difflmm.releases import read_release
from probe.errors import ProbeError
from probe.evaluation.predictions import read_predictions
from probe.evaluation.sources import FORMATS, read_data
from probe.images import read_image
from probe.sweep.exports import export_table
from probe.sweep.plan import SweepPlan, read_plan
from probe.sweep.store import Store
from probe.training.assembly import read_parts, read_trained
from probe.training.conversations import read_conversations
from tests.evaluation.published import PUBLISHED, write
from tests.records import make_record
from tests.training.tiny_training import conversation, write_records
from tests.trust.isolated import MEMORY, outcomes

CANARY = "executed"


class Payload:
    """Unpickled, it leaves a file where the test looks for one."""

    def __reduce__(self):
        return os.mkdir, (os.environ["PROBE_CANARY"],)


def torch_archive() -> bytes:
    """What `torch.save` would write, with the payload as its pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
        archive.writestr("archive/version", "3\n")
        archive.writestr("../../outside", "written by an archive")
    return made.getvalue()


def tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo("../../outside")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"out"))
    return made.getvalue()


def lying(head: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with this header, whose length is said to be another."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(shape=(2,), place=(0, 8), kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(place)}


#: What stands in a file whatever its name is.
CONTENTS = {
    "a pickle": lambda: pickle.dumps(Payload()),
    "an old pickle": lambda: pickle.dumps(Payload(), protocol=0),
    "a torch archive": torch_archive,
    "a tar that leads out": tar,
    "a gzip bomb": lambda: gzip.compress(bytes(50 * 2**20)),
    "a header longer than the file": lambda: lying({"a": tensor()}, bytes(8), length=2**62),
    "a header of 100 MB": lambda: lying(b" " * 10**8),
    "tensors that lie on each other": lambda: lying({"a": tensor(), "b": tensor(place=(4, 12))}, bytes(12)),
    "a tensor beyond the end": lambda: lying({"a": tensor(place=(0, 2**40), shape=(2**38,))}, bytes(8)),
    "a tensor of a negative size": lambda: lying({"a": tensor(shape=(-2,))}, bytes(8)),
    "a tensor whose size overflows": lambda: lying({"a": tensor(shape=(2**62, 4))}, bytes(8)),
    "a tensor of another size": lambda: lying({"a": tensor(shape=(3,))}, bytes(8)),
    "a header that is no object": lambda: lying([1, 2, 3]),
    "a nest": lambda: b"[" * 10**6,
    "a nest of objects": lambda: b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "a number of a million digits": lambda: b"1" * 10**6,
    "ten million commas": lambda: b"[" + b"0," * 10**7 + b"0]",
    "YAML that runs": lambda: b"!!python/object/apply:os.mkdir [" + os.environ["PROBE_CANARY"].encode() + b"]\n",
    "a script": lambda: f"#!/bin/sh\nmkdir {os.environ['PROBE_CANARY']}\n".encode(),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file pop\n",
    "a web page": lambda: b"<!doctype html><script>alert(1)</script>",
    "nothing": lambda: b"",
}
#: What else can stand under a name.
PLACES = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a folder": os.mkdir,
    "a hole of 20 GB": lambda path: (path.touch(), os.truncate(path, 20 * 2**30)),
}


def adapter(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "peft_type": "LORA", "target_modules": ["q_proj"]}))
    for name in ("adapter_model.bin", "non_lora_trainables.bin"):
        (folder / name).write_bytes(b"")


def data_set(name):
    def make(folder):
        write(folder, PUBLISHED[name]())

    return make, lambda folder: list(FORMATS[name.split()[0]](folder))


def plain_folder(folder: Path) -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 1:3] = 255
    write(folder, {"masks/five/dog.png": mask, "five.txt": "dog"})
    Image.new("RGB", (6, 4)).save(folder / "five.jpg")


def read_every_picture(folder: Path) -> None:
    for one in FORMATS["folder"](folder):
        read_image(one.image)


def readers(checkpoint):
    """Each reader: how its folder is made, and how it is read."""
    return {
        "record": (lambda at: probe.save(make_record(), at / "r.safetensors"), lambda at: probe.load(at / "r.safetensors")),
        "image": (lambda at: Image.new("RGB", (4, 4)).save(at / "a.png"), lambda at: read_image(at / "a.png")),
        "plan": (lambda at: (at / "plan.yaml").write_text("limit: 3\n"), lambda at: read_plan(at / "plan.yaml")),
        "model": (lambda at: shutil.copytree(checkpoint(), at, dirs_exist_ok=True), probe.load_model),
        "adapter": (adapter, lambda at: read_release(at, clip="a", diffusion="b")),
        "projector": (lambda at: (at / "training.json").write_text("{}"), lambda at: read_parts(str(at))),
        "trained weights": (lambda at: (at / "t.safetensors").touch(), lambda at: read_trained(at / "t.safetensors")),
        "sweep": (empty_store, lambda at: export_table(Store.open(at), at.parent / "table.parquet", partial=True)),
        "predictions": (lambda at: (at / "p.jsonl").touch(), lambda at: list(read_predictions(at / "p.jsonl"))),
        "conversations": (
            lambda at: write_records(at, [conversation(0)]),
            lambda at: read_conversations(at / "data.json", at / "images", prompt="plain"),
        ),
        "a plain folder": (plain_folder, read_every_picture),
        "a folder of any kind": (lambda at: write(at, PUBLISHED["captions"]()), lambda at: list(read_data(at)[0])),
        **{name: data_set(name) for name in PUBLISHED},
    }  # fmt: skip


def empty_store(folder: Path) -> None:
    plan = SweepPlan(limit=1)
    Store.create(folder, plan, {"model": "m"}, columns=plan.columns(), ablations=1)


def below(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.promises("R27")
def test_files_that_are_something_else(line, full, tmp_path, checkpoint, monkeypatch):
    hostile = line("R27", target="executed 0, written outside 0, one typed line", least=1200 if full else 180)
    canary, folder = tmp_path / CANARY, tmp_path / "pack"
    monkeypatch.setenv("PROBE_CANARY", str(canary))
    known, trials = readers(checkpoint), []
    for name, (make, _) in known.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        held = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        trials += [(name, file, what) for file in held for what in (*CONTENTS, *PLACES)]
    if not full:
        trials = trials[:: len(trials) // 200]

    def action(trial):
        name, file, what = trial
        make, read = known[name]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        (folder / file).unlink()
        if what in CONTENTS:
            (folder / file).write_bytes(CONTENTS[what]())
        else:
            PLACES[what](folder / file)
        before = below(tmp_path)
        try:
            read(folder)
            told = {"read": True}
        except ProbeError as error:
            told = {"refused": str(error)}
        except Exception as error:
            told = {"escaped": f"{type(error).__name__}: {error}"}
        return told | {"written": sorted(below(tmp_path) - before), "executed": canary.exists()}

    found = list(outcomes(action, trials, work=30))  # parsers of others work some seconds at ten million numbers
    for one in found:
        value = one.value or {}
        quiet = not value.get("written") and value.get("executed") is False
        typed = "read" in value or ("refused" in value and len(value["refused"]) < 2000)
        # A table of a plain number of lines may be read: what is asked is that nothing else comes of it.
        ok = one.kind == "done" and quiet and typed and one.peak <= MEMORY
        hostile.trial(
            ok, silent=not quiet and one.kind == "done", what=f"{one.item}: {one.kind} {value} {one.peak:,}"[:700]
        )
    hostile.settle()
    refused = sum("refused" in (one.value or {}) for one in found)
    assert refused > 0.7 * len(found)


#: Names out of a table that lead elsewhere.
NAMES = (
    "../secret.png", "../../secret.png", "images/../../secret.png", "/etc/passwd", "//etc/passwd", "..", ".", "", "~/secret.png",
    "..\\secret.png", "C:\\secret.png", "\\\\host\\share\\secret.png", "file:///etc/passwd", "https://example.org/a.png",
    "link.png", "links/secret.png", "pipe.png", "device.png", "circle.png", "a\x00b.png", "x" * 5000, "%2e%2e/secret.png",
    "five.png/../../secret.png", "images/./../..//secret.png", "\u2025/secret.png", "nul", "/proc/self/environ", "/dev/stdin",
    "folder",
)  # fmt: skip
#: In which table of each format a picture is named, and under which key.
NAMING = {
    "panoptic": ("panoptic.json", "file_name"),
    "captions": ("captions.json", "file_name"),
    "refcoco": ("instances.json", "file_name"),
    "png": ("annotations/panoptic_val2017.json", "file_name"),
    "grandf": ("annotations/val_test/val_gcg_coco_caption_gt.json", "id"),
    "grandf flickr": ("flickr_mergedGT_GCG_val.json", "file_name"),
    "grandf groundings": ("annotations/train/OpenPsgGCG_val.json", "file_name"),
    "grandf refs": ("RefCOCOg_GCG_val.json", "img_file_name"),
}


def renamed(value, key, name):
    """The table with this name under the key, wherever that stands."""
    if isinstance(value, dict):
        return {
            one: name if one == key and isinstance(held, str) else renamed(held, key, name)
            for one, held in value.items()
        }
    return [renamed(one, key, name) for one in value] if isinstance(value, list) else value


def hostile_names(folder: Path) -> None:
    """Links, a pipe and a device beside the pictures of a data set, wherever these lie, and a secret beside its folder."""
    Image.new("RGB", (6, 4), "red").save(folder.parent / "secret.png")
    for place in {path.parent for path in folder.rglob("*.png")} | {folder}:
        (place / "link.png").symlink_to(folder.parent / "secret.png")
        (place / "links").symlink_to(folder.parent)
        (place / "circle.png").symlink_to("circle.png")
        (place / "device.png").symlink_to("/dev/zero")
        (place / "folder").mkdir()
        os.mkfifo(place / "pipe.png")


@pytest.mark.promises("R28")
def test_names_that_lead_elsewhere(line, tmp_path):
    """No name in any table makes a reader give out, or a picture be opened, that lies outside of its folder."""
    inside = line("R28", target="0 files outside of the root, 0 hangs", least=200)
    folder = tmp_path / "root" / "data"

    def action(trial):
        name, wanted = trial
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        table, key = NAMING[name]
        files = PUBLISHED[name]()
        files[table] = renamed(files[table], key, wanted)
        write(folder, files)
        hostile_names(folder)
        given = []
        try:
            for example in FORMATS[name.split()[0]](folder):
                given.append(str(example.image))
                with open(example.image, "rb") if stat.S_ISREG(os.stat(example.image).st_mode) else io.BytesIO():
                    read_image(example.image)
        except ProbeError as error:
            return {"given": given, "refused": str(error)}
        except Exception as error:
            return {"given": given, "escaped": f"{type(error).__name__}: {error}"}
        return {"given": given}

    for one in outcomes(action, [(name, wanted) for name in NAMING for wanted in NAMES]):
        value = one.value or {}
        out = [path for path in value.get("given", ()) if not Path(path).resolve().is_relative_to(folder)]
        ok = one.kind == "done" and not out and ("refused" in value or value.get("given"))
        inside.trial(ok, silent=bool(out), what=f"{one.item}: {one.kind} {value}"[:500])
    inside.settle()


@pytest.mark.promises("R28")
def test_folders_without_tables_keep_to_themselves(line, tmp_path):
    """A picture, a mask, a folder of masks or a caption that is a link to elsewhere, a pipe or a device."""
    inside = line("R28", target="0 files outside of the root, 0 hangs", least=16)
    folder, secret = tmp_path / "data", tmp_path / "secret.png"
    Image.new("L", (6, 4), 255).save(secret)
    ways = {
        "link": lambda path: path.symlink_to(secret), "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"),
        "circle": lambda path: path.symlink_to(path.name),
    }  # fmt: skip

    def action(trial):
        file, way = trial
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        plain_folder(folder)
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        ways[way](path)
        try:
            read_every_picture(folder)
        except ProbeError as error:
            return str(error)
        return None

    for one in outcomes(
        action, [(file, way) for file in ("five.jpg", "masks/five/dog.png", "masks/five", "five.txt") for way in ways]
    ):
        inside.trial(one.kind == "done" and isinstance(one.value, str), silent=one.value is None, what=f"{one}")
    inside.settle()
