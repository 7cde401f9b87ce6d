"""Where scored maps peak, beside their scores: every row against plain loops, on records with a planted border and sink."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probe.analysis.concentration import PEAKS
from probe.analysis.profiles import profile
from probe.attention import AttentionRecord
from tests.analysis.images import PHRASES, make_images, score

SINK = (2, 3)


def plant_peaks(record: AttentionRecord) -> AttentionRecord:
    """Head 1 of layer 0 looks at the top right corner while the phrases are said, and every word of layer 1 at one inner patch."""
    first, second = record.layers
    values, others = first.values.clone(), second.values.clone()
    for phrase in PHRASES:
        start = record.text.index(phrase)
        values[0, 1, list(record.tokens_of(start, start + len(phrase))), 0, -1] = 9.0
    others[..., SINK[0], SINK[1]] += 9.0
    layers = [replace(one, values=new, token_mean=new.mean(2)) for one, new in ((first, values), (second, others))]
    return replace(record, layers=tuple(layers))


@pytest.fixture
def images():
    return [(plant_peaks(record), masks) for record, masks in make_images(5)]


def plain_peaks(maps: np.ndarray, words: np.ndarray) -> tuple[float, float, float]:
    """The three of one (row, col) map; ``words`` is the (row, col) attention of the average word."""
    row, col = np.unravel_index(maps.argmax(), maps.shape)
    on_border = row in (0, maps.shape[0] - 1) or col in (0, maps.shape[1] - 1)
    squares = (maps - maps.mean()) ** 2
    return (
        squares.max() / squares.sum(),
        float(on_border),
        float(words[row, col] > 10 * np.quantile(words, 0.5, method="lower")),
    )


def plain(images, pick, *, words_of, minus=True):
    found = []
    for record, masks in images:
        source = record.minus_mean() if minus else record
        words = np.stack([one.values[0].mean((0, 1)).double().numpy() for one in record.layers])  # (layer, row, col)
        for phrase in masks:
            found.append(plain_peaks(pick(source[phrase].stack()[:, 0].mean(2).double().numpy()), words_of(words)))
    return np.mean(found, axis=0)


def found_in(row):
    return [row[name] for name in PEAKS]


@pytest.mark.parametrize("reading", ["minus mean", "attention"])
def test_every_row_of_a_map_tells_where_it_peaks(images, reading):
    frame = score(images, metric=("pointing", "auroc"), reading=reading).to_frame()
    for metric in ("pointing", "auroc"):
        rows = frame[frame["metric"] == metric]
        for name, minus in (("mean_map", False), ("minus_mean", True)):
            expected = plain(images, lambda v: v.mean((0, 1)), words_of=lambda w: w.mean(0), minus=minus)
            assert found_in(rows[rows["name"] == name].iloc[0]) == pytest.approx(expected, abs=1e-5)
        for _, row in rows[rows["kind"] == "layer"].iterrows():
            expected = plain(
                images, lambda v, at=row["layer"]: v[at].mean(0), words_of=lambda w, at=row["layer"]: w[at]
            )
            assert found_in(row) == pytest.approx(expected, abs=1e-5)
        for _, row in rows[rows["kind"] == "head"].iterrows():
            place = (row["layer"], row["head"])
            expected = plain(
                images, lambda v, at=place: v[at], words_of=lambda w, at=place: w[at[0]], minus=reading == "minus mean"
            )
            assert found_in(row) == pytest.approx(expected, abs=1e-5)
        chosen = rows[rows["name"] == "best_head_held_out"].iloc[0]
        of_head = rows[(rows["kind"] == "head") & (rows["layer"] == chosen["layer"]) & (rows["head"] == chosen["head"])]
        assert found_in(chosen) == found_in(of_head.iloc[0])
        assert rows.loc[rows["kind"].isin(["control", "difference"]), list(PEAKS)].isna().all(axis=None)


def test_a_planted_border_and_a_planted_sink_are_named_and_eq_3_removes_the_sink(images):
    raw = score(images, reading="attention").to_frame().query("kind == 'head'").set_index(["layer", "head"])
    assert raw.loc[(0, 1), "border_share"] == 1
    assert raw.loc[(0, 1), "border_share_low"] == 1
    assert (raw.loc[1, "sink_share"] == 1).all()
    assert (raw.loc[1, "border_share"] == 0).all()
    assert raw.loc[(0, 0), "border_share"] < 1
    minus = score(images).to_frame().query("kind == 'head'").set_index(["layer", "head"])
    assert minus.loc[(0, 1), "border_share"] == 1
    assert (minus.loc[1, "sink_share"] < 0.5).all()


def test_over_layers_each_map_is_held_to_the_sinks_of_the_layers_it_is_of(images):
    found = profile([one for one, _ in images], [two for _, two in images], reading="attention", replicates=20)
    places = {one.label: one for one in found.positions}
    for label, layers in (("layer 0", [0]), ("layer 1", [1]), ("up to layer 1", [0, 1])):
        expected = plain(
            images, lambda v, at=layers: v[at].mean((0, 1)), words_of=lambda w, at=layers: w[at].mean(0), minus=False
        )
        shown = [getattr(places[label], name).value for name in PEAKS]
        assert shown == pytest.approx(expected, abs=1e-5)
    assert places["layer 1"].sink_share.value == 1


def test_an_answer_of_one_token_has_no_sinks():
    record, masks = make_images(1)[0]
    single = record.select(tokens=[2])
    layers = tuple(replace(one, token_mean=one.values[:, :, 0]) for one in single.layers)
    alone = [(replace(single, layers=layers), {"circle": masks["red circle"]})]
    rows = score(alone, reading="attention").to_frame().query("metric == 'pointing'").set_index("name")
    assert np.isfinite(rows.loc["mean_map", "border_share"])
    assert np.isnan(rows.loc["mean_map", "sink_share"])
    assert rows.loc["minus_mean", list(PEAKS)].isna().all()
