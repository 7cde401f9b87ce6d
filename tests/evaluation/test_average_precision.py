"""Average precision against COCOeval on the same files, to the last bit."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from probe.evaluation.average_precision import AveragePrecision, Masked
from probe.evaluation.protocol_files import (
    write_gcg_predictions,
    write_gcg_truths,
)
from tests.evaluation.scored import random_pairs, reference_precision


@pytest.mark.parametrize("names", ["{}", "{:0>12}", "0{}", "image {}"])
@pytest.mark.parametrize("seed", range(4))
def test_one_category_of_equal_scores_equals_cocoeval(tmp_path, seed, names):
    pairs = random_pairs(seed, 25)
    pairs = [tuple(replace(one, name=names.format(one.name)) for one in each) for each in pairs]
    pairs = [
        pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))
    ]  # the order of names decides, not of pictures
    precision = AveragePrecision(replicates=20)
    for true, found in pairs:
        precision.add(
            true.name, [Masked("", one.mask) for one in found.phrases], [Masked("", one.mask) for one in true.phrases]
        )
    truths, predictions = zip(*pairs, strict=True)
    write_gcg_truths(tmp_path / "masks.json", tmp_path / "captions.json", truths)
    # As GLaMM's scorer makes its results: of the files of each picture of the truths, in their order.
    write_gcg_predictions(tmp_path / "predicted", predictions)
    results = [
        {"image_id": image["id"], "category_id": 1, "segmentation": mask, "score": 1.0}
        for image in json.loads((tmp_path / "captions.json").read_text())["images"]
        for mask in json.loads((tmp_path / "predicted" / f"{image['id']}.json").read_text())["pred_masks"]
    ]
    assert precision.values() == reference_precision(tmp_path / "masks.json", results)


def test_replicates_that_draw_each_picture_once_give_the_value(monkeypatch):
    monkeypatch.setattr(
        "probe.evaluation.average_precision.poisson_weights", lambda index, replicates, seed: np.ones(replicates)
    )
    for seed in range(6):
        precision = AveragePrecision(replicates=3)
        for true, found in random_pairs(seed, 20):
            precision.add(
                true.name,
                [Masked(one.text.split()[-1], one.mask, one.score) for one in found.phrases],
                [Masked(one.category, one.mask) for one in true.phrases],
            )
        assert precision.replicated() == pytest.approx(np.tile(precision.values(), (3, 1)), abs=1e-9)


def test_a_picture_drawn_twice_counts_twice(monkeypatch):
    pairs = random_pairs(3, 8)
    drawn = [0, 2, 1, 3, 0, 1, 2, 1]
    monkeypatch.setattr(
        "probe.evaluation.average_precision.poisson_weights",
        lambda index, replicates, seed: np.full(replicates, float(drawn[index])),
    )
    precision, repeated = AveragePrecision(replicates=1), AveragePrecision(replicates=1)
    scores = defaultdict(lambda: len(scores) / 100)  # all different, so that no order of equals is left open
    for index, (true, found) in enumerate(pairs):
        masks = [Masked("", one.mask, scores[index, i]) for i, one in enumerate(found.phrases)]
        truths = [Masked("", one.mask) for one in true.phrases]
        precision.add(true.name, masks, truths)
        for copy in range(drawn[index]):
            repeated.add(f"{index:03}{copy}", masks, truths)
    assert precision.replicated()[0] == pytest.approx(repeated.values(), abs=1e-9)


def test_intervals_hold_the_value_and_nothing_is_nan():
    precision = AveragePrecision()
    for true, found in random_pairs(1, 60):
        precision.add(
            true.name, [Masked("", one.mask) for one in found.phrases], [Masked("", one.mask) for one in true.phrases]
        )
    for one in precision.intervals():
        assert one.low < one.value < one.high
        assert one.images == 60
    empty = AveragePrecision(replicates=10)
    assert all(map(isnan, empty.values()))
    true, found = random_pairs(1, 1, most=5)[0]
    empty.add("a", [Masked("", one.mask) for one in found.phrases], [])
    assert all(isnan(one.value) for one in empty.intervals())


def test_gcg_files_hold_the_same_masks(tmp_path):
    pairs = random_pairs(0, 5)
    assert write_gcg_predictions(tmp_path, [found for _, found in pairs]) == 5
    for _, found in pairs:
        content = json.loads((tmp_path / f"{found.name}.json").read_text())
        assert list(content) == ["image_id", "caption", "phrases", "pred_masks"]
        assert content["caption"] == found.text
        assert content["pred_masks"] == [one.mask for one in found.phrases]
