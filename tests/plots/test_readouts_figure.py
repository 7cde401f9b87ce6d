"""The script that draws how a map is read, from the shipped table."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from probe.lab.storage import TWIN_TABLES
from tests.plots.scripts import DATA, load_script

NAME = "lab/difflmm"


def test_each_row_holds_the_stored_numbers_of_its_way() -> None:
    script, table = load_script("readouts"), pd.read_csv(TWIN_TABLES / "readouts.csv")
    _, ax = plt.subplots()
    script.draw_readouts(ax, table[table["system"] == NAME], NAME)
    with open(TWIN_TABLES / "readouts.csv", newline="", encoding="utf-8") as file:
        rows = [one for one in csv.DictReader(file) if one["system"] == NAME]
    marks = [one for one in ax.lines if one.get_marker() == "o"]
    labels = [one.get_text() for one in ax.get_yticklabels()]
    assert len(marks) == len(labels) == 12
    for place, (mark, label) in enumerate(zip(marks, labels, strict=True)):
        subtracted, heads, combine = label.split(", ")
        reading = {"Eq. 3": "minus mean", "no Eq. 3": "attention"}[subtracted]
        way = (reading, heads.split()[0], combine)
        stored = [float(one["value"]) for one in rows if (one["reading"], one["heads"], one["combine"]) == way]
        assert list(mark.get_xdata()) == stored
        assert abs(mark.get_ydata() - place).max() < 0.5  # in its row
        assert (mark.get_markerfacecolor() == "white") == (reading == "attention")


def test_the_caption_counts_what_the_table_holds(tmp_path: Path) -> None:
    table = pd.read_csv(TWIN_TABLES / "readouts.csv")
    table[table["seed"] < 2].assign(images=7, phrases=19).to_csv(tmp_path / "readouts.csv", index=False)
    said = load_script("readouts").caption(DATA, tables=tmp_path)
    assert "each of 2 seeds" in said
    assert "7 unseen scenes a seed (19 phrases)" in said
