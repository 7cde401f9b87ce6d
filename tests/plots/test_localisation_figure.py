"""The script that draws every head of every small model: the saved table, and a few scenes measured again."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tests.plots.scripts import DATA, load_script


@pytest.mark.parametrize("name", ["lab/llava", "lab/clip", "lab/diffusion"])
def test_cells_hold_the_stored_numbers_and_the_highest_is_outlined(name: str) -> None:
    script = load_script("localisation")
    table = pd.read_csv(DATA / "localisation.csv")
    _, ax = plt.subplots()
    script.draw_grid(ax, table[(table["system"] == name) & (table["kind"] == "head")], name)
    with open(DATA / "localisation.csv", newline="", encoding="utf-8") as file:
        rows = [one for one in csv.DictReader(file) if one["system"] == name and one["kind"] == "head"]
    stored = {(int(float(one["layer"])), int(float(one["head"]))): float(one["value"]) for one in rows}
    shown = {(int(one.get_position()[1]), int(one.get_position()[0])): one.get_text() for one in ax.texts}
    assert shown == {place: f"{value:.2f}".lstrip("0") for place, value in stored.items()}
    layer, head = max(stored, key=lambda place: stored[place])
    assert {one.get_xy() for one in ax.patches} == {(head - 0.5, layer - 0.5)}


def test_the_caption_says_what_the_best_heads_reach_where_they_were_not_chosen() -> None:
    script, table = load_script("localisation"), pd.read_csv(DATA / "localisation.csv")
    said = script.caption(DATA)
    for name in script.SYSTEMS:
        [row] = table[(table["system"] == name) & (table["name"] == "best_head_held_out")].to_dict("records")
        assert f"{name} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" in said


def test_a_few_scenes_can_be_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("localisation")
    monkeypatch.setattr(script, "SYSTEMS", ("lab/llava", "lab/clip"))
    script.measure(tmp_path, scenes=3)
    table = pd.read_csv(tmp_path / "localisation.csv")
    heads = table[table["kind"] == "head"].groupby("system").size()
    assert heads.to_dict() == {"lab/llava": 4 * 8, "lab/clip": 4 * 4}
    assert set(table["images"]) <= {1, 2, 3}  # what is held out, and controls of other images, rest on fewer
    assert set(table["kind"]) == {"head", "reading", "held-out", "control"}
