"""The script that draws the README's picture, on stand-in data."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import probe
from tests.plots.scores import make_frame
from tests.plots.scripts import load_script
from tests.records import make_grid, make_record


@pytest.fixture
def script() -> ModuleType:
    return load_script("readme")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    record = make_record(grid=make_grid(8, 8, image_size=(64, 64)))
    probe.save(record, tmp_path / "readme.safetensors")
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "readme.png")
    masks = np.zeros((64, 64), dtype=np.uint8)
    masks[8:24, 8:24], masks[32:48, 32:60] = 1, 2
    Image.fromarray(masks).save(tmp_path / "readme-masks.png")
    facts = {"model": "lab/llava", "prompt": "What is it?", "scene": 0, "phrases": ["red circle", "blue square"]}
    (tmp_path / "readme.json").write_text(json.dumps(facts))
    make_frame(np.random.default_rng(0).random((4, 8))).to_csv(tmp_path / "readme-scores.csv", index=False)
    return tmp_path


def test_it_is_drawn_as_wide_as_both_columns(script: ModuleType, data: Path, tmp_path: Path) -> None:
    _, picture = script.draw(data, tmp_path / "first")
    assert Image.open(picture).width == pytest.approx(6.9 * 300, abs=1)
