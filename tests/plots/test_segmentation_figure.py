"""The script that draws how good the masks are, on a stand-in table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from probe.grounding.scores import MEASURES

SCRIPT = Path(__file__).parents[2] / "figures" / "segmentation.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("segmentation_figure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    first, again = (
        [path.read_bytes() for path in script.draw(tmp_path / "table.csv", tmp_path / name)] for name in ("a", "b")
    )
    assert first == again


def test_a_few_scenes_are_measured(script: ModuleType, tmp_path: Path) -> None:
    script.SETTINGS = {"threshold": script.SETTINGS["threshold"]}
    frame = script.measure(3, tmp_path / "table.csv").set_index("name")
    assert frame.loc["iou", "images"] == 3
    assert frame.loc["iou", "value"] > frame.loc["shuffled", "value"]
    kept = pd.read_csv(tmp_path / "table.csv").set_index("name")
    assert kept.loc["iou", "value"] == pytest.approx(frame.loc["iou", "value"], abs=1e-12)
