"""The script that draws the protocols: from a stand-in table, whose numbers must be those that are drawn."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tests.plots.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("protocols")


@pytest.fixture
def table(script: ModuleType) -> pd.DataFrame:
    """Every row that is drawn, drawn at random."""
    random = np.random.default_rng(3)
    rows = []
    for model, refiner, (protocol, measure) in product(script.MODELS, script.REFINERS, script.MEASURES.items()):
        for name, control in product(
            {measure, *(script.MATCHINGS if protocol == "gcg" else ())}, ("", *script.CONTROLS)
        ):
            value = float(random.uniform(0.1, 0.9))
            bounds = {"value": value, "low": value - 0.05, "high": value + 0.05, "images": 12, "phrases": 34}
            rows.append(
                {"measure": name, "control": control, "model": model, "protocol": protocol, "refiner": refiner} | bounds
            )
    return pd.DataFrame(rows)


def points(ax: plt.Axes, marker: str) -> list[float]:
    """Where marks of this kind stand across, those of the legend left out."""
    lines = [one for one in ax.lines if one.get_marker() == marker and len(one.get_xdata())]
    return [float(one.get_xdata()[0]) for one in lines]


def test_what_is_drawn_is_what_the_table_says(script: ModuleType, table: pd.DataFrame) -> None:
    model = "lab/difflmm"
    part = table[(table["model"] == model) & (table["protocol"] == "gcg") & (table["refiner"] == "lab/sam")]
    _, ax = plt.subplots()
    script.draw_matchings(ax, table, model)
    for marker, control in (("s", ""), ("x", "shuffled"), ("^", "oracle masks")):
        rows = part[part["control"] == control].set_index("measure")["value"]
        assert points(ax, marker) == [rows[one] for one in script.MATCHINGS]
    _, ax = plt.subplots()
    script.draw_refiners(ax, table, "png")
    rows = table[(table["protocol"] == "png") & (table["control"] == "")].set_index(["model", "refiner"])["value"]
    for model, marker in script.MARKERS.items():
        assert points(ax, marker) == [rows[model, refiner] for refiner in script.REFINERS]


def test_it_is_drawn_and_says_how_many(script: ModuleType, table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "protocols.csv", index=False)
    for path in script.draw(tmp_path, tmp_path / "figure"):
        assert path.stat().st_size > 5000
    assert "12 scenes with 34 phrases" in script.caption(tmp_path)
