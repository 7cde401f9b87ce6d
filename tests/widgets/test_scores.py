"""Scores beside maps are those of the metrics, in their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.analysis import controls
from probe.analysis.heads import score_heads
from probe.analysis.metrics import METRICS
from probe.analysis.targets import Target
from probe.errors import InputError
from probe.widgets.scores import COLUMNS, SHOWN_METRICS, PhraseScores
from probe.widgets.sheets import make_sheet
from tests.records import make_record
from tests.widgets.made import disc, padded_grid

MASKS = {"red circle": disc(), ("blue", 0): disc(centre=(30, 50))}


@pytest.fixture
def record():
    return make_record(grid=padded_grid())


def test_each_column_is_its_own_control(record):
    scores = PhraseScores.of(record, MASKS)
    assert [(one.text, one.start, one.tokens) for one in scores.phrases] == [
        ("red circle", 2, (1, 2)),
        ("blue", 19, (5,)),
    ]
    grid = record.layers[0].grid
    maps = torch.as_tensor(
        np.stack([one.heads[1][2] for one in scores.sheets(record, timestep=None, reading="attention")])
    )
    found = scores.of_maps(maps, grid)
    assert found.shape == (len(SHOWN_METRICS), len(COLUMNS), 2)
    target = Target.from_masks(grid, np.stack(list(MASKS.values())))
    for row, name in zip(found, SHOWN_METRICS, strict=True):
        metric = METRICS[name]
        plain = {
            "this map": metric(maps, target),
            "chance": controls.chance(metric, target),
            "centre_prior": metric(controls.centre_prior(grid), target),
            "object_size_prior": metric(controls.object_size_prior(target), target),
            "other_phrase": metric(maps.flip(0), target),  # of two phrases the other one
            "oracle_patch": controls.oracle_patch(metric, target),
        }
        for column, values in zip(COLUMNS, row, strict=True):
            np.testing.assert_array_equal(values, plain[column])


def test_heads_score_what_score_heads_says(record):
    scores = PhraseScores.of(record, {"red circle": disc()})
    sheets = scores.sheets(record, timestep=None, reading="minus mean")
    table = score_heads([record], [{"red circle": disc()}], metric=list(SHOWN_METRICS)).to_frame()
    for layer in range(2):
        found = scores.of_heads(sheets, layer, record.layers[layer].grid)
        for name, row in zip(SHOWN_METRICS, found, strict=True):
            one = table[(table["metric"] == name) & (table["kind"] == "head") & (table["layer"] == layer)]
            np.testing.assert_allclose(row[:, 0], one.sort_values("head")["value"].astype(float), rtol=1e-6)


def test_a_score_that_has_no_answer_says_why(record):
    scores = PhraseScores.of(record, {"red circle": disc(), "blue square": np.zeros((40, 64), bool)})
    sheet = make_sheet(record, [1])
    rows = scores.table(np.stack([sheet.overall, sheet.overall]), sheet.grid, 1)
    assert [one["metric"] for one in rows] == list(SHOWN_METRICS)
    assert all(one["values"][0] is None and one["reason"] == "the mask is empty" for one in rows)
    assert all(one["reason"] == "" for one in scores.table(np.stack([sheet.overall] * 2), sheet.grid, 0))


def test_masks_that_do_not_fit_are_refused(record):
    with pytest.raises(InputError, match="is 3 x 3 but the image is 40 x 64"):
        PhraseScores.of(record, {"red circle": np.zeros((3, 3), bool)})
    with pytest.raises(InputError, match="'dog' is not in the text"):
        PhraseScores.of(record, {"dog": disc()})
