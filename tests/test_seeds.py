"""What other seeds say beside a comparison that was measured now, from tables written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probe
from probe import seeds
from probe.analysis.differences import COLUMNS
from probe.errors import ModelError
from probe.lab.storage import MODELS, TWINS
from probe.seeds import SeedComparison, compare_seeds, read_shipped, seed_of

ONE, TWO = "lab/llava-clip", "lab/difflmm"


def rows(images: int, **readings: float) -> list[dict[str, Any]]:
    """A comparison of two twins and their difference, on so many images."""
    counts = {"images": images, "phrases": 3 * images}
    found = []
    for name, value in readings.items():
        bounds = {"value": value, "low": value - 0.1, "high": value + 0.1} | counts
        found.append({"metric": "pointing", "kind": "reading", "system": name, "name": "a reading"} | bounds)
        best = {"kind": "best head", "name": "best_head_held_out", "layer": 2, "head": 5}
        found.append({"metric": "pointing", "system": name} | best | bounds)
    first, second = readings
    gap = readings[first] - readings[second]
    pair = {"kind": "difference", "system": first, "second": second, "name": f"{first} - {second}", "p_value": 0.01}
    bounds = {"value": gap, "low": gap - 0.1, "high": gap + 0.1, "p_holm": 0.03} | counts
    return [*found, {"metric": "pointing"} | pair | bounds]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three seeds of two twins, of which the third disagrees."""
    values = {0: (0.7, 0.8), 1: (0.6, 0.9), 2: (0.8, 0.75)}
    table = [row | {"seed": seed} for seed, (a, b) in values.items() for row in rows(500, **{ONE: a, TWO: b})]
    pd.DataFrame(table).reindex(columns=["seed", *COLUMNS]).to_csv(tmp_path / "comparison.csv", index=False)
    return tmp_path


class Measured:
    """A comparison of so many images, as far as it is asked."""

    def __init__(self, images: int, a: float, b: float) -> None:
        self.images = images
        self.frame = pd.DataFrame(rows(images, **{ONE: a, TWO: b})).reindex(columns=list(COLUMNS))

    def to_frame(self) -> pd.DataFrame:
        return self.frame


@pytest.fixture
def shipped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "read_shipped", lambda names: read_shipped(names, home))
    monkeypatch.setattr(seeds, "seed_of", lambda name: 0)


def compared(images: int, a: float, b: float, *, comparable: bool = True) -> Any:
    return compare_seeds(Measured(images, a, b), [ONE, TWO], comparable=comparable)  # type: ignore[arg-type]


def test_a_table_gives_back_what_was_written(home: Path) -> None:
    found = read_shipped([ONE, TWO], home)
    assert [(one.seed, one.source) for one in found] == [(0, "shipped"), (1, "shipped"), (2, "shipped")]
    system = found[1].to_dict()["systems"][TWO]
    assert system["reading"] == "a reading"
    assert system["pointing"] == {"value": 0.9, "low": 0.8, "high": 1.0, "images": 500, "phrases": 1500}
    assert system["best_head_held_out"]["pointing"] == {"layer": 2, "head": 5} | system["pointing"]
    (pair,) = found[1].paired
    assert (pair.first, pair.second, pair.p_holm, pair.note) == (ONE, TWO, 0.03, "")
    assert pair.difference.value == pytest.approx(-0.3)
    # Differences to a system that was not asked for are left out.
    (alone, *_) = read_shipped([ONE, "lab/clip"], home)
    assert (alone.names, alone.paired) == ((ONE,), ())


@pytest.mark.usefixtures("shipped")
def test_what_is_measured_takes_the_place_of_its_own_seed() -> None:
    found, agreed = compared(500, 0.71, 0.79)
    assert [(one.seed, one.source) for one in found] == [(0, "measured"), (1, "shipped"), (2, "shipped")]
    (one,) = agreed
    assert one.differences == pytest.approx({0: -0.08, 1: -0.3, 2: 0.05})
    assert one.verdict == f"no claim: {TWO} is higher in 2 of 3 trainings"


@pytest.mark.usefixtures("shipped")
def test_trainings_are_compared_on_the_same_images_alone() -> None:
    found, agreed = compared(20, 0.9, 0.1)
    # Shown as measured; but of 20 images, so that the table speaks for its seed where trainings are set side by side.
    assert found[0].to_dict()["systems"][ONE]["pointing"]["value"] == 0.9
    assert agreed[0].differences[0] == pytest.approx(-0.1)


@pytest.mark.usefixtures("shipped")
def test_other_data_or_other_options_stand_alone() -> None:
    found, agreed = compared(500, 0.7, 0.8, comparable=False)
    assert [one.source for one in found] == ["measured"]
    assert agreed[0].verdict.startswith("no claim: too few trainings (1 of")


def test_seeds_are_those_of_the_folders(tmp_path: Path) -> None:
    assert seed_of("lab/clip") == 0
    assert seed_of("someone/else") is None
    (tmp_path / "training.json").write_text('{"seed": 7}')
    assert seed_of(str(tmp_path)) == 7
    (tmp_path / "training.json").write_text("[]")
    assert seed_of(str(tmp_path)) is None


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"comparison\.csv is not the table of all seeds"):
        read_shipped([ONE], tmp_path)
    (tmp_path / "comparison.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ModelError, match="install the package again"):
        read_shipped([ONE], tmp_path)


def test_the_shipped_tables_hold_every_twin_from_three_seeds_or_more() -> None:
    found = read_shipped(list(TWINS))
    assert len(found) >= 3
    for one in found:
        assert isinstance(one, SeedComparison)
        assert set(one.names) == set(TWINS)
        assert len(one.paired) == 18  # six pairs, three metrics
    assert {seed_of(name) for name in TWINS} == {0}
    for name in TWINS:
        assert probe.load_model(name).name == name
        assert MODELS[name].joinpath("frozen.json").is_file()
