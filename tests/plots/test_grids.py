from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

import probe.plots
from probe.errors import InputError
from probe.plots.grids import text_colour
from probe.plots.tables import layer_numbers
from tests.plots.scores import Scores, make_frame, path
from tests.records import make_record

VALUES = np.array([[0.123, 0.456, 0.789, 0.5], [0.05, 0.95, np.nan, np.nan]])


def written(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_axes_in_same_axes_out() -> None:
    before = plt.get_fignums()
    figure = probe.plots.new_figure()
    first, second = figure.subplots(1, 2)
    assert probe.plots.heads(Scores(make_frame(VALUES)), ax=first) is first
    assert probe.plots.readings(Scores(make_frame(VALUES)), ax=second) is second
    assert plt.get_fignums() == before


def test_every_number_written_is_the_tables() -> None:
    ax = probe.plots.heads(Scores(make_frame(VALUES)))
    values, intervals = [text for text in written(ax) if "–" not in text], [one for one in written(ax) if "–" in one]
    assert values == [f"{one:.2f}" for one in VALUES[np.isfinite(VALUES)]]
    assert intervals == [f"{one - 0.02:.2f}–{one + 0.03:.2f}" for one in VALUES[np.isfinite(VALUES)]]
    at = {tuple(text.get_position()): text.get_text() for text in ax.texts}
    assert at[(3, -0.14)] == "0.50"  # row 0, col 3: a little above the middle of its cell, the interval below
    assert np.ma.allequal(ax.images[0].get_array(), np.ma.masked_invalid(VALUES))


def test_without_intervals_only_values_are_written() -> None:
    assert len(written(probe.plots.heads(make_frame(VALUES), intervals=False))) == 6


def test_heads_says_what_it_shows() -> None:
    ax = probe.plots.heads(make_frame(VALUES))
    assert ax.get_title() == "pointing: 500 images, 1,432 phrases"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")
    assert " ".join(ax.images[0].colorbar.ax.get_ylabel().split()) == "pointing; triangle: chance, 0.10"
    [marker] = [line for line in ax.images[0].colorbar.ax.lines if line.get_marker() == ">"]
    assert marker.get_ydata() == pytest.approx([0.1])


def test_scale_holds_all_values_and_chance_or_is_given() -> None:
    assert probe.plots.heads(make_frame(VALUES, chance=0.01)).images[0].get_clim() == (0.01, 0.95)
    ax = probe.plots.heads(make_frame(VALUES), limits=(0.2, 0.8))
    assert ax.images[0].get_clim() == (0.2, 0.8)
    assert ax.images[0].colorbar.extend == "both"
    assert "off this scale, 0.10" in " ".join(ax.images[0].colorbar.ax.get_ylabel().split())
    with pytest.raises(InputError, match="low < high"):
        probe.plots.heads(make_frame(VALUES), limits=(1, 0))


def test_large_grid_outlines_the_highest_instead_of_writing() -> None:
    values = np.random.default_rng(0).random((32, 32))
    ax = probe.plots.heads(make_frame(values))
    assert not ax.texts
    boxes = [one for one in ax.patches if isinstance(one, Rectangle)]
    cells = {(round(one.get_y() + 0.5), round(one.get_x() + 0.5)) for one in boxes}
    assert cells == {divmod(int(i), 32) for i in np.argsort(values, axis=None)[-10:]}
    assert "10 highest" in ax.get_title()


def test_table_read_back_from_a_file_draws_the_same() -> None:
    frame = make_frame(VALUES)
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert written(probe.plots.heads(again)) == written(probe.plots.heads(frame))
    assert written(probe.plots.readings(again)) == written(probe.plots.readings(frame))


def test_readings_draws_and_writes_every_row() -> None:
    ax = probe.plots.readings(make_frame(VALUES))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [
        "mean map",
        "best head held out*",
        "layer 0",
        "layer 1",
        "chance",
        "oracle patch",
    ]
    assert written(ax)[0] == "0.61 [0.55, 0.66]"
    assert written(ax)[4] == "0.10"  # chance has no interval
    spans = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert (0.55, 0.66) in spans
    assert (0.1, 0.1) in spans  # chance, from top to bottom
    assert ax.get_xlabel() == "pointing (dashed: chance)\n* on 250 images"


def test_names_are_never_read_as_formulas() -> None:
    frame = make_frame(VALUES).replace({"name": {"oracle_patch": "$x^2$"}, "metric": {"pointing": r"$\frac$"}})
    ax = probe.plots.readings(frame)
    label = ax.get_yticklabels()[-1]
    assert (label.get_text(), label.get_parse_math()) == ("$x^2$", False)
    ax.figure.canvas.draw()  # as a formula, the metric's name would raise here
    probe.plots.heads(frame).figure.canvas.draw()


def test_an_unknown_metric_or_table_is_refused() -> None:
    frame = make_frame(VALUES, metrics=("pointing", "auroc"))
    assert "auroc" in probe.plots.heads(frame, metric="auroc").get_title()
    with pytest.raises(InputError, match=r"'auroq'.*Did you mean 'auroc'"):
        probe.plots.heads(frame, metric="auroq")
    with pytest.raises(InputError, match="no 'high'"):
        probe.plots.heads(frame.drop(columns="high"))
    with pytest.raises(InputError, match="dict has no 'metric'"):
        probe.plots.readings({})
    with pytest.raises(InputError, match="single heads alone"):
        probe.plots.readings(frame[frame["kind"] == "head"])
    with pytest.raises(InputError, match="for any head"):
        probe.plots.heads(frame[frame["kind"] != "head"])


def test_heads_are_numbered_as_in_the_model() -> None:
    frame = make_frame(VALUES[:, :2])
    frame["head"] = frame["head"].map({0: 4, 1: 7})
    ax = probe.plots.heads(frame)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "7"]
    assert ax.images[0].get_array().shape == (2, 2)


def test_real_scores_are_drawn() -> None:
    record = make_record()
    mask = np.zeros((32, 32), dtype=bool)
    mask[:16, :16] = True
    scores = probe.score_heads([record, record], [{"red circle": mask}] * 2, metric="auroc", replicates=50)
    ax = probe.plots.heads(scores)
    np.testing.assert_array_equal(ax.images[0].get_array(), scores.grid()[0])
    assert ax.get_title() == "auroc (minus mean): 2 images, 2 phrases"
    ax = probe.plots.readings(scores)
    assert f"{scores.reading('mean_map').value:.2f}" in written(ax)[0]


def test_layers_are_numbered_as_in_the_model() -> None:
    assert layer_numbers((path(3), path(17))) == (3, 17)
    assert layer_numbers(("down.0.attn.1", "down.0.attn.2")) == (0, 1)
    assert layer_numbers(("mid", "up.1")) == (0, 1)


@pytest.mark.parametrize(
    ("colour", "text"), [("white", "black"), ("black", "white"), ("gold", "black"), ("navy", "white")]
)
def test_text_stands_out_from_its_cell(colour: str, text: str) -> None:
    from matplotlib.colors import to_rgba

    assert text_colour(to_rgba(colour)) == text
