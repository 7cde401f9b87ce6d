"""The streaming bootstrap: exact estimates, the same draws whatever the order, honest coverage, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from probe.analysis.stats import BATCH, PoissonBootstrap, poisson_weights
from probe.errors import InputError


def fill(bootstrap: PoissonBootstrap, sums: np.ndarray, counts: np.ndarray, order: np.ndarray) -> PoissonBootstrap:
    for image in order:
        bootstrap.add(int(image), sums[image], counts[image])
    return bootstrap


def test_the_estimate_is_the_mean_over_phrases_and_the_draws_are_plain() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (50, 3)).astype(float)
    sums = rng.random((50, 3)) * counts
    found = fill(PoissonBootstrap(3, replicates=200, seed=5), sums, counts, np.arange(50)).intervals(confidence=0.9)
    assert np.allclose(found.value, sums.sum(0) / counts.sum(0))
    assert np.array_equal(found.phrases, counts.sum(0))
    assert np.array_equal(found.images, (counts > 0).sum(0))
    weights = np.stack([poisson_weights(i, replicates=200, seed=5) for i in range(50)])
    replicated = (weights[:, :, None] * sums[:, None]).sum(0) / (weights[:, :, None] * counts[:, None]).sum(0)
    assert np.allclose(found.low, np.quantile(replicated, 0.05, axis=0))
    assert np.allclose(found.high, np.quantile(replicated, 0.95, axis=0))


def test_order_and_sharding_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    sums, counts = rng.random((70, 4)), np.ones((70, 4))
    forward = fill(PoissonBootstrap(4), sums, counts, np.arange(70)).intervals()
    backward = fill(PoissonBootstrap(4), sums, counts, np.arange(70)[::-1]).intervals()
    shards = [fill(PoissonBootstrap(4), sums, counts, np.arange(i, 70, 3)) for i in range(3)]
    together = (shards[2] + shards[0] + shards[1]).intervals()
    for other in (backward, together):
        for name in ("value", "low", "high", "images", "phrases"):
            assert np.allclose(getattr(forward, name), getattr(other, name), rtol=1e-12), name


def test_weights_are_poisson_and_keyed_by_seed_and_image() -> None:
    weights = np.stack([poisson_weights(i, replicates=4000) for i in range(20)])
    assert weights.mean() == pytest.approx(1, abs=0.02)
    assert weights.var() == pytest.approx(1, abs=0.03)
    assert np.abs(np.corrcoef(weights) - np.eye(20)).max() < 0.08
    assert np.array_equal(poisson_weights(3, replicates=9, seed=1), poisson_weights(3, replicates=9, seed=1))
    assert not np.array_equal(poisson_weights(3, replicates=99, seed=1), poisson_weights(3, replicates=99, seed=2))


def test_one_image_gives_no_interval_and_none_gives_no_value() -> None:
    bootstrap = PoissonBootstrap(3, replicates=100)
    bootstrap.add(0, np.array([2.0, np.nan, 1.0]), np.array([4.0, 0.0, 1.0]))
    bootstrap.add(1, np.array([np.nan, np.nan, 0.0]), np.array([0.0, 0.0, 1.0]))
    found = bootstrap.intervals()
    assert np.array_equal(found.value, [0.5, np.nan, 0.5], equal_nan=True)
    assert np.isnan(found.low[:2]).all()
    assert np.isnan(found.high[:2]).all()
    assert (found.low[2], found.high[2]) == (0, 1)
    assert found.images.tolist() == [1, 0, 2]
    assert (found[2].phrases, found[1].phrases) == (2, 0)
    assert str(found[2]) == "0.500 [0.000, 1.000], 2 phrases in 2 images"


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # Phrases of one image share a difficulty: treating them as independent would make the interval too narrow.
    rng = np.random.default_rng(2)
    cells, images = 400, 60  # each cell is one simulated study of 60 images
    counts = rng.integers(1, 5, (images, 1)).repeat(cells, 1).astype(float)
    difficulty = rng.beta(2, 2, (images, cells))
    sums = rng.binomial(counts.astype(int), difficulty).astype(float)
    found = fill(PoissonBootstrap(cells, replicates=400), sums, counts, np.arange(images)).intervals()
    coverage = ((found.low <= 0.5) & (found.high >= 0.5)).mean()
    assert 0.90 <= coverage <= 0.98


def test_memory_does_not_grow_with_images() -> None:
    def stored(bootstrap: PoissonBootstrap) -> int:
        waiting = sum(sums.size + counts.size for _, sums, counts in bootstrap._waiting)
        return bootstrap._totals.size + bootstrap._drawn.size + waiting

    bootstrap, largest = PoissonBootstrap(5, replicates=20), []
    for image in range(400):
        bootstrap.add(image, np.ones(5), np.ones(5))
        largest.append(stored(bootstrap))
    assert max(largest[200:]) == max(largest[:200]) <= 3 * 5 + 2 * 20 * 5 + 2 * BATCH * 5


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"confidence must lie between 0 and 1.*95"):
        PoissonBootstrap(1).intervals(confidence=95)
    with pytest.raises(InputError, match="replicates must be at least 1"):
        PoissonBootstrap(1, replicates=0)
    with pytest.raises(InputError, match=r"agree in .*\(1, 1000, 0\) and \(2, 1000, 0\)"):
        PoissonBootstrap(1) + PoissonBootstrap(2)
