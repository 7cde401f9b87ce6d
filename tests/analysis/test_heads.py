"""score_heads against record.minus_mean() and plain loops; planted heads; the two halves; streaming."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch

from probe.analysis import score_heads
from probe.analysis.metrics import METRICS
from probe.analysis.targets import Target, resize_masks
from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.layout import PatchGrid
from tests.analysis.images import PHRASES, SIZES, make_images, make_masks, plain, plant, score
from tests.records import make_grid, make_record


@pytest.mark.parametrize("combine", ["mean", "first", "max"])
def test_every_row_equals_a_plain_loop(combine: Any) -> None:
    images = make_images(4)
    for reading in ("minus mean", "attention"):
        scores = score(images, metric=("auroc", "lift"), combine=combine, reading=reading)
        minus = reading == "minus mean"
        for metric in scores.metrics:
            value, _, _ = scores.grid(metric)
            for layer, head in np.ndindex(2, 3):
                expected = plain(images, metric, lambda v, at=(layer, head): v[at], combine=combine, minus=minus)
                assert value[layer, head] == pytest.approx(expected, abs=1e-6)
            mean_map = plain(images, metric, lambda v: v.mean((0, 1)), combine=combine, minus=False)
            minus_mean = plain(images, metric, lambda v: v.mean((0, 1)), combine=combine)
            assert scores.reading("mean_map", metric).value == pytest.approx(mean_map, abs=1e-6)
            assert scores.reading("minus_mean", metric).value == pytest.approx(minus_mean, abs=1e-6)
            frame = scores.to_frame().query("metric == @metric and kind == 'layer'")
            for layer in range(2):
                by_layer = plain(images, metric, lambda v, at=layer: v[at].mean(0), combine=combine)
                assert frame.value.iloc[layer] == pytest.approx(by_layer, abs=1e-6)


def test_a_planted_head_comes_out_on_top() -> None:
    # Masks are 8 pixels wide, so that some patch of 4 lies wholly inside each.
    images = [(plant(record, masks, layer=1, head=2), masks) for record, masks in make_images(10, patch=4)]
    scores = score(images, metric=("pointing", "auroc"), reading="attention")
    assert scores.grid("pointing")[0][1, 2] == 1
    assert scores.grid("auroc")[0][1, 2] == pytest.approx(scores.reading("oracle_patch", "auroc").value, abs=1e-6)
    for split in ("all", "held-out"):
        best = scores.top(3, split=split).iloc[0]
        assert (best["layer"], best["head"], best["value"]) == (1, 2, 1)
        assert best["name"] == "layers.1.self_attn"
    held_out = scores.to_frame().query("metric == 'pointing' and name == 'best_head_held_out'").iloc[0]
    assert (held_out["kind"], held_out["layer"], held_out["head"], held_out["images"]) == ("held-out", 1, 2, 5)
    assert scores.reading("best_head_held_out").value == 1


def test_held_out_is_chosen_on_even_images_and_reported_on_odd_ones() -> None:
    images = []
    for index, (record, masks) in enumerate(make_images(12, patch=4)):
        # Head (0, 1) is perfect on even images and looks away from the mask on odd ones; head (1, 0) is the other way round.
        record = plant(record, masks, layer=0, head=1, factor=1.0 if index % 2 == 0 else -1.0)
        record = plant(record, masks, layer=1, head=0, factor=-1.0 if index % 2 == 0 else 1.0)
        images.append((record, masks))
    scores = score(images, metric="auroc", reading="attention")
    top = scores.top(6, split="held-out")
    assert (top.layer[0], top["head"][0]) == (0, 1)
    assert top.chosen_by[0] > 0.95
    assert top.value[0] < 0.05
    assert (top.layer[5], top["head"][5], top.value[5] > 0.95) == (1, 0, True)
    assert scores.reading("best_head_held_out").value == top.value[0]
    assert scores.reading("best_head_held_out").images == 6
    assert "chosen_by" not in scores.top(1)
    assert len(scores.top(4)) == 4


def test_controls_use_the_minus_mean_map_and_the_previous_image() -> None:
    images = make_images(5)
    scores = score(images, metric="auroc")
    shuffled, chance, other = [], [], []
    for (record, masks), (_, previous) in zip(images[1:], images, strict=False):
        grid = record.layers[0].grid
        for phrase in masks:
            values = record.minus_mean()[phrase].stack().mean((0, 1, 2, 3))
            against = [resize_masks(mask, record.image_size) for mask in previous.values()]
            shuffled.append(np.mean([METRICS["auroc"](values, Target.from_masks(grid, one)).item() for one in against]))
    for record, masks in images:
        grid = record.layers[0].grid
        for phrase, partner in (PHRASES, PHRASES[::-1]):
            values = record.minus_mean()[partner].stack().mean((0, 1, 2, 3))
            other.append(METRICS["auroc"](values, Target.from_masks(grid, masks[phrase])).item())
            centres = grid.centres.reshape(-1, 2)
            chance.append(np.mean([masks[phrase][row, col] for row, col in centres]))
    assert scores.reading("shuffled").value == pytest.approx(np.mean(shuffled), abs=1e-6)
    assert (scores.reading("shuffled").images, scores.reading("shuffled").phrases) == (4, 8)
    assert scores.reading("other_phrase").value == pytest.approx(np.mean(other), abs=1e-6)
    assert scores.reading("chance").value == 0.5
    assert score(images).reading("chance").value == pytest.approx(np.mean(chance))
    assert 0.5 < scores.reading("oracle_patch").value <= 1


def test_bicubic_pointing_stands_beside_pointing_for_the_readings() -> None:
    frame = score(make_images(3)).to_frame()
    assert frame[frame.metric == "pointing_bicubic"].name.tolist() == ["mean_map", "minus_mean"]
    assert "pointing_bicubic" not in set(score(make_images(3), metric="lift").to_frame().metric)
    everywhere = score(make_images(3), metric=("pointing", "pointing_bicubic"))
    assert everywhere.grid("pointing_bicubic")[0].shape == (2, 3)
    values = [one.reading("minus_mean", "pointing_bicubic").value for one in (everywhere, score(make_images(3)))]
    assert values[0] == values[1]


def test_the_frame_the_grid_and_the_readings_agree() -> None:
    scores = score(make_images(6), metric=("pointing", "lift"))
    frame = scores.to_frame()
    columns = ["metric", "kind", "name", "layer", "timestep", "head", "value", "low", "high", "images", "phrases"]
    columns += [f"{name}_share{end}" for name in ("top1", "border", "sink") for end in ("", "_low", "_high")]
    assert list(frame.columns) == columns
    heads = frame.query("metric == 'lift' and kind == 'head'")
    for name, grid in zip(("value", "low", "high"), scores.grid("lift"), strict=True):
        assert np.array_equal(heads[name].to_numpy().reshape(2, 3), grid)
    row = frame.query("metric == 'pointing' and name == 'minus_mean'").iloc[0]
    interval = scores.reading("minus_mean")
    assert (row.value, row.low, row.high, row.images, row.phrases) == tuple(vars(interval).values())
    assert interval.low <= interval.value <= interval.high
    assert set(frame.kind) == {"reading", "held-out", "difference", "control", "layer", "head"}
    assert (scores.images, scores.phrases, scores.metrics, scores.left_out) == (6, 12, ("pointing", "lift"), {})
    assert "6 images, 12 phrases, 2 layers x 3 heads" in repr(scores)
    assert str(interval) in repr(scores)


def test_one_image_has_values_but_no_intervals_and_no_held_out_half() -> None:
    scores = score(make_images(1))
    assert not isnan(scores.reading("minus_mean").value)
    assert isnan(scores.reading("minus_mean").low)
    assert isnan(scores.reading("best_head_held_out").value)
    assert isnan(scores.reading("shuffled").value)


def test_generators_are_read_in_step_and_nothing_is_kept() -> None:
    made: list[int] = []

    def stream() -> Iterator[tuple[AttentionRecord, dict[str, np.ndarray]]]:
        for index in range(60):
            made.append(index)
            size = SIZES[0]
            yield make_record(seed=index, grid=make_grid(4, 4, image_size=size)), make_masks(index, size)

    one, two = itertools.tee(stream())
    furthest = []

    def watched() -> Iterator[dict[str, np.ndarray]]:
        for index, (_, masks) in enumerate(two):
            furthest.append(len(made) - index)
            yield masks

    scores = score_heads((record for record, _ in one), watched(), metric="auroc", replicates=20)
    assert scores.images == 60
    assert max(furthest) == 1
    listed = [
        (make_record(seed=i, grid=make_grid(4, 4, image_size=SIZES[0])), make_masks(i, SIZES[0])) for i in range(60)
    ]
    again = score_heads([r for r, _ in listed], [m for _, m in listed], metric="auroc", replicates=20)
    assert np.array_equal(scores.grid()[1], again.grid()[1])


def test_seed_and_confidence_change_the_interval_alone() -> None:
    images = make_images(8)
    first, second = score(images, seed=0), score(images, seed=1)
    narrow, wide = (score(images, metric="auroc", confidence=one).reading("mean_map") for one in (0.5, 0.99))
    assert np.array_equal(first.grid()[0], second.grid()[0])
    assert not np.array_equal(first.grid()[1], second.grid()[1])
    assert wide.low < narrow.low < narrow.high < wide.high


def test_padding_that_shines_does_not_win() -> None:
    grid = PatchGrid.from_affine((16, 32), shape=(8, 8), patch_size=4, offset=(8.0, 0.0))
    masks = make_masks(0, (16, 32))
    record = plant(make_record(grid=grid), masks, layer=0, head=0)
    shining = [replace(one, values=one.values + 9 * torch.as_tensor(grid.weight == 0)) for one in record.layers]
    pair = [
        score([(one, masks)], metric=("pointing", "auroc", "lift"))
        for one in (record, replace(record, layers=tuple(shining)))
    ]
    for metric in pair[0].metrics:
        assert np.allclose(pair[0].grid(metric)[0], pair[1].grid(metric)[0], atol=1e-6)


def test_the_paired_difference_is_the_difference_of_the_readings_with_its_own_interval() -> None:
    scores = score(make_images(40), metric=["auroc", "lift"])
    for metric in ("auroc", "lift"):
        mean_map, minus = scores.reading("mean_map", metric), scores.reading("minus mean", metric)
        paired = scores.reading("minus_mean - mean_map", metric)
        assert paired.value == pytest.approx(minus.value - mean_map.value)
        assert paired.low < paired.value < paired.high
        assert (paired.images, paired.phrases) == (mean_map.images, mean_map.phrases)


def test_records_made_under_another_ablation_are_refused() -> None:
    (first, masks), (second, others) = make_images(2)
    ablated = replace(second, source=replace(second.source, ablation="zero: (0, 1)"))
    with pytest.raises(InputError, match=r"ablation is 'zero: \(0, 1\)' but image 0 has ''"):
        score([(first, masks), (ablated, others)])
    score([(first, masks), (second, others)])


def test_records_of_one_picture_are_drawn_together_and_count_as_one_image() -> None:
    records, masks = zip(*make_images(8), strict=True)
    once = score_heads(records, masks).to_frame()
    pictures = [number for number in range(8) for _ in range(2)]
    again = [one for one in records for _ in range(2)], [one for one in masks for _ in range(2)]
    twice = score_heads(*again, pictures=pictures)
    assert twice.images == 8
    frame = twice.to_frame()
    rows = frame["kind"].isin(["head", "layer", "reading", "held-out"])
    for column in ("value", "low", "high"):
        np.testing.assert_allclose(frame[rows][column], once[rows][column], atol=1e-12)
    with pytest.raises(InputError, match="There are 3 pictures but more records"):
        score_heads(*again, pictures=pictures[:3])


def test_images_without_a_phrase_are_refused() -> None:
    with pytest.raises(InputError, match="no phrase to score in 2 images"):
        score_heads([record for record, _ in make_images(2)], [{}, {}])


def _mean_over_words(record):
    """The record as a diffusion model's: its mean is over the words alone, without the end token."""
    words = [place for place, (low, high) in enumerate(record.spans) if high > low]
    layers = tuple(replace(one, token_mean=one.values[:, :, words].mean(2)) for one in record.layers)
    return replace(record, layers=layers)


def test_a_phrase_that_is_the_whole_text_leaves_rounding_which_is_not_scored() -> None:
    images = [(_mean_over_words(record), masks) for record, masks in make_images(3)]
    records = [record for record, _ in images]
    everything = [{(0, len(record.text)): next(iter(masks.values()))} for record, masks in images]
    scores = score_heads(records, everything, metric="pointing", replicates=10)
    assert np.isnan(scores.grid()[0]).all()
    assert np.isnan(scores.reading("minus_mean").value)
    assert not np.isnan(scores.reading("mean_map").value)
    assert any("same in every patch" in reason for reason in scores.left_out)
    # Some of the words are scored as ever, and so is the whole text by its first token.
    assert not np.isnan(score_heads(records, [masks for _, masks in images], replicates=10).grid()[0]).any()
    assert not np.isnan(score_heads(records, everything, combine="first", replicates=10).grid()[0]).any()
