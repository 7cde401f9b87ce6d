"""The script that draws remedies for sinks and gradient baselines: the saved table, and a few scenes measured again."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import probe
from probe.analysis.sinks import REMEDIES
from tests.plots.scripts import DATA, load_script


@pytest.mark.parametrize("metric", ["pointing", "lift"])
def test_marks_stand_at_the_stored_numbers(metric: str) -> None:
    script, table = load_script("remedies"), pd.read_csv(DATA / "remedies.csv")
    _, ax = plt.subplots()
    script.draw_panel(ax, table[table["metric"] == metric], metric)
    with open(DATA / "remedies.csv", newline="", encoding="utf-8") as file:
        rows = {one["remedy"]: one for one in csv.DictReader(file) if one["metric"] == metric}
    marks = [one for one in ax.lines if one.get_marker() in "o^"]
    assert [one.get_xdata()[0] for one in marks] == [float(rows[name]["value"]) for name in script.LABELS]
    spans = [one.get_xdata() for one in ax.lines if len(one.get_xdata()) == 2 and one.get_linewidth() == 1.4]
    assert np.array_equal(spans, [[float(rows[name][end]) for end in ("low", "high")] for name in script.LABELS])
    # What a subtraction raises by itself is no better map.
    empty = {name for name, one in zip(script.LABELS, marks, strict=True) if one.get_markerfacecolor() == "white"}
    assert empty == ({name for name in rows if name.endswith("minus mean")} if metric == "lift" else set())


def test_every_remedy_has_a_row_and_is_drawn() -> None:
    script = load_script("remedies")
    assert set(script.LABELS) == {*REMEDIES, *script.GRADIENTS}


def test_a_few_scenes_can_be_measured_again(tmp_path: Path) -> None:
    """The gradient rows are those of a plain run of the same scenes."""
    script = load_script("remedies")
    script.measure(tmp_path, scenes=2)
    table = pd.read_csv(tmp_path / "remedies.csv").set_index(["metric", "remedy"])
    assert set(table.index) == {(metric, name) for metric in script.METRICS for name in script.LABELS}
    from probe.evaluation.lab import read_lab

    subject, hits = probe.load_model(script.MODEL), []
    for one in read_lab("lab", limit=2, seed=script.SEED):
        spans = [(part.start, part.end) for part in one.phrases]
        [layer] = probe.relevance(subject, one.image, one.text, spans, method="chefer").layers
        for values, part in zip(layer.values[0, 0].numpy(), one.phrases, strict=True):
            row, col = np.unravel_index(values.argmax(), values.shape)
            side = part.mask.shape[0] // values.shape[0]
            hits.append(part.mask[row * side + side // 2, col * side + side // 2])
    assert table.loc[("pointing", "chefer"), "value"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert table.loc[("pointing", "chefer"), "phrases"] == len(hits)
