from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import probe.plots
from probe.analysis.usage import HeadUse
from probe.errors import InputError


def effects_table() -> pd.DataFrame:
    rows = [
        {
            "layer": layer,
            "head": head,
            "effect": "log_probability",
            "how": "zero",
            "before": -3.0,
            "images": 9,
            "phrases": 20,
        }
        | {"change": change, "low": change - 0.1, "high": change + 0.1}
        for (layer, head), change in {(0, 0): -1.0, (0, 2): 0.05, (3, 0): 0.5, (3, 2): -0.2}.items()
    ]
    return pd.DataFrame(rows)


def test_cells_are_the_changes_and_dots_the_unsure_ones() -> None:
    ax = probe.plots.effects(effects_table())
    drawn = ax.images[0]
    assert np.ma.allequal(drawn.get_array(), np.array([[-1.0, 0.05], [0.5, -0.2]]))
    assert (drawn.norm.vmin, drawn.norm.vcenter, drawn.norm.vmax) == (-1, 0, 1)
    [dots] = ax.lines
    assert list(zip(*dots.get_data(), strict=True)) == [(1, 0)]  # head 2 of layer 0
    assert [one.get_text() for one in ax.get_yticklabels()] == ["0", "3"]
    assert [one.get_text() for one in ax.get_xticklabels()] == ["0", "2"]
    assert "log-probability" in ax.figure.axes[1].get_ylabel()


def test_a_scale_can_be_shared_and_must_be_one() -> None:
    assert probe.plots.effects(effects_table(), limit=4).images[0].norm.vmax == 4
    for wrong in (0, -1, float("nan")):
        with pytest.raises(InputError, match="limit"):
            probe.plots.effects(effects_table(), limit=wrong)
    with pytest.raises(InputError, match="no change of any head"):
        probe.plots.effects(effects_table().assign(change=np.nan))


def test_points_and_bars_are_the_tables() -> None:
    heads = pd.DataFrame(
        {"layer": [0, 0, 1], "head": [0, 1, 0], "localises": [0.1, 0.9, 0.5], "localises_low": [0.0, 0.8, 0.4],
         "localises_high": [0.2, 1.0, 0.7], "used": [-1.0, 2.0, 0.5], "used_low": [-2.0, 1.0, 0.1], "used_high": [0.0, 3.0, 0.9]}
    )  # fmt: skip
    row = {"measure": "spearman", "value": 0.42, "low": 0.1, "high": 0.7, "chance": 0.0, "heads": 3, "images": 9}
    ax = probe.plots.use(HeadUse(heads, pd.DataFrame([row]), "pointing", "log_probability", "zero", 10))
    markers = [one for one in ax.lines if one.get_marker() == "o"]
    assert [list(zip(*one.get_data(), strict=True)) for one in markers] == [[(0.1, -1.0), (0.9, 2.0)], [(0.5, 0.5)]]
    bars = sorted(tuple(map(tuple, part.round(6).tolist())) for one in ax.collections for part in one.get_segments())
    assert ((0.1, -2.0), (0.1, 0.0)) in bars
    assert ((0.4, 0.5), (0.7, 0.5)) in bars
    assert "0.42 [0.10, 0.70] over 3 heads" in ax.get_title()


def test_curves_begin_with_all_heads() -> None:
    common = {"how": "mean", "before": -2.0, "images": 5, "phrases": 9}
    rows = [
        common
        | {"order": order, "heads": heads, "effect": effect, "change": -heads * slope, "low": -heads, "high": 0.0}
        for order, slope in (("best first", 0.5), ("random 0", 0.1), ("random 1", 0.2))
        for heads in (2, 1)
        for effect in ("log-probability", "pointing")
    ]
    ax = probe.plots.removal(pd.DataFrame(rows))
    curves = [tuple(map(list, one.get_data())) for one in ax.lines]
    assert curves == [([0, 1, 2], [-2, -2.5, -3]), ([0, 1, 2], [-2, -2.1, -2.2]), ([0, 1, 2], [-2, -2.2, -2.4])]
    assert [one.get_text() for one in ax.get_legend().get_texts()] == ["best first", "random orders"]
    with pytest.raises(InputError, match="no effect 'log_probability'"):
        probe.plots.removal(pd.DataFrame(rows), effect="log_probability")
