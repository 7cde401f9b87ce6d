"""The maps of a view are the record's own: each against a plain line, and against what a figure draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.plots.maps import phrase_map
from probe.widgets.sheets import (
    averaged_tokens,
    make_sheet,
    map_of,
    mean_sheet,
    of_view,
    readings_of,
    timesteps_of,
    view_names,
)
from tests.records import make_grid, make_record
from tests.widgets.made import ragged_record


@pytest.mark.parametrize("reading", ["minus mean", "attention"])
@pytest.mark.parametrize("step", [None, 1])
def test_every_head_is_the_mean_of_its_tokens(reading, step):
    record = ragged_record()
    sheet = make_sheet(record, [1, 4], timestep=step, reading=reading)
    assert [one.shape for one in sheet.heads] == [(2, 8, 8), (3, 4, 4)]
    for number, layer in enumerate(record.layers):
        values, mean = layer.values.double().numpy(), layer.token_mean.double().numpy()
        steps = [0, 1, 2] if step is None else [step]
        for head in range(len(layer.heads)):
            plain = np.mean([(values[at, head, 1] + values[at, head, 4]) / 2 for at in steps], axis=0)
            plain -= np.mean(mean[steps, head], axis=0) if reading == "minus mean" else 0
            np.testing.assert_allclose(sheet.heads[number][head], plain, atol=1e-7)
            found, grid = map_of(record, [1, 4], layer=number, head=head, timestep=step, reading=reading)
            assert np.array_equal(found, sheet.heads[number][head])
            assert grid is layer.grid
        np.testing.assert_allclose(sheet.means[number], sheet.heads[number].mean(0), atol=1e-7)


def test_the_mean_of_all_layers_is_what_a_figure_draws():
    for record in (make_record(), ragged_record()):
        for reading in ("minus mean", "attention"):
            drawn = phrase_map(record.select(tokens=[1, 2]), reading=reading, view=None)
            sheet = make_sheet(record, [1, 2], reading=reading)
            np.testing.assert_allclose(sheet.overall, drawn.values, atol=1e-7)
            assert sheet.grid.row_edges == drawn.grid.row_edges


def test_the_subtracted_mean_tells_one_reading_from_the_other():
    record = ragged_record()
    for step in (None, 2):
        as_recorded, subtracted = (
            make_sheet(record, [3], timestep=step, reading=one) for one in ("attention", "minus mean")
        )
        mean = mean_sheet(record, timestep=step)
        np.testing.assert_allclose(subtracted.overall + mean.overall, as_recorded.overall, atol=1e-7)
        for number in range(2):
            np.testing.assert_allclose(
                subtracted.heads[number] + mean.heads[number], as_recorded.heads[number], atol=1e-7
            )


def test_readings_that_a_record_allows():
    record = make_record()
    assert readings_of(record) == ("minus mean", "attention")
    assert readings_of(record.minus_mean()) == ("minus mean",)
    assert readings_of(replace(record, query_kind="class token")) == ("attention",)
    alone = make_record(text="circle").select(tokens=[0])
    assert readings_of(alone) == ("minus mean", "attention")  # its mean was taken with the end token
    single = replace(alone, layers=tuple(replace(one, token_mean=one.values[:, :, 0]) for one in alone.layers))
    assert readings_of(single) == ("attention",)


def test_all_tokens_are_told_from_some():
    record = make_record()
    assert averaged_tokens(record) == list(range(len(record.tokens)))
    assert averaged_tokens(record["red circle"]) == []
    # A mean over the words alone, without the end token, as a diffusion model's is.
    words = [place for place, (low, high) in enumerate(record.spans) if high > low]
    assert len(words) < len(record.tokens)
    layers = tuple(replace(one, token_mean=one.values[:, :, words].mean(2)) for one in record.layers)
    of_words = replace(record, layers=layers)
    assert averaged_tokens(of_words) == words
    assert not make_sheet(of_words, words).overall.any()  # and no rounding
    assert not map_of(of_words, words, layer=1, head=0)[0].any()
    assert make_sheet(of_words, words[:-1]).overall.any()
    assert make_sheet(of_words, words, reading="attention").overall.any()


def test_views_and_timesteps():
    record = make_record()
    small = replace(record.layers[0], view="thumbnail")
    both = replace(record, layers=(*record.layers, small))
    assert view_names(both) == ("image 0", "thumbnail")
    assert of_view(both, "thumbnail").layers == (small,)
    assert timesteps_of(record) == ()
    ragged = ragged_record()
    assert timesteps_of(ragged) == (900, 500, 100)
    other = replace(ragged.layers[1], timesteps=(900, 500, 1))
    assert timesteps_of(replace(ragged, layers=(ragged.layers[0], other))) == ()


def test_grids_of_other_places_keep_their_own():
    low = make_record(layers=1, grid=make_grid(2, 2, image_size=(32, 32)))
    high = make_record(layers=1, grid=make_grid(4, 4, image_size=(32, 32)))
    sheet = make_sheet(replace(low, layers=(*low.layers, *high.layers)), [0], reading="attention")
    # A share of attention on one large patch is a quarter of it on each of its four quarters.
    coarse = np.kron(low.layers[0].values[0, :, 0].mean(0).numpy(), np.ones((2, 2))) / 4
    np.testing.assert_allclose(sheet.overall, (coarse + high.layers[0].values[0, :, 0].mean(0).numpy()) / 2, atol=1e-7)
