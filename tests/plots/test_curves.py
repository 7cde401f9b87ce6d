"""Curves over training, layers and tokens, from tables made by hand."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import probe
from probe.analysis.profiles import profile
from probe.errors import InputError
from tests.analysis.images import make_images

STEPS = (0, 100, 400, 2500)
VALUES = {"caption_loss": (6.0, 1.0, 0.5, 0.2), "minus_mean": (0.1, 0.3, 0.6, 0.9), "floor": (0.2, 0.3, 0.2, 0.05)}


def make_table():
    margin = {"margin": tuple(a - b for a, b in zip(VALUES["minus_mean"], VALUES["floor"], strict=True))}
    rows = [
        {
            "step": step,
            "metric": "pointing",
            "name": name,
            "value": value,
            "low": value - 0.04,
            "high": value + 0.05,
            "images": 60,
        }
        for name, values in (VALUES | margin | {"chance": (0.06,) * 4}).items()
        for step, value in zip(STEPS, values, strict=True)
    ]
    return pd.DataFrame(rows)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_training_is_drawn_with_floor_chance_and_loss():
    ax = probe.plots.emergence(make_table())
    assert np.array_equal(lines(ax)["minus mean"].get_xydata(), np.c_[STEPS, VALUES["minus_mean"]])
    assert np.array_equal(lines(ax)["floor: other phrase + paraphrase"].get_ydata(), VALUES["floor"])
    assert set(lines(ax)["chance"].get_ydata()) == {0.06}
    [right] = [one for one in ax.figure.axes if one is not ax]
    assert np.array_equal(lines(right)["caption loss (right)"].get_ydata(), VALUES["caption_loss"])
    assert right.get_ylabel() == "caption loss,\nnats a token"
    assert texts(ax) == ["minus mean", "floor: other phrase + paraphrase", "chance", "caption loss (right)"]
    assert "60 images" in ax.get_title()


def test_bands_are_the_intervals():
    ax = probe.plots.emergence(make_table())
    corners = ax.collections[0].get_paths()[0].vertices
    for step, value in zip(STEPS, VALUES["minus_mean"], strict=True):
        at = corners[corners[:, 0] == step, 1]
        assert (at.min(), at.max()) == pytest.approx((value - 0.04, value + 0.05))


def test_only_what_beats_the_floor_is_filled():
    ax = probe.plots.emergence(make_table())
    [filled] = [one for one in ax.get_lines() if one.get_linestyle() == "None"]
    assert list(filled.get_xdata()) == [400, 2500]
    assert ax.get_legend().get_title().get_text() == "filled: beats floor and chance"
    never = make_table().assign(low=-1.0)
    none = probe.plots.emergence(never)
    assert not [one for one in none.get_lines() if one.get_linestyle() == "None"]
    assert none.get_legend().get_title().get_text() == ""


def test_the_callbacks_wide_table_is_the_same_picture():
    table = make_table()
    wide = pd.DataFrame({"step": STEPS})
    for name, part in table.groupby("name"):
        for column, key in ((name, "value"), (f"{name}_low", "low"), (f"{name}_high", "high")):
            wide[column] = part[key].to_numpy()
    one, other = probe.plots.emergence(table), probe.plots.emergence(wide)
    assert set(lines(one)) == set(lines(other))
    for label in ("minus mean", "floor: other phrase + paraphrase"):
        assert np.array_equal(lines(one)[label].get_xydata(), lines(other)[label].get_xydata())


def test_a_profile_and_its_table_are_drawn_where_they_are_told(tmp_path):
    images = make_images(4)
    found = profile([record for record, _ in images], [masks for _, masks in images], replicates=20)
    figure, (first, second) = plt.subplots(1, 2)
    assert probe.plots.emergence(found, ax=first) is first
    found.to_frame().to_csv(tmp_path / "table.csv", index=False)
    probe.plots.emergence(pd.read_csv(tmp_path / "table.csv"), ax=second)
    for label in ("one layer, mean over heads", "mean up to this layer"):
        assert np.allclose(lines(first)[label].get_ydata(), lines(second)[label].get_ydata())
    assert list(lines(first)["one layer, mean over heads"].get_ydata()) == [
        one.score.value for one in found.positions if one.kind == "layer"
    ]
    assert len(figure.axes) == 2


def test_tokens_stand_in_order_with_their_names():
    images = make_images(4)
    found = profile([record for record, _ in images], [masks for _, masks in images], over="token", replicates=20)
    ax = probe.plots.emergence(found)
    ax.figure.draw_without_rendering()
    shown = [" ".join(one.get_text().split()) for one in ax.get_xticklabels()]
    assert shown == [one.label for one in found.positions]
    assert list(lines(ax)["token's map on its phrase"].get_ydata()) == [one.score.value for one in found.positions]


@pytest.mark.parametrize("wrong", [pd.DataFrame({"a": [1]}), pd.DataFrame(), make_table().iloc[:0], 3])
def test_anything_else_is_refused(wrong):
    with pytest.raises(InputError, match="found must be a TrainingCurve, a Profile or a table"):
        probe.plots.emergence(wrong)
    with pytest.raises(InputError, match="no rows of 'minus_mean'"):
        probe.plots.emergence(make_table().query("name == 'floor'"))
