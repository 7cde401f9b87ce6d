"""The script that draws how good the masks are, on a stand-in table."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from probe.grounding.scores import MEASURES
from tests.plots.scripts import load_script


@pytest.fixture
def script() -> ModuleType:
    return load_script("segmentation")


def test_two_runs_draw_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    assert set(script.LABELS) == set(MEASURES)
    assert list(script.LABELS)[: script.RESULTS] == list(MEASURES)[: script.RESULTS]
    rows = [
        {
            "name": name,
            "value": 0.5,
            "low": 0.4,
            "high": 0.7,
            "images": 3,
            "phrases": 9,
            "setting": setting,
            "model": "m",
        }
        for setting in ("one", "two")
        for name in MEASURES
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "segmentation.csv", index=False)
    first, again = ([path.read_bytes() for path in script.draw(tmp_path, tmp_path / name)] for name in ("a", "b"))
    assert first == again


def test_a_few_scenes_are_measured(script: ModuleType, tmp_path: Path) -> None:
    script.SETTINGS = {"threshold": script.SETTINGS["threshold"]}
    script.measure(tmp_path, scenes=3)
    frame = pd.read_csv(tmp_path / "segmentation.csv").set_index("name")
    assert frame.loc["iou", "images"] == 3
    assert frame.loc["iou", "value"] > frame.loc["shuffled", "value"]
