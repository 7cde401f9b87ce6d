"""Examples that share a picture are one draw of the bootstrap: saying everything twice about each picture makes nothing surer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.analysis.stats import Pictures, PoissonBootstrap
from probe.evaluation.grounded_conversations import GroundedConversations
from probe.evaluation.phrase_masks import ReferringExpressions
from probe.evaluation.point_accuracy import PointAccuracy
from probe.evaluation.similarity import ExactEncoder
from probe.evaluation.tallies import score_predictions
from tests.evaluation.scored import CATEGORIES, blob, prediction, truth

SCORERS = {
    "gcg": (lambda: GroundedConversations(ExactEncoder(), captions=False), ("mIoU", "recall, greedy", "AP50")),
    "pacc": (PointAccuracy, ("PAcc",)),
    "res": (ReferringExpressions, ("gIoU", "cIoU", "Precision@0.5")),
}


def pairs(count=30):
    """Truths and predictions with one phrase each, some of which overlap well."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(count):
        mask, other = blob(rng, (12, 16), empty=0), blob(rng, (12, 16), empty=0)
        mask[5, 5] = other[6, 6] = True
        if rng.random() < 0.5:
            other = mask
        point = tuple(int(one) for one in np.argwhere(other)[0])
        category = [CATEGORIES[number % 2]]
        words = [f"small {category[0]}"]
        found.append(
            (
                truth(f"p{number:02d}", [mask], words, picture=f"picture {number}", categories=category),
                prediction(f"p{number:02d}", [other], words, points=[point]),
            )
        )
    return found


def scored(make, given):
    return score_predictions(make(), [one for one, _ in given], [one for _, one in given]).summary.set_index(
        ["measure", "control"]
    )


@pytest.mark.parametrize("protocol", SCORERS)
def test_everything_said_twice_has_the_same_interval(protocol):
    make, measures = SCORERS[protocol]
    once = pairs()
    twice = [(replace(t, name=f"{t.name}{end}"), replace(p, name=f"{t.name}{end}")) for t, p in once for end in "ab"]
    apart = [(replace(t, picture=t.name), p) for t, p in twice]
    own, both, wrong = (scored(make, one) for one in (once, twice, apart))
    for measure in measures:
        before, after, narrow = (one.loc[(measure, "")] for one in (own, both, wrong))
        if measure != "AP50":  # each is matched again, so that AP has other ties
            assert list(after[["value", "low", "high"]]) == pytest.approx(list(before[["value", "low", "high"]]))
        assert after["images"] == before["images"] == 30
        assert narrow["images"] == 60
        assert narrow["high"] - narrow["low"] < 0.85 * (after["high"] - after["low"])


def test_examples_of_a_picture_need_not_follow_one_another():
    pictures, bootstrap, drawn = Pictures(), PoissonBootstrap(cells=2), PoissonBootstrap(cells=2)
    given = [("a", [1.0, 0.0], [1, 0]), ("b", [0.0, 1.0], [1, 1]), ("a", [0.5, 2.0], [1, 1]), ("c", [1.0, 0.0], [1, 0])]
    summed = {}
    for name, sums, counts in given:
        bootstrap.add(pictures.number(name), np.array(sums), np.array(counts), new=pictures.new(name, np.array(counts)))
        before = summed.setdefault(name, np.zeros((2, 2)))
        before += [sums, counts]
    for index, name in enumerate("abc"):
        drawn.add(index, *summed[name])
    one, two = bootstrap.intervals(), drawn.intervals()
    for field in ("value", "low", "high", "images", "phrases"):
        assert np.array_equal(getattr(one, field), getattr(two, field), equal_nan=True), field
    assert list(one.images) == [3, 2]


def test_the_difference_to_a_control_is_paired():
    found = scored(SCORERS["res"][0], pairs())
    row, whole = found.loc[("gIoU", "centre box")], found.loc[("gIoU", "")]
    assert row["difference"] == pytest.approx(whole["value"] - row["value"])
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    oracle = found.loc[("gIoU", "oracle box")]
    assert oracle["difference_high"] < 0 or oracle["value"] < whole["value"]
    assert np.isnan(whole["difference"])
    assert np.isnan(found.loc[("cIoU", "centre box"), "difference"])  # no mean over images
