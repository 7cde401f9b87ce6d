"""A planted ranking is found again on every half, noise is not, and each number is that of a plain line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probe.analysis import score_heads
from probe.analysis.stability import compare_rankings, ranking_stability
from probe.errors import InputError
from tests.analysis.images import make_images, plant


def ranks(values: list[float]) -> np.ndarray:
    """Mean rank of each, by counting."""
    array = np.array(values)
    return (array[:, None] > array).sum(1) + ((array[:, None] == array).sum(1) - 1) / 2


def tau(one: np.ndarray, two: np.ndarray) -> float:
    signs = [np.sign(some[:, None] - some) for some in (one, two)]
    return (signs[0] * signs[1]).sum() / np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum())


@pytest.fixture(scope="module")
def noise() -> list[Any]:
    return make_images(8)


@pytest.fixture(scope="module")
def planted(noise: list[Any]) -> list[Any]:
    """The six heads look at what is named from never to almost alone."""
    found = []
    for record, masks in noise:
        for place in range(6):
            record = plant(record, masks, layer=place // 3, head=place % 3, factor=0.05 * place**2)
        found.append((record, masks))
    return found


def apart(images: list[Any]) -> tuple[list[Any], list[Any]]:
    return [record for record, _ in images], [masks for _, masks in images]


def test_every_number_is_the_plain_one(noise: list[Any]) -> None:
    found = ranking_stability(*apart(noise), metric="auroc", top=2, splits=3, seed=5, confidence=0.5)
    rng, expected = np.random.default_rng(5), []
    for _ in range(3):
        order = rng.permutation(8)
        halves = []
        for some in (order[:4], order[4:]):
            scores = score_heads(*apart([noise[i] for i in some]), metric="auroc", replicates=1)
            halves.append(scores.grid()[0].ravel())
        best = [set(np.argsort(-one)[:2]) for one in halves]
        spearman = np.corrcoef(ranks(halves[0]), ranks(halves[1]))[0, 1]
        expected.append((spearman, tau(*halves), len(best[0] & best[1]) / 2))
    for row, values in zip(found.itertuples(), np.array(expected).T, strict=True):
        assert row.value == pytest.approx(values.mean())
        assert (row.low, row.high) == pytest.approx(tuple(np.quantile(values, (0.25, 0.75))))
    assert list(found["measure"]) == ["spearman", "kendall", "top overlap"]
    assert list(found["chance"]) == [0, 0, 2 / 6]
    assert set(found["heads"]) == {6}


def test_a_planted_ranking_is_stable_and_noise_is_not(noise: list[Any], planted: list[Any]) -> None:
    stable = ranking_stability(*apart(planted), metric="auroc", top=3, splits=30).set_index("measure")["value"]
    loose = ranking_stability(*apart(noise), metric="auroc", top=3, splits=30).set_index("measure")["value"]
    assert stable["spearman"] > 0.8
    assert stable["top overlap"] > 0.8
    assert abs(loose["spearman"]) < 0.5
    assert loose["kendall"] < stable["kendall"] - 0.3


def test_rankings_of_several_tables(noise: list[Any], planted: list[Any]) -> None:
    tables = {
        "planted": score_heads(*apart(planted), metric="auroc", replicates=1),
        "again": score_heads(*apart(planted), metric="auroc", replicates=1, seed=3),
        "noise": score_heads(*apart(noise), metric="auroc", replicates=1),
    }
    found = compare_rankings(tables, top=2)
    assert list(zip(found["first"], found["second"], strict=True)) == [
        ("planted", "again"),
        ("planted", "noise"),
        ("again", "noise"),
    ]
    same = found.iloc[0]
    assert (same["spearman"], same["kendall"], same["top overlap"]) == pytest.approx((1, 1, 1))
    values = [tables[name].grid()[0].ravel() for name in ("planted", "noise")]
    assert found.iloc[1]["spearman"] == pytest.approx(np.corrcoef(ranks(values[0]), ranks(values[1]))[0, 1])
    assert set(found["heads"]) == {6}
    records, masks = apart(noise)
    few = score_heads([record.select(heads=[0]) for record in records], masks, metric="auroc", replicates=1)
    with pytest.raises(InputError, match="'few' and 'planted' are of other layers or heads"):
        compare_rankings({"planted": tables["planted"], "few": few})
    with pytest.raises(InputError, match="two tables or more, found 1"):
        compare_rankings({"planted": tables["planted"]})


def test_what_ranks_nothing_is_nan(noise: list[Any]) -> None:
    # Pointing of two phrases an image: some halves may tie all heads, but images without phrases rank nothing at all.
    found = ranking_stability([record for record, _ in noise], [{}] * 8, splits=3)
    assert found[["value", "low", "high"]].isna().all().all()


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "no image to score"),
        (3, {}, "four images and two heads or more, found 3 images"),
        (8, {"top": 0}, "top and splits must be 1 or more"),
        (8, {"confidence": 1}, "confidence between 0 and 1"),
        (8, {"metric": "iou"}, "No metric 'iou'"),
    ],
)
def test_what_cannot_be_ranked_is_refused(noise: list[Any], count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ranking_stability(*apart(noise[:count]), **options)
