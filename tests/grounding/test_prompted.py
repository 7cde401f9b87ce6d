"""What a refiner reaches when it is asked in the right place."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from probe.grounding.prompted import PROMPTS, score_prompts
from probe.grounding.refiners import SuperpixelRefiner, ThresholdRefiner

IMAGE = Image.new("RGB", (9, 6), "grey")
RING = np.zeros((6, 9), dtype=bool)
RING[:5, :5] = True
RING[1:4, 1] = False  # a hole, left of which it is thin
BAR = np.zeros((6, 9), dtype=bool)
BAR[2:5, 6:9] = True


class Planted:
    """Knows what it is asked with, and has two candidates: nothing but the point or box, and all of the image."""

    name = "planted"

    def __init__(self):
        self.asked = []

    def encode(self, image):
        self.size = (image.height, image.width)
        return self

    def candidates(self, *, points=None, boxes=None, maps=None):
        where = [(row, col, row + 1, col + 1) for row, col in points] if boxes is None else boxes
        self.asked.append(where)
        masks = np.zeros((len(where), 2, *self.size), dtype=bool)
        for mask, (top, left, bottom, right) in zip(masks, where, strict=True):
            mask[0, top:bottom, left:right] = True
            mask[1] = True
        return masks, np.zeros((len(where), 2))

    def prompt(self, **asked):
        return self.candidates(**asked)[0][:, 0], np.zeros(2)


def _example(*masks):
    words = "abc"[: len(masks)]
    phrases = tuple(
        ExamplePhrase(one, at, at + 1, mask) for at, (one, mask) in enumerate(zip(words, masks, strict=True))
    )
    return Example("one", IMAGE, words, phrases)


def test_each_prompt_and_choice_by_hand():
    refiner = Planted()
    scores = score_prompts(refiner, [_example(RING, BAR), _example(BAR)])
    assert list(scores["prompt"].unique()) == list(PROMPTS)
    found = scores.set_index(["prompt", "choice"])["value"]
    ring, bar = RING.sum(), BAR.sum()
    alone = np.mean([1 / ring, 1 / bar, 1 / bar])
    whole = np.mean([ring / 54, bar / 54, bar / 54])
    assert found["centre", "taken"] == found["random point", "taken"] == pytest.approx(alone)
    assert found["centre", "oracle"] == pytest.approx(whole)
    assert found["box", "taken"] == found["box", "oracle"] == pytest.approx(np.mean([ring / 25, 1, 1]))
    assert (scores["images"].unique().tolist(), scores["phrases"].unique().tolist()) == ([2], [3])
    assert (scores["low"] <= scores["value"]).all()
    assert (scores["value"] <= scores["high"]).all()
    first = refiner.asked
    # Each prompt is asked twice, for what is taken and for all candidates.
    assert first[0] == first[1] == [(1, 3, 2, 4), (3, 7, 4, 8)]
    assert first[4] == first[5] == [(0, 0, 5, 5), (2, 6, 5, 9)]
    for (row, col, *_), mask in zip(first[2], (RING, BAR), strict=True):
        assert mask[row, col]


def test_centres_lie_inside_and_random_points_everywhere():
    refiner = Planted()
    score_prompts(refiner, [_example(RING)] * 60)
    centres, points = ({(row, col) for [(row, col, *_)] in refiner.asked[start::6]} for start in (0, 2))
    assert len(centres) == 1
    assert RING[next(iter(centres))]
    assert len(points) > 10
    assert all(RING[point] for point in points)


def test_refiners_without_candidates_have_no_oracle():
    scores = score_prompts(SuperpixelRefiner(), [_example(BAR)])
    assert scores["choice"].tolist() == ["taken"] * 3
    assert scores["value"].iloc[0] == pytest.approx(BAR.mean())  # one colour: the whole picture


def test_what_cannot_be_scored():
    with pytest.raises(InputError, match="The threshold refiner reads maps: 1 prompts need maps"):
        score_prompts(ThresholdRefiner(), [_example(BAR)])
    for nothing in ([], [_example()]):
        with pytest.raises(InputError, match="There is no phrase"):
            score_prompts(Planted(), nothing)
    with pytest.raises(InputError, match="Example 0 has a phrase whose true mask is empty"):
        score_prompts(Planted(), [_example(np.zeros((6, 9), dtype=bool))])
