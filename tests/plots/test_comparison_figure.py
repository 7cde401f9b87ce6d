"""The script that draws the comparison: on stand-in tables, whose numbers must be those that are drawn."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probe.analysis.agreement import agreements
from probe.analysis.differences import COLUMNS
from probe.lab.storage import TWINS
from probe.seeds import read_shipped
from probe.training_tables import TrainingTable
from tests.plots.scripts import load_script

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("comparison")


def bounds(value: float, images: int = 500) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "images": images, "phrases": 3 * images}


def comparison(script: ModuleType, seed: int, images: int = 500) -> list[dict[str, Any]]:
    """Readings, controls, best heads and differences of all systems from one seed, drawn at random."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for metric in script.METRICS:
        values = {name: float(random.uniform(0.6, 0.9)) for name in script.SYSTEMS}
        for name, value in values.items():
            shared = {"metric": metric, "system": name}
            rows.append(shared | {"kind": "reading", "name": "a reading"} | bounds(value, images))
            rows.append(shared | {"kind": "best head", "name": "best", "layer": 1, "head": 2} | bounds(value, images))
            for label, control in (("chance", 0.05), ("floor", 0.1), ("oracle_patch", 0.99)):
                rows.append(shared | {"kind": "control", "name": label} | bounds(control, images))
        for first, second in combinations(script.SYSTEMS, 2):
            pair = {"metric": metric, "kind": "difference", "system": first, "second": second, "name": "d"}
            gap = bounds(values[first] - values[second], images)
            rows.append(pair | gap | {"p_value": 0.01, "p_holm": 0.02})
    return rows


@pytest.fixture(scope="module")
def home(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every table that is drawn."""
    folder = tmp_path_factory.mktemp("tables")
    table = [row | {"seed": seed} for seed in SEEDS for row in comparison(script, seed)]
    pd.DataFrame(table).reindex(columns=["seed", *COLUMNS]).to_csv(folder / "comparison.csv", index=False)
    training = [
        {
            "seed": seed,
            "arm": arm,
            "step": step,
            "minus_mean": min(0.9, 0.1 + step / 900),
            "chance": 0.05,
            "oracle_patch": 0.99,
        }
        for seed, arm, step in product(SEEDS, TWINS.values(), (0, 100, 750))
    ]
    pd.DataFrame(training).to_csv(folder / "training.csv", index=False)
    for over, values in (("timestep", script.TIMESTEPS), ("draw", range(script.DRAWS))):
        series = pd.DataFrame([row | {"at": value} for value in values for row in comparison(script, value, 100)])
        series[series["kind"].isin(["reading", "difference"])].assign(over=over).to_csv(
            folder / f"comparison-{over}s.csv", index=False
        )
    return folder


def marks(ax: Any) -> list[float]:
    """The places along x of everything that is drawn as a mark."""
    lines = [one for one in ax.lines if one.get_marker() not in ("None", "", None)]
    return [float(x) for one in lines for x in np.ravel(one.get_xdata())]


def test_numbers_drawn_are_numbers_stored(script: ModuleType, home: Path) -> None:
    import matplotlib.pyplot as plt

    table = pd.read_csv(home / "comparison.csv")
    seeds = read_shipped(script.SYSTEMS, home)
    figure, axes = plt.subplots(1, 2)
    script.draw_readings(axes[0], seeds, "auroc")
    stored = table[(table["kind"] == "reading") & (table["metric"] == "auroc")]
    twins = stored[stored["system"].isin(TWINS)]["value"].tolist()
    encoders = stored[stored["system"].isin(script.ENCODERS) & (stored["seed"] == 0)]["value"].tolist()
    assert sorted(marks(axes[0])) == pytest.approx(sorted([*twins, *encoders]))
    agreed = agreements({one.seed: one.paired for one in seeds}, trained=tuple(TWINS))  # type: ignore[misc]
    script.draw_differences(axes[1], agreed, "lift")
    stored = table[(table["kind"] == "difference") & (table["metric"] == "lift")]
    of_encoders = stored["system"].isin(script.ENCODERS).astype(int) + stored["second"].isin(script.ENCODERS)
    # An encoder against a twin stands in the table alone; both encoders are the same from seed to seed.
    expected = [*stored[of_encoders == 0]["value"], stored[of_encoders == 2]["value"].mean()]
    assert sorted(marks(axes[1])) == pytest.approx(sorted(expected))
    plt.close(figure)


def test_few_scenes_can_be_measured_again(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SYSTEMS", ("lab/clip", "lab/diffusion"))
    monkeypatch.setattr(script, "TWINS", {"lab/clip": "stands in for a twin"})
    script.measure(tmp_path, scenes=2, draws=2, timesteps=(100, 500))
    for name in ("timesteps", "draws"):
        assert len(pd.read_csv(tmp_path / f"comparison-{name}.csv"))


def test_training_tables_have_the_columns_that_are_drawn(tmp_path: Path) -> None:
    names = TrainingTable.__module__
    from probe.training_tables import _COLUMNS

    assert {"step", "minus_mean", "chance", "oracle_patch"} <= set(_COLUMNS), names
