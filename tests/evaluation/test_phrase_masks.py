"""Referring expressions and panoptic narratives against plain lines over pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.errors import InputError
from probe.evaluation.phrase_masks import PanopticNarratives, ReferringExpressions
from probe.evaluation.tallies import score_predictions
from tests.evaluation.scored import blob, dense, plain_iou, prediction, truth

UPPER = np.zeros((12, 16), bool)
UPPER[:6] = True
LEFT = np.zeros((12, 16), bool)
LEFT[:, :8] = True


def random_expressions(seed, count, *, drop=0.2):
    """(truth, prediction) with the same phrases, of which some were not predicted and some have no pixel."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        true = [blob(rng, (12, 16)) for _ in range(int(rng.integers(0, 4)))]
        found = [one ^ blob(rng, (12, 16), empty=0.5) for one in true]
        flags = {"thing": [bool(one) for one in rng.integers(0, 2, len(true))], "plural": [None] * len(true)}
        one, other = truth(str(number), true, **flags), prediction(str(number), found)
        kept = len(true) if rng.random() > drop else int(rng.integers(0, len(true) + 1))
        pairs.append((one, replace(other, phrases=other.phrases[:kept])))
    return pairs


def compared(pairs):
    """(phrase, intersection, union) of every true phrase that has a pixel."""
    found = []
    for true, other in pairs:
        masks = dense(other.phrases)
        for i, (phrase, mask) in enumerate(zip(true.phrases, dense(true.phrases), strict=True)):
            own = masks[i] if i < len(masks) else np.zeros_like(mask)
            if mask.any():
                found.append((phrase, (own & mask).sum(), (own | mask).sum()))
    return found


def scored(scorer, pairs, **options):
    truths, predictions = zip(*pairs, strict=True)
    return score_predictions(scorer, truths, [one for one in predictions if one], **options)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_expressions_equal_plain_lines(seed):
    pairs = random_expressions(seed, 6)
    parts = compared(pairs)
    scores = scored(ReferringExpressions(), pairs)
    if not parts:
        assert np.isnan(scores.value("gIoU"))
        return
    ious = np.array([both / either for _, both, either in parts])
    assert scores.value("gIoU") == pytest.approx(ious.mean(), abs=1e-12)
    assert scores.value("cIoU") == pytest.approx(sum(one[1] for one in parts) / sum(one[2] for one in parts), abs=1e-12)
    for least in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert scores.value(f"Precision@{least}") == pytest.approx((ious >= least).mean(), abs=1e-12)


def published_average(ious):
    """The published sum over 99,999 thresholds, by counting those that each IoU reaches."""
    thresholds = np.arange(0, 1, 0.00001)
    reached = np.array([(ious >= one).mean() for one in thresholds[:-1]])
    return float((np.diff(thresholds) * reached).sum())


def test_average_recall_equals_the_published_sum_within_a_step():
    pairs = random_expressions(3, 40)
    parts = compared(pairs)
    scores = scored(PanopticNarratives(), pairs)
    for name, chosen in (
        ("average recall", parts),
        ("average recall, things", [one for one in parts if one[0].thing]),
        ("average recall, stuff", [one for one in parts if one[0].thing is False]),
    ):
        ious = np.array([both / either for _, both, either in chosen])
        assert len(ious) > 10
        assert scores.value(name) == pytest.approx(published_average(ious), abs=1.1e-5)
        assert scores.value(name) == pytest.approx(ious.mean(), abs=1e-12)
    assert np.isnan(scores.value("average recall, plural"))
    rows = scores.summary.set_index(["measure", "control"])
    assert rows.loc[("average recall", ""), "phrases"] == len(parts)
    assert (
        rows.loc[("average recall", ""), "low"]
        < scores.value("average recall")
        < rows.loc[("average recall", ""), "high"]
    )


def test_singular_and_plural_are_what_the_examples_declare():
    one = truth("a", [UPPER, LEFT], plural=[True, False])
    scores = scored(PanopticNarratives(), [(one, prediction("a", [UPPER, UPPER]))])
    assert scores.value("average recall, plural") == 1
    assert scores.value("average recall, singular") == pytest.approx(48 / 144)
    assert np.isnan(scores.value("average recall, things"))


@pytest.mark.parametrize("scorer", [ReferringExpressions, PanopticNarratives])
def test_controls_by_hand(scorer):
    name = "gIoU" if scorer is ReferringExpressions else "average recall"
    pairs = [(truth(one, [UPPER, LEFT]), prediction(one, [UPPER, LEFT])) for one in "ab"]
    scores = scored(scorer(), pairs)
    third = 48 / 144
    assert scores.value(name) == scores.value(name, control="oracle box") == 1
    assert scores.value(name, control="other phrase") == pytest.approx(third)
    assert scores.value(name, control="shuffled") == pytest.approx((1 + third) / 2)
    assert 0.2 < scores.value(name, control="centre box") < 0.5


def test_the_other_phrase_can_be_another_example_of_the_same_picture():
    pairs = [
        (truth(name, [mask], picture="one.png"), prediction(name, [mask])) for name, mask in (("a", UPPER), ("b", LEFT))
    ]
    scores = scored(ReferringExpressions(), pairs)
    assert scores.value("gIoU", control="other phrase") == pytest.approx(48 / 144)
    assert np.isnan(scores.value("gIoU", control="shuffled"))  # there is no other picture
    pairs.append((truth("c", [~UPPER]), prediction("c", [UPPER])))
    scores = scored(ReferringExpressions(), pairs)
    assert scores.value("gIoU", control="shuffled") == pytest.approx(plain_iou(LEFT, ~UPPER))


def test_what_is_not_predicted_is_a_miss_and_what_has_no_pixel_is_named():
    nothing = np.zeros((12, 16), bool)
    pairs = [
        (truth("a", [UPPER]), prediction("a", [UPPER])),
        (truth("silent", [UPPER]), prediction("silent", [])),
        (truth("empty", [nothing]), prediction("empty", [nothing])),
        (truth("no truth", []), prediction("no truth", [])),
        (truth("missing", [UPPER]), None),
    ]
    scores = scored(ReferringExpressions(), pairs, missing="miss")
    assert scores.value("gIoU") == scores.value("cIoU") == scores.value("Precision@0.9") == pytest.approx(1 / 3)
    assert scores.notes == (
        "1 images without a true phrase: 'no truth'",
        "1 images without a prediction, counted as misses: 'missing'",
        "1 true phrases have no pixel, so that they cannot be found and are left out",
    )
    assert scores.images["name"].tolist() == ["a", "silent", "empty", "no truth", "missing"]
    assert scored(PanopticNarratives(), pairs, missing="miss").value("average recall") == pytest.approx(1 / 3)


def test_phrases_that_were_not_asked_for_are_refused():
    with pytest.raises(InputError, match="'a' has 2 phrases for 1 expressions"):
        scored(ReferringExpressions(), [(truth("a", [UPPER]), prediction("a", [UPPER, LEFT]))])
    with pytest.raises(InputError, match="prediction 'a' is of another text than its example"):
        scored(PanopticNarratives(), [(truth("a", [UPPER]), prediction("a", [UPPER, LEFT]))])
    one, other = truth("a", [UPPER, LEFT]), prediction("a", [UPPER, LEFT])
    with pytest.raises(InputError, match="nobody asked for: its example has none at characters 16 to 27"):
        scored(PanopticNarratives(), [(replace(one, phrases=one.phrases[:1]), other)])
    with pytest.raises(InputError, match="its example has each phrase once"):
        scored(PanopticNarratives(), [(one, replace(other, phrases=other.phrases + other.phrases[:1]))])
