"""Twelve ways to read the same maps, against the record's own methods phrase by phrase."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probe.analysis.metrics import METRICS
from probe.analysis.readouts import REFERENCE, score_readouts
from probe.analysis.stats import poisson_weights
from probe.analysis.targets import Target
from probe.errors import InputError
from tests.analysis.images import make_images, plain, plant

#: Chosen by auroc on the even images: the planted head.
LAYER, HEAD = 1, 2


@pytest.fixture(scope="module")
def images() -> list[Any]:
    return [(plant(record, masks, layer=LAYER, head=HEAD), masks) for record, masks in make_images(8)]


@pytest.fixture(scope="module")
def found(images: list[Any]) -> Any:
    return score_readouts([one for one, _ in images], [two for _, two in images], metric="auroc", replicates=50, seed=3)


def row(found: Any, **where: Any) -> Any:
    part = found
    for name, value in where.items():
        part = part[part[name] == value]
    assert len(part) == 1
    return part.iloc[0]


def test_every_row_is_the_plain_score_of_the_odd_images(found: Any, images: list[Any]) -> None:
    assert len(found) == 12
    odd = images[1::2]
    for combine in ("mean", "first", "max"):
        for reading in ("attention", "minus mean"):
            options = {"combine": combine, "minus": reading == "minus mean"}
            every = row(found, combine=combine, reading=reading, heads="all")
            assert every["value"] == pytest.approx(plain(odd, "auroc", lambda v: v.mean((0, 1)), **options), abs=1e-6)
            best = row(found, combine=combine, reading=reading, heads="best")
            assert (best["layer"], best["head"]) == (LAYER, HEAD)
            assert best["value"] == pytest.approx(plain(odd, "auroc", lambda v: v[LAYER, HEAD], **options), abs=1e-6)
    assert set(found["images"]) == {4}
    assert set(found["phrases"]) == {8}


def test_differences_are_paired_with_the_papers_reading(found: Any, images: list[Any]) -> None:
    reference = row(found, **REFERENCE)
    assert (reference["difference"], reference["difference_low"], reference["difference_high"]) == (0, 0, 0)
    other = row(found, combine="max", reading="attention", heads="all")
    gaps, weights = [], []
    for index in range(1, len(images), 2):
        record, masks = images[index]
        total = 0.0
        for phrase, mask in masks.items():
            target = Target.from_masks(record.layers[0].grid, mask)
            one = record[phrase].stack()[:, 0].amax(2).mean((0, 1))
            two = record.minus_mean()[phrase].stack()[:, 0].mean((0, 1, 2))
            total += (METRICS["auroc"](one, target) - METRICS["auroc"](two, target)).item()
        gaps.append(total / 2)
        weights.append(poisson_weights(index, replicates=50, seed=3))
    drawn = np.array(weights)
    with np.errstate(invalid="ignore"):
        replicates = drawn.T @ np.array(gaps) / drawn.sum(0)
    assert other["difference"] == pytest.approx(np.mean(gaps), abs=1e-6)
    expected = np.nanquantile(replicates, (0.025, 0.975))
    assert (other["difference_low"], other["difference_high"]) == pytest.approx(tuple(expected), abs=1e-6)


def test_one_image_is_refused() -> None:
    ((record, masks),) = make_images(1)
    with pytest.raises(InputError, match="needs two images or more"):
        score_readouts([record], [masks])
    with pytest.raises(InputError, match="needs two images or more"):
        score_readouts([], [])
    with pytest.raises(InputError, match="Image 1"):
        score_readouts([record, record], [masks, {"purple": next(iter(masks.values()))}])
