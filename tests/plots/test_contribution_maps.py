"""Contributions are drawn on both sides of zero, and no picture of an image encoder can be taken for attention from text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import probe.plots
from probe.analysis import score_heads
from probe.analysis.grids import mean_of_layers
from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.plots.maps import NO_TEXT
from tests.analysis.images import make_images
from tests.records import make_grid, make_record

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def contribution(sign: float = 1.0) -> AttentionRecord:
    record = make_record()
    layers = tuple(replace(one, values=sign * (one.values - 0.06)) for one in record.layers)
    return replace(record, layers=layers, quantity="contribution", query_kind="class token", softmax_over=None)


def label_of(ax) -> str:
    [bar] = [one for one in ax.figure.axes if one.get_label() == "<colorbar>"]
    return " ".join(f"{bar.get_ylabel()} {bar.get_xlabel()}".split())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_scale_of_contributions_has_zero_in_its_middle(sign) -> None:
    phrase = contribution(sign)["red circle"]
    ax = probe.plots.overlay(phrase, IMAGE, reading="attention", smooth=False)
    values = phrase.stack().mean((0, 1, 2, 3)).abs().max()
    assert ax.images[1].get_clim() == pytest.approx((-float(values), float(values)))
    colours = ax.images[1].cmap(np.array([0.0, 0.5, 1.0]))
    # Nothing is drawn at zero, and the two ends are opaque and of different colours.
    assert colours[1, 3] == pytest.approx(0, abs=0.01)
    assert colours[0, 3] == colours[2, 3] > 0.8
    assert np.abs(colours[0, :3] - colours[2, :3]).max() > 0.3
    assert "not drawn" not in label_of(ax)


def test_pictures_say_what_they_are_of() -> None:
    record = contribution()
    label = label_of(probe.plots.overlay(record["red circle"], IMAGE))
    assert label.startswith(f"contribution to the similarity with the text minus mean over texts; {NO_TEXT}")
    label = label_of(probe.plots.phrases(record, ["red circle", "square"], IMAGE, reading="attention")[0])
    assert label.startswith(f"contribution to the similarity with the text; {NO_TEXT}")
    label = label_of(probe.plots.filmstrip(record, "red circle", IMAGE)[0])
    assert NO_TEXT in label
    row = replace(make_record(), query_kind="class token").select(tokens=[0])
    label = label_of(probe.plots.overlay(row, IMAGE, reading="attention"))
    assert label.startswith(f"attention of the class token, the same whatever the text; {NO_TEXT}")
    assert NO_TEXT not in label_of(probe.plots.overlay(make_record()["red circle"], IMAGE))


def test_tables_of_contributions_say_so_also_when_read_back_from_a_file(tmp_path) -> None:
    images = [(replace(r, quantity="contribution", query_kind="class token"), m) for r, m in make_images(2)]
    scores = score_heads(*zip(*images, strict=True), metric="auroc", replicates=20)
    scores.to_frame().to_parquet(tmp_path / "scores.parquet")
    for table in (scores, pd.read_parquet(tmp_path / "scores.parquet")):
        for draw in (probe.plots.heads, probe.plots.readings):
            assert NO_TEXT in " ".join(draw(table).get_title().split())
        assert "auroc (contribution minus mean)" in probe.plots.heads(table).get_title()
    plain = score_heads(*zip(*make_images(2), strict=True), metric="auroc", replicates=20)
    assert NO_TEXT not in " ".join(probe.plots.readings(plain).get_title().split())


def test_ragged_layers_and_timesteps_are_drawn() -> None:
    record = make_record(layers=2)
    coarse = make_record(layers=1, heads=2, seed=5, grid=make_grid(2, 2, image_size=(32, 32))).layers[0]
    ragged = replace(record, layers=(*record.layers, coarse), softmax_over="tokens")
    ax = probe.plots.overlay(ragged["red circle"], IMAGE, smooth=False)
    [layer] = mean_of_layers(ragged.minus_mean()["red circle"].mean("token")).layers
    shown = np.ma.filled(ax.images[1].get_array().astype(float), np.nan)
    np.testing.assert_allclose(shown, layer.values[0, 0, 0].numpy().repeat(8, 0).repeat(8, 1), atol=1e-7)
    steps = tuple(
        replace(
            one,
            values=one.values.repeat(2, 1, 1, 1, 1) * np.array([1, 2]).reshape(2, 1, 1, 1, 1),
            token_mean=one.token_mean.repeat(2, 1, 1, 1),
            rest=one.rest.repeat(2, 1, 1, 1),
            timesteps=(700, 100),
        )
        for one in record.layers
    )
    axes = probe.plots.filmstrip(
        replace(record, layers=steps), "red circle", IMAGE, over="timestep", reading="attention"
    )
    assert [ax.get_title() for ax in axes] == ["timestep 700", "timestep 100"]
    # The one bar is of both pictures, so it names neither's timestep.
    assert not any("timestep" in ax.get_xlabel() for ax in axes[0].figure.axes)
    one, two = (np.nanmax(np.ma.filled(ax.images[1].get_array().astype(float), np.nan)) for ax in axes)
    assert two == pytest.approx(2 * one)
    with pytest.raises(InputError, match="no timesteps of their own"):
        probe.plots.filmstrip(record, "red circle", IMAGE, over="timestep")


def test_a_variance_over_draws_is_called_one() -> None:
    record = replace(make_record(), history=("variance over 8 draws of noise",))
    ax = probe.plots.overlay(record["red circle"], IMAGE, reading="attention")
    [label] = [one.get_ylabel() for one in ax.figure.axes if one is not ax]
    assert label.startswith("variance of attention over 8 draws of noise")


def test_words_below_several_rows_are_no_longer_than_a_row() -> None:
    record = replace(make_record(layers=8), quantity="contribution", query_kind="class token", softmax_over=None)
    with probe.plots.style():
        figure = probe.plots.new_figure()  # one column wide
        axes = list(figure.subplots(2, 4).flat)
    probe.plots.filmstrip(record, "red circle", IMAGE, axes=axes)
    [bar] = [one for one in figure.axes if one not in axes]
    figure.draw_without_rendering()
    label = bar.xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= label.x0
    assert label.x1 <= figure.bbox.x1
