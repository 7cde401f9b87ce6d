"""The script that draws the table of families: what was saved, and one family checked again."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from probe.families import FAMILIES
from tests.plots.scripts import DATA, load_script


def test_the_saved_table_holds_every_family_there_is() -> None:
    """Fails when a family is added and the table was not measured again."""
    table = pd.read_csv(DATA / "families.csv")
    assert list(table["family"]) == [one.name for one in FAMILIES]
    assert list(table["kind"]) == [one.kind for one in FAMILIES]


def test_cells_are_the_stored_numbers() -> None:
    script, table = load_script("families"), pd.read_csv(DATA / "families.csv")
    _, ax = plt.subplots()
    script.draw_table(ax, table)
    with open(DATA / "families.csv", newline="", encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    for place, row in enumerate(stored):
        cells = sorted((one.get_position()[0], one.get_text()) for one in ax.texts if one.get_position()[1] == place)
        texts = [text.replace("\N{MINUS SIGN}", "-") for _, text in cells]
        assert texts[:2] == [row["family"], row["kind"]]
        for text, key in zip(texts[3:6], ("parity", "parity_float64", "certificate"), strict=True):
            assert float(text) == pytest.approx(float(row[key]), rel=0.34)  # one digit
        assert texts[6:] == [row["geometry_wrong_cells"], row["state_differences"], "yes"]


def test_what_failed_or_is_not_there_is_seen() -> None:
    script = load_script("families")
    row = pd.read_csv(DATA / "families.csv").iloc[0]
    shown = script.cells(row.copy().replace({True: False}).where(row.index != "parity_float64"))
    assert (shown[4], shown[-1]) == ("\N{EN DASH}", "NO")


def test_a_family_can_be_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("families")
    monkeypatch.setattr(script, "FAMILIES", [one for one in FAMILIES if one.name == "vit"])
    script.measure(tmp_path)
    [row] = pd.read_csv(tmp_path / "families.csv").to_dict("records")
    assert (row["family"], row["kind"], row["passed"], row["state_differences"]) == ("vit", "image encoder", True, 0)
    assert row["parity"] < 1e-6
