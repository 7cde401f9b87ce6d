"""Grounded conversation generation against a plain re-implementation of what is published, and on degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.errors import InputError
from probe.evaluation.grounded_conversations import GroundedConversations
from probe.evaluation.similarity import ExactEncoder, WordEncoder
from probe.evaluation.tallies import score_predictions
from tests.evaluation.scored import dense, plain_iou, prediction, random_pairs, truth

BOX, REST = np.zeros((12, 16), bool), np.ones((12, 16), bool)
BOX[:6] = True
REST[:6] = False


def scored(pairs, *, encoder=None, **options):
    truths, predictions = zip(*pairs, strict=True)
    scorer = GroundedConversations(encoder or WordEncoder(), captions=False, seed=1)
    return score_predictions(scorer, truths, [one for one in predictions if one], **options)


def plain_scores(pairs):
    """mIoU and legacy recall, pixel by pixel; of these words ``WordEncoder`` finds those alike whose last one is the same."""
    means, hits, labels = [], 0, 0
    for true, found in pairs:
        ious = [[plain_iou(one, two) for two in dense(true.phrases)] for one in dense(found.phrases)]
        left = {(i, j): iou for i, row in enumerate(ious) for j, iou in enumerate(row)}
        taken = []
        while left and max(left.values()) > 0:
            best = max(left, key=left.get)
            taken.append(left[best])
            left = {key: iou for key, iou in left.items() if key[0] != best[0] and key[1] != best[1]}
        means.append(np.mean(taken) if taken else 0)
        labels += len(true.phrases)
        left = {(j, i): iou for i, row in enumerate(ious) for j, iou in enumerate(row)}
        while left:
            # Equal IoUs: the first true phrase, then the first predicted one.
            best = min(left, key=lambda key: (-left[key], key))
            one, other = true.phrases[best[0]].text, found.phrases[best[1]].text
            if left[best] < 0.5 or one.split()[-1] != other.split()[-1]:
                break
            hits += 1
            left = {key: iou for key, iou in left.items() if key[0] != best[0] and key[1] != best[1]}
    return np.mean(means), hits / labels


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_miou_and_legacy_recall_equal_plain_ones(seed):
    pairs = random_pairs(seed, 6)
    if not any(true.phrases for true, _ in pairs):
        return
    scores = scored(pairs)
    miou, recall = plain_scores(pairs)
    assert scores.value("mIoU") == pytest.approx(miou, abs=1e-12)
    assert scores.value("recall, legacy") == pytest.approx(recall, abs=1e-12)
    assert (scores.images["legacy"] <= scores.images["greedy"]).all()
    assert (scores.images["greedy"] <= scores.images["optimal"]).all()


def test_a_perfect_prediction_and_its_controls():
    pairs = [(truth(name, [BOX, REST]), prediction(name, [BOX, REST])) for name in "ab"]
    scores = scored(pairs, encoder=ExactEncoder())
    for measure in ("AP", "AP50", "mIoU", "recall, legacy", "recall, greedy", "recall, optimal", "similarity"):
        assert scores.value(measure) == pytest.approx(1), measure
    # Words swapped: masks are all covered, by the wrong words.
    assert scores.value("recall, legacy", control="other phrase") == 0
    assert scores.value("recall, legacy", control="shuffled") == 1  # both pictures are the same
    # A box of half the picture's area in the centre, rows 2 to 9 and columns 2 to 13: 48 of its 96 pixels in each half.
    assert scores.value("mIoU", control="centre box") == pytest.approx(np.mean([48 / 144]), abs=0.03)
    assert scores.value("recall, legacy", control="centre box") == 0
    assert scores.value("mIoU", control="oracle box") == 1


def test_shuffled_is_the_previous_picture_resized():
    first = prediction("a", [np.kron(BOX, np.ones((2, 2), bool))], size=(24, 32))
    pairs = [
        (truth("a", [np.ones((24, 32), bool)], size=(24, 32)), first),
        (truth("b", [BOX, REST]), prediction("b", [])),
    ]
    scores = scored(pairs)
    assert scores.value("mIoU", control="shuffled") == 1  # the one pair that the first's half makes with the second's
    assert scores.value("recall, legacy", control="shuffled") == 0.5
    assert scores.value("recall, legacy") == 0.5 * 2 / 3


def test_oracles_say_what_holds_recall_back():
    pairs = [
        (truth(name, [BOX, REST], ["red circle", "dog"]), prediction(name, [BOX, BOX], ["red circle", "cat"]))
        for name in "ab"
    ]
    scores = scored(pairs)
    assert scores.value("recall, optimal") == 0.5
    assert scores.value("recall, optimal", control="oracle masks") == 0.5
    assert scores.value("recall, optimal", control="oracle words") == 0.5
    pairs = [
        (truth(name, [BOX, REST], ["red circle", "dog"]), prediction(name, [BOX, REST], ["cat", "cat"]))
        for name in "ab"
    ]
    scores = scored(pairs)
    assert scores.value("recall, optimal") == scores.value("recall, optimal", control="oracle masks") == 0
    assert scores.value("recall, optimal", control="oracle words") == 1


def test_what_legacy_loses_is_counted():
    # The largest IoU has other words, so that the published pairing stops before the second.
    other = BOX.copy()
    other[0, 0] = False
    pair = (truth("a", [BOX, REST], ["dog", "cat"]), prediction("a", [BOX, REST], ["tree", "cat"]))
    scores = scored([pair, (truth("b", [BOX]), prediction("b", [other]))])
    assert scores.images["lost"].tolist() == [1, 0]
    assert scores.value("recall, legacy") == 1 / 3
    assert scores.value("recall, greedy") == scores.value("recall, optimal") == 2 / 3


def test_degenerate_pictures_do_not_vanish():
    nothing = np.zeros((12, 16), bool)
    pairs = [
        (truth("whole", [BOX]), prediction("whole", [BOX])),
        (truth("silent", [BOX]), prediction("silent", [])),
        (truth("no truth", []), prediction("no truth", [BOX])),
        (truth("empty", [nothing]), prediction("empty", [nothing])),
        (truth("twice", [BOX]), prediction("twice", [BOX, BOX])),
        (truth("missing", [BOX]), None),
    ]
    scores = scored(pairs, missing="miss")
    assert scores.images["name"].tolist() == ["whole", "silent", "no truth", "empty", "twice", "missing"]
    assert scores.images["miou"].tolist() == [1, 0, 0, 0, 1, 0]
    assert scores.value("mIoU") == pytest.approx(2 / 6)
    assert scores.value("recall, legacy") == pytest.approx(2 / 5)
    assert not np.isnan(scores.summary["value"]).any()
    assert scores.notes == (
        "1 images without a true phrase: 'no truth'",
        "1 images without a prediction, counted as misses: 'missing'",
    )
    with pytest.raises(InputError, match="There is no picture to score"):
        score_predictions(GroundedConversations(WordEncoder()), [], [])


def test_a_label_that_is_not_said_word_for_word_is_what_words_are_compared_with():
    masks = [BOX]
    found = prediction("a", masks, ["the big dog"])
    said = truth("a", masks, ["puppy"], label=["the big dog"])
    assert scored([(said, found)], encoder=ExactEncoder()).value("recall, greedy") == 1
    said = truth("a", masks, ["puppy"])
    assert scored([(said, found)], encoder=ExactEncoder()).value("recall, greedy") == 0


def test_words_that_are_all_alike_leave_masks_to_decide():
    def alike(texts):
        return np.ones((len(texts), 3))

    alike.name = "all alike"
    pairs = random_pairs(0, 30)
    scores = scored(pairs, encoder=alike)
    assert scores.settings == {"similarity of words": "all alike"}
    assert scores.value("recall, optimal") == scores.value("recall, optimal", control="oracle words")
    assert scores.value("recall, legacy") == scores.value("recall, greedy") > scored(pairs).value("recall, greedy")


def test_intervals_hold_the_value_and_shrink():
    pairs = random_pairs(0, 160)
    few, many = (scored(part).summary.set_index(["measure", "control"]) for part in (pairs[:10], pairs))
    for name in (("mIoU", ""), ("recall, legacy", ""), ("AP50", ""), ("mIoU", "shuffled")):
        assert many.loc[name, "low"] < many.loc[name, "value"] < many.loc[name, "high"]
        assert many.loc[name, "high"] - many.loc[name, "low"] < few.loc[name, "high"] - few.loc[name, "low"]
    assert many.loc[("mIoU", ""), "images"] == 160
    assert many.loc[("recall, legacy", ""), "phrases"] == sum(len(true.phrases) for true, _ in pairs)
    again = scored(pairs).summary
    assert again.equals(scored(pairs).summary)


def test_an_unknown_measure_or_confidence_is_named():
    truths, predictions = zip(*random_pairs(0, 2), strict=True)
    scorer = GroundedConversations(WordEncoder(), captions=False, confidence=95)
    with pytest.raises(InputError, match=r"confidence must lie between 0 and 1, for example 0.95; found 95"):
        score_predictions(scorer, truths, predictions)
    scores = scored(random_pairs(0, 2))
    with pytest.raises(InputError, match="There is no measure 'iou' with control ''; there are AP, AP50"):
        scores.value("iou")
