"""score_heads against record.minus_mean() and plain loops; planted heads; the two halves; what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch

from probe.analysis import HeadScores, score_heads
from probe.analysis.metrics import METRICS
from probe.analysis.targets import Target, resize_masks
from probe.attention import AttentionRecord, LayerAttention
from probe.errors import InputError
from probe.layout import PatchGrid
from tests.records import make_grid, make_record

PHRASES = ("red circle", "blue square")
SIZES = ((32, 32), (24, 40), (32, 32), (40, 24), (16, 16))


def make_masks(index: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    masks = {phrase: np.zeros(size, dtype=bool) for phrase in PHRASES}
    for mask in masks.values():
        top, left = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        mask[top : top + 8, left : left + 8] = True
    return masks


def make_images(count: int, *, patch: int | None = None) -> list[tuple[AttentionRecord, dict[str, np.ndarray]]]:
    """Random records of images of several sizes and grids, with two masks each; on coarse grids, or patches of that many pixels."""
    images = []
    for index in range(count):
        size = SIZES[index % len(SIZES)]
        shape = (size[0] // patch, size[1] // patch) if patch else (4 + index % 2, 5)
        record = make_record(seed=index, grid=make_grid(*shape, image_size=size))
        images.append((record, make_masks(index, size)))
    return images


def plant(
    record: AttentionRecord, masks: dict[str, np.ndarray], *, layer: int, head: int, factor: float = 1.0
) -> AttentionRecord:
    """The record with one head that looks at each phrase's mask while its words are said."""
    target = Target.from_masks(record.layers[0].grid, np.stack(list(masks.values())))
    one = record.layers[layer]
    values = one.values.clone()
    for (_, end), share in zip(((2, 12), (19, 30)), target.share, strict=True):
        tokens = [
            i for i, span in enumerate(record.spans) if span[1] <= end and span[1] > end - 11 and span[1] > span[0]
        ]
        values[0, head, tokens] = factor * share.to(values.dtype)
    changed = replace(one, values=values, token_mean=values.mean(2))
    return replace(record, layers=(*record.layers[:layer], changed, *record.layers[layer + 1 :]))


def score(images: list, **options: Any) -> HeadScores:
    return score_heads([record for record, _ in images], [masks for _, masks in images], replicates=50, **options)


def plain(images: list, metric: str, pick: Any, *, combine: str = "mean", minus: bool = True) -> float:
    """Mean over phrases of one reading, by the record's own methods, phrase by phrase."""
    found = []
    for record, masks in images:
        source = record.minus_mean() if minus else record
        for phrase, mask in masks.items():
            values = source[phrase].stack()[:, 0]  # (layer, head, token, row, col)
            tokens = {"mean": lambda v: v.mean(2), "first": lambda v: v[:, :, 0], "max": lambda v: v.amax(2)}[combine]
            target = Target.from_masks(record.layers[0].grid, mask)
            found.append(METRICS[metric](pick(tokens(values)), target).item())
    return float(np.nanmean(found))


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
    assert list(frame.columns) == [
        "metric",
        "kind",
        "name",
        "layer",
        "head",
        "value",
        "low",
        "high",
        "images",
        "phrases",
    ]
    heads = frame.query("metric == 'lift' and kind == 'head'")
    for name, grid in zip(("value", "low", "high"), scores.grid("lift"), strict=True):
        assert np.array_equal(heads[name].to_numpy().reshape(2, 3), grid)
    row = frame.query("metric == 'pointing' and name == 'minus_mean'").iloc[0]
    interval = scores.reading("minus_mean")
    assert (row.value, row.low, row.high, row.images, row.phrases) == tuple(vars(interval).values())
    assert interval.low <= interval.value <= interval.high
    assert set(frame.kind) == {"reading", "held-out", "control", "layer", "head"}
    assert (scores.images, scores.phrases, scores.metrics, scores.left_out) == (6, 12, ("pointing", "lift"), {})
    assert "6 images, 12 phrases, 2 layers x 3 heads" in repr(scores)
    assert str(interval) in repr(scores)


def test_layers_may_have_different_numbers_of_heads() -> None:
    images = [(replace(r, layers=(r.layers[0], r.select(layers=1, heads=[2]).layers[0])), m) for r, m in make_images(3)]
    scores = score(images, metric="auroc")
    value, low, high = scores.grid()
    for grid in (value, low, high):
        assert np.isnan(grid).tolist() == [[False] * 3, [False, True, True]]
    assert scores.heads == ((0, 1, 2), (2,))
    assert scores.to_frame().query("kind == 'head'")["head"].tolist() == [0, 1, 2, 2]
    full = score(make_images(3), metric="auroc").grid()[0]
    assert value[1, 0] == full[1, 2]


def test_timesteps_are_averaged_first() -> None:
    def doubled(one: LayerAttention) -> LayerAttention:
        steps = {
            name: torch.cat([getattr(one, name) * 0.5, getattr(one, name) * 1.5])
            for name in ("values", "token_mean", "rest")
        }
        return replace(one, **steps)

    images = make_images(3)
    stepped = [(replace(record, layers=tuple(map(doubled, record.layers))), masks) for record, masks in images]
    assert np.allclose(score(stepped, metric="lift").grid()[0], score(images, metric="lift").grid()[0], atol=1e-5)


