"""Layers on different grids: each is scored on its own, and their mean is taken on the finest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probe.analysis import score_heads
from probe.analysis.grids import common_grid, mean_of_layers, onto_grid
from probe.analysis.metrics import METRICS
from probe.analysis.profiles import profile
from probe.analysis.targets import Target
from probe.attention import AttentionRecord
from tests.analysis.images import make_masks
from tests.records import make_grid, make_record

SIZE = (24, 36)


def ragged(seed: int, *, softmax_over: str = "tokens", shapes: tuple = ((2, 3), (4, 6), (4, 6))) -> AttentionRecord:
    """A record of three layers on two grids, the second of which has two heads fewer."""
    parts = [
        make_record(layers=1, seed=10 * seed + i, grid=make_grid(*shape, image_size=SIZE))
        for i, shape in enumerate(shapes)
    ]
    layers = [replace(one.layers[0], name=f"layer {i}") for i, one in enumerate(parts)]
    layers[1] = replace(parts[1].select(heads=[1]).layers[0], name="layer 1")
    return replace(parts[0], layers=tuple(layers), softmax_over=softmax_over)  # type: ignore[arg-type]


IMAGES = [(ragged(seed), make_masks(seed, SIZE)) for seed in range(3)]


def test_a_coarse_map_is_repeated_and_its_mass_kept_where_patches_share_it() -> None:
    coarse, fine = make_grid(1, 2, image_size=(8, 8)), make_grid(2, 4, image_size=(8, 8))
    values = torch.tensor([[1.0, 3.0]])
    assert onto_grid(values, coarse, fine, mass=False).tolist() == [[1, 1, 3, 3], [1, 1, 3, 3]]
    assert onto_grid(values, coarse, fine, mass=True).sum() == values.sum()
    back = onto_grid(torch.arange(8.0).view(2, 4), fine, coarse, mass=False)
    assert back.tolist() == [[(0 + 1 + 4 + 5) / 4, (2 + 3 + 6 + 7) / 4]]
    # Three patches onto two: each new one takes one and a half.
    thirds = make_grid(1, 3, image_size=(8, 9))
    moved = onto_grid(torch.tensor([[0.0, 6.0, 12.0]]), thirds, make_grid(1, 2, image_size=(8, 9)), mass=False)
    torch.testing.assert_close(moved, torch.tensor([[2.0, 10.0]]))


@pytest.mark.parametrize("softmax_over", ["tokens", "patches"])
def test_the_mean_of_ragged_layers_is_on_the_finest_grid_and_says_so(softmax_over: str) -> None:
    record = ragged(0, softmax_over=softmax_over)
    assert common_grid(record.layers).shape == (4, 6)
    found = mean_of_layers(record)
    [layer] = found.layers
    share = 4 if softmax_over == "patches" else 1  # one coarse patch is four fine ones
    coarse = record.layers[0].values.mean(1).repeat_interleave(2, -2).repeat_interleave(2, -1) / share
    plain = (coarse + record.layers[1].values.mean(1) + record.layers[2].values.mean(1)) / 3
    torch.testing.assert_close(layer.values[:, 0], plain)
    assert "area-averaged onto 4 x 6 patches" in found.history
    alike = make_record()
    assert torch.equal(mean_of_layers(alike).layers[0].values, alike.mean("layer").layers[0].values)


def test_heads_and_layers_of_ragged_records_are_scored_on_their_own_grids() -> None:
    scores = score_heads(*zip(*IMAGES, strict=True), metric="auroc", replicates=20)
    frame = scores.to_frame()
    for number in range(3):
        alone = [record.select(layers=[number]) for record, _ in IMAGES]
        expected = score_heads(alone, [masks for _, masks in IMAGES], metric="auroc", replicates=20).to_frame()
        for kind in ("head", "layer"):
            found = frame[(frame.kind == kind) & (frame.layer == number)].value
            assert np.allclose(found, expected[expected.kind == kind].value)
    assert scores.heads == ((0, 1, 2), (1,), (0, 1, 2))


def test_readings_of_ragged_records_are_of_the_mean_on_the_finest_grid() -> None:
    scores = score_heads(*zip(*IMAGES, strict=True), metric="auroc", replicates=20)
    over = profile(*zip(*IMAGES, strict=True), over="layer", metric="auroc", replicates=20).to_frame()
    found = []
    for record, masks in IMAGES:
        for phrase, mask in masks.items():
            [layer] = mean_of_layers(record.minus_mean()[phrase].mean("token", "head")).layers
            target = Target.from_masks(layer.grid, mask)
            found.append(METRICS["auroc"](layer.values[0, 0, 0], target).item())
    assert scores.reading("minus_mean").value == pytest.approx(np.mean(found), abs=1e-6)
    assert over.query("kind == 'up to layer' and number == 2").value.item() == pytest.approx(np.mean(found), abs=1e-6)
    # Controls are of the finest grid as well: of a uniform map on it.
    assert scores.reading("chance").value == 0.5
