"""Images with records and masks made by hand, and scores by plain loops, for the tests of score_heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from probe.analysis import HeadScores, score_heads
from probe.analysis.metrics import METRICS
from probe.analysis.targets import Target
from probe.attention import AttentionRecord
from tests.records import make_grid, make_record

PHRASES = ("red circle", "blue square")
SIZES = ((32, 32), (24, 40), (32, 32), (40, 24), (16, 16))


def make_masks(index: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    masks = {phrase: np.zeros(size, dtype=bool) for phrase in PHRASES}
    for mask in masks.values():
        top, left = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        mask[top : top + 8, left : left + 8] = True
    return masks


def make_images(count: int, *, patch: int | None = None) -> list[tuple[AttentionRecord, dict[str, np.ndarray]]]:
    """Random records of images of several sizes and grids, with two masks each; on coarse grids, or patches of that many pixels."""
    images = []
    for index in range(count):
        size = SIZES[index % len(SIZES)]
        shape = (size[0] // patch, size[1] // patch) if patch else (4 + index % 2, 5)
        record = make_record(seed=index, grid=make_grid(*shape, image_size=size))
        images.append((record, make_masks(index, size)))
    return images


def plant(
    record: AttentionRecord, masks: dict[str, np.ndarray], *, layer: int, head: int, factor: float = 1.0
) -> AttentionRecord:
    """The record with one head that looks at each phrase's mask while its words are said."""
    target = Target.from_masks(record.layers[0].grid, np.stack(list(masks.values())))
    one = record.layers[layer]
    values = one.values.clone()
    for (_, end), share in zip(((2, 12), (19, 30)), target.share, strict=True):
        tokens = [
            i for i, span in enumerate(record.spans) if span[1] <= end and span[1] > end - 11 and span[1] > span[0]
        ]
        values[0, head, tokens] = factor * share.to(values.dtype)
    changed = replace(one, values=values, token_mean=values.mean(2))
    return replace(record, layers=(*record.layers[:layer], changed, *record.layers[layer + 1 :]))


def score(images: list, **options: Any) -> HeadScores:
    return score_heads([record for record, _ in images], [masks for _, masks in images], replicates=50, **options)


def plain(images: list, metric: str, pick: Any, *, combine: str = "mean", minus: bool = True) -> float:
    """Mean over phrases of one reading, by the record's own methods, phrase by phrase."""
    found = []
    for record, masks in images:
        source = record.minus_mean() if minus else record
        for phrase, mask in masks.items():
            values = source[phrase].stack()[:, 0]  # (layer, head, token, row, col)
            tokens = {"mean": lambda v: v.mean(2), "first": lambda v: v[:, :, 0], "max": lambda v: v.amax(2)}[combine]
            target = Target.from_masks(record.layers[0].grid, mask)
            found.append(METRICS[metric](pick(tokens(values)), target).item())
    return float(np.nanmean(found))
