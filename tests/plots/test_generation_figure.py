"""The script that draws what lab/diffusion makes of captions, on stand-in pictures."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.plots.scripts import load_script


@pytest.fixture
def script() -> ModuleType:
    return load_script("generation")


def test_two_runs_draw_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3 * 8, 2 * 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "generation.png")
    facts = {"model": "m", "captions": ["a", "b " * 60, "c"], "seeds": [5], "steps": 2, "guidance": 3.0}
    facts["recognised"] = {"captions": 8, "drawn": [0.5, 0.25, 0.75], "scenes": [1.0, 1.0, 1.0]}
    (tmp_path / "generation.json").write_text(json.dumps(facts))
    assert "for 0.50 [0.25, 0.75] of 8 such pictures" in script.caption(tmp_path)
    first, again = ([path.read_bytes() for path in script.draw(tmp_path, tmp_path / name)] for name in ("one", "two"))
    assert first == again
    other = noise.copy()
    other[-8:, -8:] = 255 - other[-8:, -8:]  # the last caption's only seed
    Image.fromarray(other).save(tmp_path / "generation.png")
    assert [path.read_bytes() for path in script.draw(tmp_path, tmp_path / "three")][1] != first[1]


def test_pictures_of_a_row_are_the_scene_and_then_the_seeds(script: ModuleType, tmp_path: Path) -> None:
    script.SCENES, script.SEEDS, script.STEPS, script.RECOGNISED = 2, (4,), 2, 16
    script.measure(tmp_path)
    kept = json.loads((tmp_path / "generation.json").read_text())
    grid = np.asarray(Image.open(tmp_path / "generation.png"))
    assert grid.shape == (2 * 64, 2 * 64, 3)
    from probe.lab.scenes import SceneSettings, scene

    second = scene(1, settings=SceneSettings(size=64))
    assert kept["captions"][1] == second.caption
    # Two steps draw nothing that can be recognised; the scenes themselves nearly always are.
    assert kept["recognised"]["drawn"][0] < 0.5 < kept["recognised"]["scenes"][0]
    assert np.array_equal(grid[64:, :64], np.asarray(second.image))
