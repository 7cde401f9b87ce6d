"""A sweep's key after each of many changes of a single thing that its rows depend on."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from probe.evaluation.examples import Example, ExamplePhrase
from probe.sweep import identity
from probe.sweep.identity import ModelOutline, digest_of, example_digest, identify
from probe.sweep.plan import SweepPlan
from probe.sweep.store import Store

CONFIG = {"model_type": "llava", "hidden_size": 8, "heads": 4, "vision": {"size": 8}}
PLAN = SweepPlan(limit=3, layers="0-1", how="zero, mean")
LIVE = {"dtype": "float32", "kernel": "sdpa", "engine": "e"}


def example(path):
    mask = np.zeros((6, 5), bool)
    mask[2:4, 1:3] = True
    return Example("one", path, "a red circle", (ExamplePhrase("red circle", 2, 12, mask),))


def files(folder):
    """A model's folder and a picture."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "chat_template.jinja").write_text("USER: {{ prompt }}")
    Image.fromarray(np.arange(90, dtype=np.uint8).reshape(6, 5, 3)).save(folder.parent / "picture.png")
    return ModelOutline("m", folder, 2, 4)


def key_of(outline, plan=PLAN, shown=None, **live):
    """The key of the chunk of one example, as the store makes it."""
    found = identify(plan, outline, **LIVE | live)
    store = Store(Path("nowhere"), {"identity": found, "key": digest_of(found), "columns": [], "ablations": 1})
    return store.chunk_key([example_digest(shown or example(outline.folder.parent / "picture.png"))])


def changed_byte(path, place):
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.write_bytes(bytes(data))


def single_changes(outline, monkeypatch):
    """The key after each of many changes of a single thing, under its name, everything else as it was."""
    folder, picture = outline.folder, outline.folder.parent / "picture.png"
    choice = random.Random(0)
    for path in (folder / "model.safetensors", folder / "config.json", folder / "chat_template.jinja", picture):
        data = path.read_bytes()
        for place in choice.sample(range(len(data)), min(len(data), 18 if path.suffix == ".jinja" else 30)):
            changed_byte(path, place)
            yield f"{path.name} {place}", key_of(outline)
            path.write_bytes(data)
        path.write_bytes(data[:-1])
        yield f"{path.name} cut", key_of(outline)
        path.write_bytes(data)
    other = {
        "model": "m2", "data": "lab:clutter", "limit": 4, "seed": 1, "prompt": "Describe.", "kinds": "layers", "layers": "0",
        "heads": "0", "how": "mean", "effects": "auroc", "reference": "lab", "reference_limit": 5, "chunk": 3,
    }  # fmt: skip
    for name, value in other.items():
        yield name, key_of(outline, replace(PLAN, **{name: value}))
    for number in range(40):
        text = PLAN.prompt[:number] + "x" + PLAN.prompt[number:]
        yield f"prompt {number}", key_of(outline, replace(PLAN, prompt=text + " " * number))
    for name, values in {
        "dtype": ["float16", "bfloat16", "float64"],
        "kernel": ["eager", "flash"],
        "engine": ["f"],
    }.items():
        for value in values:
            yield f"{name} {value}", key_of(outline, **{name: value})
    one = example(picture)
    for number in range(30):
        mask = one.phrases[0].mask.copy()
        mask.flat[number] ^= True
        yield f"mask {number}", key_of(outline, shown=replace(one, phrases=(replace(one.phrases[0], mask=mask),)))
    yield "name", key_of(outline, shown=replace(one, name="two"))
    yield "text", key_of(outline, shown=replace(one, text="a red circle."))
    yield "phrase", key_of(outline, shown=replace(one, phrases=(replace(one.phrases[0], text="circle", start=6),)))
    yield "size", key_of(outline, shown=replace(one, phrases=(replace(one.phrases[0], mask=one.phrases[0].mask.T),)))
    yield "layers of the model", key_of(replace(outline, layers=3))
    yield "heads of the model", key_of(replace(outline, heads=5))
    for name, value in (("__version__", "9.9"), ("FORMAT", 99)):
        with monkeypatch.context() as patch:
            patch.setattr(identity, name, value)
            yield name, key_of(outline)
    real = identity.importlib.metadata.version
    for library in ("torch", "transformers"):
        with monkeypatch.context() as patch:
            patch.setattr(identity.importlib.metadata, "version", lambda one, w=library: "0" if one == w else real(one))
            yield library, key_of(outline)
