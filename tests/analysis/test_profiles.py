"""Scores over layers and tokens, against the record's own methods, phrase by phrase."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probe.analysis.metrics import METRICS
from probe.analysis.profiles import Position, profile
from probe.analysis.stats import Interval
from probe.analysis.targets import Target
from probe.errors import InputError
from tests.analysis.images import PHRASES, make_images, plain, plant, score


def profiled(images, **options):
    return profile([record for record, _ in images], [masks for _, masks in images], replicates=50, **options)


def by_label(found):
    return {one.label: one for one in found.positions}


@pytest.mark.parametrize("metric", ["pointing", "auroc"])
def test_a_layer_is_the_mean_of_its_heads_and_all_layers_are_the_reading(metric):
    images = make_images(6)
    found = by_label(profiled(images, metric=metric))
    for layer in range(2):
        assert found[f"layer {layer}"].score.value == pytest.approx(
            plain(images, metric, lambda maps, i=layer: maps[i].mean(0)), abs=1e-6
        )
    whole = score(images, metric=metric)
    assert str(found["up to layer 1"].score) == str(whole.reading("minus_mean"))
    assert found["up to layer 0"].score == found["layer 0"].score
    raw = by_label(profiled(images, metric=metric, reading="attention"))
    assert raw["layer 1"].score.value == pytest.approx(
        plain(images, metric, lambda maps: maps[1].mean(0), minus=False), abs=1e-6
    )


def test_the_floor_is_the_same_map_on_the_other_phrases_mask():
    images = make_images(5)
    expected = []
    for record, masks in images:
        for phrase, other in (PHRASES, PHRASES[::-1]):
            maps = record.minus_mean()[phrase].stack()[0, 0].mean((0, 1))
            expected.append(METRICS["auroc"](maps, Target.from_masks(record.layers[0].grid, masks[other])).item())
    found = by_label(profiled(images, metric="auroc"))["layer 0"]
    assert found.floor.value == pytest.approx(np.mean(expected), abs=1e-6)
    assert found.margin.value == pytest.approx(found.score.value - found.floor.value, abs=1e-9)


def test_a_planted_layer_beats_its_floor_and_noise_does_not():
    images = [(plant(record, masks, layer=1, head=0, factor=9.0), masks) for record, masks in make_images(20, patch=4)]
    found = by_label(profiled(images, metric="auroc"))
    assert found["layer 1"].beats_floor
    assert not found["layer 0"].beats_floor
    assert not by_label(profiled(images[:1], metric="auroc"))["layer 1"].beats_floor  # one image has no interval


def test_a_map_that_avoids_all_objects_beats_its_floor_but_not_chance():
    high, low = Interval(0.06, 0.03, 0.10, 50, 99), Interval(0.01, 0.0, 0.02, 50, 99)
    found = Position("after", 1, "1 after", high, low, Interval(0.05, 0.02, 0.08, 50, 99), low, low, low, chance=0.05)
    assert not found.beats_floor
    assert replace(found, chance=0.02).beats_floor
    assert not replace(found, chance=0.02, margin=Interval(0.05, -0.01, 0.1, 50, 99)).beats_floor


def test_tokens_are_scored_where_they_stand_around_their_phrase():
    images = make_images(4)
    # "a red circle and a blue square </s>": tokens 0 to 7
    tokens = {
        "1 before": (0, 4), "2 before": (None, 3), "token 1": (1, 5), "token 2": (2, 6), "last token": (2, 6),
        "1 after": (3, 7), "2 after": (4, None),
    }  # fmt: skip
    found = by_label(profiled(images, over="token", metric="auroc"))
    assert set(found) == set(tokens)  # the third before and after belongs to the other phrase, or to nothing
    for label, pair in tokens.items():
        expected = []
        for record, masks in images:
            for token, phrase in zip(pair, PHRASES, strict=True):
                if token is not None:
                    maps = record.minus_mean().stack()[:, 0, :, token].mean((0, 1))
                    target = Target.from_masks(record.layers[0].grid, masks[phrase])
                    expected.append(METRICS["auroc"](maps, target).item())
        assert found[label].score.value == pytest.approx(np.mean(expected), abs=1e-6), label
        assert found[label].score.phrases == len(expected)


def test_planted_words_stand_out_among_the_tokens():
    images = [(plant(record, masks, layer=1, head=0, factor=9.0), masks) for record, masks in make_images(20, patch=4)]
    found = by_label(profiled(images, over="token", metric="auroc"))
    assert found["token 1"].beats_floor
    assert found["token 1"].score.low > found["1 before"].score.high


def test_generators_are_read_once_and_the_table_has_every_column():
    images = make_images(4)
    found = profile((one for one, _ in images), (two for _, two in images), replicates=20)
    frame = found.to_frame()
    assert list(frame["label"]) == ["layer 0", "layer 1", "up to layer 0", "up to layer 1"]
    assert {
        "value",
        "low",
        "high",
        "floor_low",
        "margin_high",
        "top1_share",
        "border_share",
        "sink_share_low",
        "chance",
    } <= set(frame)
    assert (frame["low"] <= frame["value"]).all()
    assert (frame["value"] <= frame["high"]).all()
    assert "Profile over layer" in repr(found)


def test_an_answer_of_one_token_is_left_out_and_counted():
    record, masks = make_images(1)[0]
    single = record.select(tokens=[2])
    layers = tuple(replace(one, token_mean=one.values[:, :, 0]) for one in single.layers)
    images = [*make_images(3), (replace(single, layers=layers), {"circle": next(iter(masks.values()))})]
    found = profiled(images)
    assert found.positions[0].score.images == 3
    assert found.left_out == {"the answer has one token, and one map minus its own mean is zero (images)": 1}


def test_what_cannot_be_profiled_is_said():
    images = make_images(2)
    with pytest.raises(InputError, match="over must be 'layer', 'timestep' or 'token', found 'training'"):
        profiled(images, over="training")
    with pytest.raises(InputError, match="There is no image to score"):
        profile([], [])
    with pytest.raises(InputError, match="Image 1: The phrase 'green dog' is not in the text"):
        profiled([images[0], (images[1][0], {"green dog": torch.zeros(24, 40, dtype=torch.bool)})])
