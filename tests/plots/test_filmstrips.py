"""One phrase through layers, tokens and checkpoints, on one scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import probe
from probe.errors import InputError
from tests.records import make_grid, make_record

IMAGE = Image.new("RGB", (32, 32), "grey")


def scales(axes):
    return {ax.images[1].get_clim() for ax in axes}


def drawn(ax):
    return np.ma.filled(ax.images[1].get_array(), np.nan)


def test_layers_share_one_scale_that_holds_the_largest_patch():
    record = make_record(layers=3)
    axes = probe.plots.filmstrip(record, "red circle", IMAGE)
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 1", "layer 2"]
    whole = record.minus_mean()["red circle"].stack()[:, 0].mean((1, 2))  # (layer, row, col)
    [(low, high)] = scales(axes)
    assert low == 0
    assert high == pytest.approx(float(whole.max()))


def test_each_picture_is_its_own_layer_token_or_record():
    record = make_record(layers=2)
    patches = {"smooth": False}
    for number, ax in enumerate(probe.plots.filmstrip(record, "red circle", IMAGE, **patches)):
        expected = record.minus_mean()["red circle"].stack()[number, 0].mean((0, 1))
        assert np.allclose(drawn(ax)[4::8, 4::8], expected)
    tokens = probe.plots.filmstrip(record, "red circle", IMAGE, over="token", **patches)
    assert [ax.get_title() for ax in tokens] == ["1: red", "2: circle"]
    assert np.allclose(drawn(tokens[1])[4::8, 4::8], record.minus_mean().stack()[:, 0, :, 2].mean((0, 1)))
    assert len(scales(tokens)) == 1
    other = make_record(layers=2, seed=1)
    through = probe.plots.filmstrip({100: record, 2500: other}, "red circle", IMAGE, over="checkpoint", **patches)
    assert [ax.get_title() for ax in through] == ["step 100", "step 2500"]
    expected = other.minus_mean()["red circle"].stack()[:, 0].mean((0, 1, 2))
    assert np.allclose(drawn(through[1])[4::8, 4::8], expected)
    assert len(scales(through)) == 1


def test_the_true_mask_is_outlined_in_every_picture():
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:16, 8:16] = True
    bare = probe.plots.filmstrip(make_record(), "red circle", IMAGE)
    outlined = probe.plots.filmstrip(make_record(), "red circle", IMAGE, mask=mask)
    for one, other in zip(bare, outlined, strict=True):
        assert len(other.collections) == len(one.collections) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"over": "head"}, "over must be 'layer', 'timestep', 'token' or 'checkpoint', found 'head'"),
        ({"over": "checkpoint"}, "give a mapping step -> record"),
        ({"found": {1: make_record()}}, "draws one record, found dict"),
        ({"found": {}, "over": "checkpoint"}, "with at least one"),
        ({"axes": []}, "2 pictures over layer but 0 Axes"),
        ({"phrase": "green dog"}, "'green dog' is not in the text"),
        (
            {"found": [make_record(), make_record(grid=make_grid(4, 4, image_size=(16, 16)))], "over": "checkpoint"},
            "images of different sizes",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(change, message):
    given = {"found": make_record(), "phrase": "red circle", "image": IMAGE} | change
    with pytest.raises(InputError, match=message):
        probe.plots.filmstrip(given.pop("found"), given.pop("phrase"), given.pop("image"), **given)


def test_layers_without_numbers_in_their_names_are_counted():
    record = make_record()
    named = replace(record, layers=tuple(replace(one, name=f"block_{'ab'[i]}") for i, one in enumerate(record.layers)))
    assert [ax.get_title() for ax in probe.plots.filmstrip(named, "red circle", IMAGE)] == ["layer 0", "layer 1"]
