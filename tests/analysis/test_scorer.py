"""One image at a time: pieces, ragged layers, timesteps, what is left out, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probe.analysis import score_heads
from probe.attention import LayerAttention
from probe.errors import InputError
from tests.analysis.images import make_images, score
from tests.records import make_record


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
        return replace(one, **steps, timesteps=(900, 100))

    images = make_images(3)
    stepped = [(replace(record, layers=tuple(map(doubled, record.layers))), masks) for record, masks in images]
    assert np.allclose(score(stepped, metric="lift").grid()[0], score(images, metric="lift").grid()[0], atol=1e-5)


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


def test_the_size_of_the_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(3)
    ragged = [(replace(r, layers=(r.layers[0], r.select(layers=1, heads=[2]).layers[0])), m) for r, m in images]
    for given in (images, ragged):
        frames = []
        for numbers in (1, 2**22):
            monkeypatch.setattr("probe.analysis.scorer.CHUNK", numbers)
            frames.append(score(given, metric=("pointing", "auroc")).to_frame())
        assert np.allclose(frames[0].value, frames[1].value, atol=1e-6)


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
    other = replace(record.layers[1], timesteps=(900,))
    refused([(replace(record, layers=(record.layers[0], other)), masks)], r"timesteps \(-1,\) but .* has \(900,\)")
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
    with pytest.raises(InputError, match=r"No row 'minus_meen'.*Did you mean 'minus_mean'"):
        scores.reading("minus_meen")
    with pytest.raises(InputError, match="No scores for 'auroc'; there are pointing"):
        scores.grid("auroc")
    with pytest.raises(InputError, match="split must be 'all' or 'held-out', found 'heldout'"):
        scores.top(split="heldout")  # type: ignore[arg-type]
