"""R9: both reductions of attend-and-segment, as described and as first released, equal a line of plain numpy each."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError
from probe.grounding.segment import attend_and_segment
from tests.records import make_grid, make_record

WORDS = [
    "a",
    "red",
    "circle",
    "and",
    "one",
    "blue",
    "square",
    "over",
    "some",
    "green",
    "grass",
    "near",
    "two",
    "small",
    "dogs",
]
COMBINE = {"mean": lambda maps: maps.mean(0), "max": lambda maps: maps.max(0), "first": lambda maps: maps[0]}


def described(maps):
    """(token, row, col) by the paper: the mean over layers and heads, less its own mean over the answer's tokens (Eq. 3)."""
    mean = maps.mean((0, 1))
    return mean - mean.mean(0)


def released(maps):
    """(token, row, col) by the first public code, which slices x[:, -2:-1] out of (layer, head, ...): the last head but one."""
    mean = maps[:, -2:-1].mean((0, 1))
    return mean - mean.mean(0)


@pytest.mark.promises("R9")
def test_both_reductions_equal_a_plain_line(line, full):
    reductions = line("R9", target="0 differ by more than 1e-6; the two differ from each other")
    chance, apart = random.Random(9), 0
    for seed in range(2000 if full else 150):
        words = chance.sample(WORDS, chance.randint(2, 8))
        height, width = chance.randint(2, 40), chance.randint(2, 40)
        grid = make_grid(chance.randint(1, 7), chance.randint(1, 7), image_size=(height, width))
        heads = chance.randint(1, 6)
        record = make_record(layers=chance.randint(1, 4), heads=heads, text=" ".join(words), grid=grid, seed=seed)
        maps = np.stack([one.values[0].double().numpy() for one in record.layers])  # (layer, head, token, row, col)
        first = chance.randrange(len(words))
        last = chance.randint(first + 1, len(words))
        asked = {"phrases": [" ".join(words[first:last])], "combine": chance.choice(list(COMBINE))}
        picture = Image.new("RGB", (width, height), "grey")
        found = {}
        for name, plain in (("all-heads", described), ("as-first-released", released)):
            what = f"{name} {maps.shape} {asked} seed {seed}"
            try:
                [one] = attend_and_segment(record, picture, reduction=name, **asked).phrases
            except InputError as error:
                # One head has none before it: the released slice is empty, and its mean NaN.
                reductions.trial(heads == 1 and name != "all-heads" and "at least two" in str(error), what=error)
                continue
            found[name] = one.map.numpy()
            expected = COMBINE[asked["combine"]](plain(maps)[first:last])
            reductions.trial(np.abs(found[name] - expected).max() < 1e-6, silent=True, what=what)
        apart += len(found) == 2 and heads != 2 and np.abs(found["all-heads"] - found["as-first-released"]).max() > 1e-4
    assert apart > 80, "the two must differ, or one could stand for the other"
    reductions.settle()
