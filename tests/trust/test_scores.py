"""Scores of masks against pycocotools and against masks that are drawn out, degenerate ones included."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from probe.analysis.targets import resize_masks
from probe.evaluation import run_lengths
from probe.evaluation.average_precision import AveragePrecision, Masked
from probe.evaluation.protocol_files import write_coco_results, write_coco_truths
from tests.evaluation.scored import CATEGORIES, plain_iou, random_pairs, reference_precision


def drawn(encoded):
    return coco_mask.decode(encoded).astype(bool)


def random_masks(dice, count):
    """Masks of one size, of 1 x 1 to 24 x 24 pixels; some are empty, full, one pixel, or alike."""
    size = tuple(int(one) for one in dice.integers(1, 25, 2))
    masks = [dice.random(size) < dice.choice([0, 0.02, 0.2, 0.5, 1]) for _ in range(count)]
    masks[-1] = masks[0].copy() if dice.random() < 0.2 else masks[-1]
    return size, masks


@pytest.mark.promises("R22")
def test_comparisons_equal_those_of_drawn_masks(line, full):
    number = 5000 if full else 500
    equal = line("R22", target="0 difference, to the last bit", least=number)
    for seed in range(number):
        dice = np.random.default_rng([22, seed])
        size, masks = random_masks(dice, 5)
        encoded = [run_lengths.encode(one) for one in masks]
        found = run_lengths.ious(encoded[:2], encoded[2:])
        plain = np.array([[plain_iou(one, two) for two in masks[2:]] for one in masks[:2]])
        theirs = coco_mask.iou(encoded[:2], encoded[2:], [0] * 3)
        both, either = run_lengths.overlap(*encoded[:2])
        row, col = (int(dice.integers(one)) for one in size)
        other = (size[1] + 2, size[0] + 1)
        checks = {
            "IoU": (found == plain).all(),
            "IoU of pycocotools": (found == np.nan_to_num(theirs)).all(),
            "overlap": (both, either) == ((masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()),
            "union": (drawn(run_lengths.union(encoded)) == np.any(masks, 0)).all(),
            "a point": run_lengths.covers(encoded[0], (row, col)) == masks[0][row, col],
            "another size": (drawn(run_lengths.resized(encoded[0], other)) == resize_masks(masks[0], other)).all(),
        }
        wrong = [name for name, ok in checks.items() if not ok]
        equal.trial(not wrong, silent=True, what=f"seed {seed}, {size}: {wrong}")
    equal.settle()


def last_word(phrase, categories):
    return phrase.text.split()[-1]


@pytest.mark.promises("R22")
def test_average_precision_equals_cocoeval(line, full, tmp_path):
    number = 60 if full else 8
    equal = line("R22", target="0 difference, to the last bit", least=number)
    # In the order of their names, as the package numbers them: in another order sums round otherwise in the last bit.
    ids = {name: 3 * number + 1 for number, name in enumerate(sorted(CATEGORIES))}
    for seed in range(number):
        # From no picture with anything in it to many.
        truths, predictions = zip(*random_pairs(seed, 1 + seed % 30, most=2 + seed % 5), strict=True)
        write_coco_truths(tmp_path / "instances.json", truths, categories=ids)
        written = write_coco_results(tmp_path / "results.json", truths, predictions, categories=ids, rule=last_word)
        precision = AveragePrecision(replicates=2)
        for true, found in zip(truths, predictions, strict=True):
            precision.add(
                true.name,
                [Masked(last_word(one, ()), one.mask, one.score) for one in found.phrases],
                [Masked(one.category, one.mask) for one in true.phrases],
            )
        ours = precision.values()
        if not written or np.isnan(ours).all():  # COCOeval reads no empty results, and says -1 of no truth
            ok = np.isnan(ours).all() or ours == (0.0, 0.0)
        else:
            ok = ours == reference_precision(tmp_path / "instances.json", tmp_path / "results.json")
        equal.trial(ok, silent=True, what=f"seed {seed}: {ours}")
    equal.settle()
