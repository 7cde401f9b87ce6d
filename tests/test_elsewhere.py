"""Records whose tensors are on a GPU are read as those on the CPU are: no step mixes the two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import probe
from probe.analysis.comparisons import SystemRecord, compare_records
from probe.analysis.localisation_heads import find_localisation_heads
from probe.analysis.metrics import METRICS
from probe.analysis.readouts import score_readouts
from probe.analysis.remedies import score_remedies
from probe.analysis.sinks import stable_sinks
from probe.analysis.stability import ranking_stability
from tests.elsewhere import DEVICE, elsewhere, moved
from tests.records import make_grid, make_record

PHRASES = ("red circle", "blue square")
GRIDS = [make_grid(4, 4, image_size=(32, 32)), make_grid(5, 3, image_size=(32, 32))]
FEW = {"replicates": 20}
PARTS = ("values", "token_mean", "rest")


def _masks(seed=0):
    """A part of the picture for the first phrase, and the rest for the second."""
    first = np.zeros((32, 32), bool)
    first[3 + seed : 17, 5:20] = True
    return dict(zip(PHRASES, (first, ~first), strict=True))


def _over_steps(record):
    """The same with a second timestep, at which every row is another."""

    def twice(layer):
        tensors = {name: torch.cat([getattr(layer, name), getattr(layer, name).flip(1)]) for name in PARTS}
        return replace(layer, **tensors, timesteps=(500, 100))

    return replace(record, layers=tuple(map(twice, record.layers)))


def _picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


def _files(record, folder):
    probe.save(record, folder / "record.safetensors")
    return [one.values for one in probe.load(folder / "record.safetensors").layers]


def _page(record, folder):
    probe.explore(record, _picture(), _masks()).save(folder / "page.html")
    return (folder / "page.html").read_text()


def _compared(records, folder):
    systems = (
        {"a": SystemRecord(one, _masks()), "b": SystemRecord(other, _masks())}
        for one, other in zip(records, records[::-1], strict=True)
    )
    found = compare_records(systems, replicates=20, permutations=20)
    return found.to_frame()


WAYS = {
    "scores": lambda records, _: probe.score_heads(records, map(_masks, range(4)), metric=list(METRICS), **FEW).to_frame(),
    "scores of maxima": lambda records, _: probe.score_heads(
        records, map(_masks, range(4)), metric="auroc", combine="max", reading="attention", **FEW
    ).to_frame(),
    "profile over layers": lambda records, _: probe.profile(records, map(_masks, range(4)), **FEW).to_frame(),
    "profile over tokens": lambda records, _: probe.profile(records, map(_masks, range(4)), over="token", **FEW).to_frame(),
    "scores over timesteps": lambda records, _: probe.score_heads(
        map(_over_steps, records), map(_masks, range(4)), **FEW
    ).to_frame(),
    "profile over timesteps": lambda records, _: probe.profile(
        map(_over_steps, records), map(_masks, range(4)), over="timestep", **FEW
    ).to_frame(),
    "comparison": _compared,
    "localisation heads": lambda records, _: find_localisation_heads(records, rows="all", relative=True, per_image=4, **FEW),
    "readouts": lambda records, _: score_readouts(records, map(_masks, range(4)), **FEW),
    "stability": lambda records, _: ranking_stability(records, map(_masks, range(4)), splits=10),
    "remedies": lambda records, _: score_remedies(
        records, map(_masks, range(4)), generic=records[::-1], replicates=20, permutations=20
    ),
    "sinks": lambda records, _: [stable_sinks(one) for one in records],
    "masks": lambda records, _: [one.mask for one in probe.attend_and_segment(records[0], _picture()).phrases],
    "superpixels": lambda records, _: [
        one.mask for one in probe.attend_and_segment(records[0], _picture(), refiner="superpixels").phrases
    ],
    "picture": lambda records, _: [np.asarray(probe.plots.overlay(records[0]["red circle"], _picture()).images[-1].get_array())],
    "filmstrip": lambda records, _: [
        np.asarray(ax.images[-1].get_array()) for ax in probe.plots.filmstrip(records[0], "red circle", _picture())
    ],
    "page": lambda records, folder: [_page(records[0], folder)],
    "file": lambda records, folder: _files(records[0], folder),
    "mean, part and stack": lambda records, _: [
        records[0]["red circle"].mean("head", "layer").layers[0].values,
        records[0].select(layers=[1], heads=[0, 2]).minus_mean().layers[0].values,
        records[0].stack(grid=(4, 4)),
        records[0]["blue square"].heatmap(),
    ],
}  # fmt: skip


def _plain(found):
    """Tables as they are, tensors and arrays as arrays."""
    if isinstance(found, pd.DataFrame):
        return found
    return [np.asarray(one.cpu()) if isinstance(one, torch.Tensor) else one for one in found]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(grid.shape))
def test_what_is_read_elsewhere_is_what_is_read_here(name, grid, tmp_path):
    records = [make_record(seed=seed, grid=grid) for seed in range(4)]
    expected = _plain(WAYS[name](records, tmp_path))
    with elsewhere():
        found = _plain(WAYS[name]([moved(one) for one in records], tmp_path))
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
        return
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_equal(mine, theirs)


def test_a_mixture_of_both_devices_is_an_error_there_as_on_a_gpu():
    values = make_record().layers[0].values
    with elsewhere():
        other = moved(make_record()).layers[0].values
        assert other.device == DEVICE
        with pytest.raises(RuntimeError, match="same device"):
            _ = values + other
        with pytest.raises(RuntimeError, match="numpy"):
            other.numpy()
        assert torch.equal((other * 2).cpu(), values * 2)
        assert type(torch.zeros(3, device=other.device)) is type(other)
