"""How long scoring takes; printed, never asserted, because the clock belongs to the machine. Run with ``pytest -s``."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from probe.analysis import score_heads
from probe.layout import PatchGrid
from tests.records import make_grid, make_record

GRIDS = {
    "square": make_grid(24, 24, image_size=(336, 336)),
    "padded": PatchGrid.from_affine(
        (480, 640), shape=(24, 24), patch_size=14, scale=(0.525, 0.525), offset=(42.0, 0.0)
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_one_image_of_a_7b_model(name: str) -> None:
    grid = GRIDS[name]
    record = make_record(layers=32, heads=32, grid=grid, text=" ".join(f"word{i}" for i in range(20)))
    rng = np.random.default_rng(0)
    masks = {}
    for i in range(20):
        masks[f"word{i}"] = np.zeros(grid.image_size, dtype=bool)
        top, left = rng.integers(0, 250, 2)
        masks[f"word{i}"][top : top + 80, left : left + 70] = True
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        scores = score_heads([record], [masks], metric=("pointing", "auroc", "lift"))
        seconds.append(time.perf_counter() - start)
    print(
        f"\nscore_heads, one {name} image, 1,024 heads x 20 phrases, 24 x 24 patches, pointing + auroc + lift, 1,000 replicates: "
        f"{min(seconds):.2f} s (best of 5) with {torch.get_num_threads()} threads"
    )
    assert scores.grid("lift")[0].shape == (32, 32)
    assert scores.reading("minus_mean").phrases == 20