def test_one_image_has_values_but_no_intervals_and_no_held_out_half() -> None:
    scores = score(make_images(1))
    assert not isnan(scores.reading("minus_mean").value)
    assert isnan(scores.reading("minus_mean").low)
    assert isnan(scores.reading("best_head_held_out").value)
    assert isnan(scores.reading("shuffled").value)


def test_what_cannot_be_scored_is_counted_and_not_a_zero() -> None:
    images = make_images(4)
    record, masks = images[1]
    short = make_record(text="circle", grid=record.layers[0].grid, seed=9).select(tokens=[0])
    layers = tuple(replace(one, token_mean=one.values[:, :, 0]) for one in short.layers)
    images[1] = (replace(short, layers=layers), {"circle": masks["red circle"]})
    images[2] = (images[2][0], {})
    images[3] = (images[3][0], {**images[3][1], "blue square": np.zeros(images[3][0].image_size, bool)})
    scores = score(images)
    assert (scores.images, scores.phrases) == (4, 5)
    assert scores.reading("mean_map").phrases == 4
    assert scores.reading("minus_mean").phrases == 3
    assert scores.reading("chance").phrases == 4
    assert scores.left_out == {
        "minus_mean: the answer has one token, and one map minus its own mean is zero (images)": 1,
        "no phrase (images)": 1,
        "pointing: the mask is empty (phrases)": 1,
        "pointing_bicubic: the mask is empty (phrases)": 1,
    }
    assert "left out: 1 - no phrase (images)" in repr(scores)


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


def refused(images: list, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        score(images, **options)


def test_records_that_do_not_belong_in_one_table_are_refused_by_name() -> None:
    images = make_images(2)
    record, masks = images[1]
    for other, message in (
        (record.select(layers=[0]), "Image 1: the record has 1 layers with .3. heads but image 0 has 2 layers"),
        (record.select(heads=[0, 2]), r"Image 1: the record has 2 layers with \[2, 2\] heads"),
        (record.select(layers=[1, 0]), "Image 1: .*'layers.1.self_attn' instead of 'layers.0.self_attn'"),
        (replace(record, query_row="own"), "Image 1: the record's query_row is 'own' but image 0 has 'predicting'"),
        (replace(record, softmax_over="tokens"), "softmax_over is 'tokens' but image 0 has 'sequence'"),
        (replace(record, quantity="relevance"), "quantity is 'relevance'"),
        (record.minus_mean(), "Image 1: the record's mean map is subtracted already"),
    ):
        refused([images[0], (other, masks)], message)
    coarse = make_record(grid=make_grid(2, 2, image_size=record.image_size)).layers[0]
    refused(
        [(replace(record, layers=(record.layers[0], coarse)), masks)], r"grid of \(5, 5\).*on \(2, 2\); score one view"
    )
    thumbnail = replace(record.layers[1], view="thumbnail")
    refused([(replace(record, layers=(record.layers[0], thumbnail)), masks)], "Image 0: .*'thumbnail'.*record.select")


def test_bad_masks_and_phrases_are_refused_by_image() -> None:
    images = make_images(3)
    record, masks = images[2]
    refused([*images[:2], (record, {"green": masks["red circle"]})], "Image 2: The phrase 'green' is not in the text")
    refused(
        [*images[:2], (record, {"red": np.zeros((3, 4), bool)})],
        "Image 2: The mask of 'red' is 3 x 4 but the image is 32 x 32",
    )


def test_unusable_arguments_are_refused() -> None:
    images = make_images(2)
    records, masks = [r for r, _ in images], [m for _, m in images]
    refused([], "There is no image to score")
    refused(images, "No metric 'pointin'.*Did you mean 'pointing'", metric="pointin")
    refused(images, "No metric asked for", metric=())
    refused(images, "reading must be one of 'attention', 'minus mean'; found 'minus_mean'", reading="minus_mean")
    refused(images, "combine must be one of", combine="sum")
    refused(images, "confidence must lie between 0 and 1", confidence=95)
    for left, right, message in (
        (records, masks[:1], "There are 1 masks but more records: image 1 has none"),
        (records[:1], masks, "There are 1 records but more masks"),
        (records[0], [masks[0]], r"give \[record\] and \[masks\]"),
        ([records[0]], masks[0], r"give \[record\] and \[masks\]"),
        (["photo.jpg"], masks[:1], "Image 0: expected an AttentionRecord, found str"),
    ):
        with pytest.raises(InputError, match=message):
            score_heads(left, right)  # type: ignore[arg-type]
    scores = score(images)
    with pytest.raises(InputError, match="No row 'minus_meen'.*Did you mean 'minus_mean'"):
        scores.reading("minus_meen")
    with pytest.raises(InputError, match="No scores for 'auroc'; there are pointing"):
        scores.grid("auroc")
    with pytest.raises(InputError, match="split must be 'all' or 'held-out', found 'heldout'"):
        scores.top(split="heldout")  # type: ignore[arg-type]


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


def test_the_size_of_the_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(3)
    ragged = [(replace(r, layers=(r.layers[0], r.select(layers=1, heads=[2]).layers[0])), m) for r, m in images]
    for given in (images, ragged):
        frames = []
        for numbers in (1, 2**22):
            monkeypatch.setattr("probe.analysis.scorer.CHUNK", numbers)
            frames.append(score(given, metric=("pointing", "auroc")).to_frame())
        assert np.allclose(frames[0].value, frames[1].value, atol=1e-6)
