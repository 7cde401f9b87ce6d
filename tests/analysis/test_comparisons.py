"""compare_records against plain loops, on planted records of systems with different grids."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from probe.analysis import score_heads
from probe.analysis.comparisons import compare_records
from probe.analysis.differences import BESIDE, Comparison
from probe.analysis.metrics import METRICS
from probe.analysis.permutations import holm, random_signs
from probe.analysis.stats import poisson_weights
from probe.analysis.systems import SystemRecord, Traits, is_refused, reading_name, seen_by_all, unfairness
from probe.analysis.targets import Target
from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.layout import PatchGrid
from tests.analysis.images import PHRASES, SIZES, make_masks, plant
from tests.records import make_grid, make_record

Images = list[dict[str, SystemRecord]]


def make_systems(count: int, *, factor: float = 0.5) -> Images:
    """A coarse system with one planted head, and one on patches half as large without."""
    images = []
    for index in range(count):
        size = SIZES[index % len(SIZES)]
        masks = make_masks(index, size)
        coarse, fine = (make_grid(size[0] // p, size[1] // p, image_size=size) for p in (8, 4))
        one = plant(make_record(seed=index, grid=coarse), masks, layer=1, head=2, factor=factor)
        two = make_record(seed=1000 + index, grid=fine, layers=3, heads=2)
        again = make_record(seed=2000 + index, grid=coarse)
        images.append({"a": SystemRecord(one, masks, again, masks), "b": SystemRecord(two, masks)})
    return images


def plain_map(record: AttentionRecord, phrase: str) -> torch.Tensor:
    return record.minus_mean()[phrase].stack()[:, 0].double().mean((0, 1, 2))


def plain_scores(images: Images, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(image, phrase) scores of both systems, the second averaged over blocks of 2 x 2 patches."""
    found = []
    for systems in images:
        grid = systems["a"].record.layers[0].grid
        for phrase in PHRASES:
            target = Target.from_masks(grid, systems["a"].masks[phrase])
            fine = plain_map(systems["b"].record, phrase)
            blocks = fine.reshape(grid.shape[0], 2, grid.shape[1], 2).mean((1, 3))
            pair = (plain_map(systems["a"].record, phrase), blocks)
            found.append([METRICS[metric](one, target).item() for one in pair])
    both = np.array(found).reshape(len(images), len(PHRASES), 2)
    return both[..., 0], both[..., 1]


def compared(images: Any, **options: Any) -> Comparison:
    return compare_records(images, replicates=options.pop("replicates", 60), permutations=299, **options)


def test_scores_differences_intervals_and_p_values_equal_plain_lines() -> None:
    images = make_systems(12)
    found = compared(images, metric=("pointing", "auroc"), seed=3)
    assert (found.images, found.phrases, found.left_out) == (12, 24, {})
    weights = np.stack([poisson_weights(i, replicates=60, seed=3) for i in range(12)])
    signs = np.stack([random_signs(i, permutations=299, seed=3) for i in range(12)])
    raw = []
    for metric in found.metrics:
        one, two = plain_scores(images, metric)
        assert not np.isnan([one, two]).any()
        for name, scores in (("a", one), ("b", two)):
            interval = found.systems[name].scores[metric]
            drawn = weights.T @ scores.sum(1) / (2 * weights.sum(0))
            assert interval.value == pytest.approx(scores.mean(), abs=1e-6)
            assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=1e-6)
        pair = found.difference("a", "b", metric)
        drawn = weights.T @ (one - two).sum(1) / (2 * weights.sum(0))
        assert pair.difference.value == pytest.approx((one - two).mean(), abs=1e-6)
        assert pair.difference.low == pytest.approx(np.quantile(drawn, 0.025), abs=1e-6)
        assert pair.difference.high == pytest.approx(np.quantile(drawn, 0.975), abs=1e-6)
        sums = (one - two).sum(1)
        raw.append((1 + (np.abs(sums @ signs) >= abs(sums.sum()) - 1e-9).sum()) / 300)
        assert pair.p_value == pytest.approx(raw[-1])
    assert [one.p_holm for one in found.paired] == pytest.approx(list(holm(raw)))
    assert found.difference("a", "b", "auroc").difference.low > 0


def test_heads_stay_on_their_own_grid_and_are_those_of_score_heads() -> None:
    images = make_systems(10)
    found = compared(images)
    for name in ("a", "b"):
        alone = score_heads(
            [one[name].record for one in images],
            [one[name].masks for one in images],
            metric=found.metrics,
            replicates=60,
        )
        system = found.systems[name]
        for metric in found.metrics:
            assert str(system.native(metric)) == str(alone.reading("minus_mean", metric))
            assert str(system.heads.reading("best_head_held_out", metric)) == str(
                alone.reading("best_head_held_out", metric)
            )
            assert np.array_equal(system.heads.grid(metric)[0], alone.grid(metric)[0])
    assert (4, 4) in found.grids
    assert found.systems["a"].grids == found.grids
    assert (8, 8) in found.systems["b"].grids
    assert found.systems["a"].native("auroc").value == pytest.approx(found.systems["a"].scores["auroc"].value)
    assert found.systems["b"].native("auroc").value != found.systems["b"].scores["auroc"].value
    best = found.systems["a"].heads.top(1, metric="auroc", split="held-out").iloc[0]
    assert (best["layer"], best["head"]) == (1, 2)


def test_controls_and_the_paraphrase_floor_equal_plain_lines() -> None:
    images = make_systems(6)
    found = compared(images, metric="auroc").systems
    other, moved, floor, margin = [], [], [], []
    for systems in images:
        one, masks = systems["a"], list(systems["a"].masks.values())
        maps, again = ([plain_map(record, phrase) for phrase in PHRASES] for record in (one.record, one.reworded))
        for here, there in ((0, 1), (1, 0)):
            target = Target.from_masks(one.record.layers[0].grid, masks[here])
            scores = [METRICS["auroc"](m, target).item() for m in (maps[here], maps[there], again[here])]
            other.append(scores[1])
            moved.append(abs(scores[0] - scores[2]))
            floor.append(other[-1] + moved[-1])
            margin.append(scores[0] - floor[-1])
    rows = found["a"].controls["auroc"]
    assert list(rows) == list(BESIDE)
    assert rows["chance"].value == 0.5
    for name, values in (("other_phrase", other), ("paraphrase", moved), ("floor", floor), ("margin", margin)):
        assert rows[name].value == pytest.approx(np.mean(values), abs=1e-6), name
    assert rows["shuffled"].images == 5
    # Without another wording there is no floor, rather than a floor of 0.
    assert np.isnan(found["b"].controls["auroc"]["floor"].value)
    assert found["b"].controls["auroc"]["other_phrase"].images == 6


def test_what_one_system_does_not_see_counts_for_none() -> None:
    # The second system's picture was cropped: it has no patch on the left quarter.
    size, images = (32, 32), []
    for index in range(4):
        masks = make_masks(index, size)
        cropped = PatchGrid(size, tuple(np.linspace(0, 32, 5)), (8.0, 16.0, 24.0, 32.0))
        records = [
            make_record(seed=index, grid=make_grid(4, 4, image_size=size)),
            make_record(seed=50 + index, grid=cropped),
        ]
        images.append({name: SystemRecord(one, masks) for name, one in zip("ab", records, strict=True)})
    found = compared(images, metric="auroc")
    expected: list[list[float]] = [[], []]
    for systems in images:
        for phrase in PHRASES:
            target = Target.from_masks(cropped, systems["b"].masks[phrase])
            for place, cut in ((0, 1), (1, 0)):
                seen = plain_map(systems["ab"[place]].record, phrase)[:, cut:]
                expected[place].append(METRICS["auroc"](seen, target).item())
    known = ~np.isnan(expected).any(0)
    for place, name in enumerate("ab"):
        assert found.systems[name].scores["auroc"].value == pytest.approx(np.array(expected[place])[known].mean())


def test_pixels_are_cut_off_exactly_where_a_crop_runs_through_a_patch() -> None:
    size = (32, 32)
    whole = make_grid(4, 4, image_size=size)
    cropped = PatchGrid(size, whole.row_edges, tuple(np.linspace(6, 30, 4)))
    mask = np.zeros(size, dtype=bool)
    mask[8:16, 4:12] = True
    target = seen_by_all([whole, cropped], Target.from_masks(whole, mask[None]))
    assert np.array_equal(target.weight, np.tile([0.25, 1, 1, 0.75], (4, 1)))
    share = np.zeros((4, 4))
    share[1, :2] = 2 / 8, 4 / 8
    assert np.array_equal(target.share[0], share)
    # The centres of the first column's patches are cropped away.
    assert not target.hit[..., 0].any()
    assert seen_by_all([whole], target) is target


def test_a_phrase_that_one_system_cannot_be_scored_on_counts_for_none_and_is_told() -> None:
    images = make_systems(5)
    blank = images[2]["b"].record
    layers = tuple(
        replace(one, values=torch.ones_like(one.values), token_mean=torch.zeros_like(one.token_mean))
        for one in blank.layers
    )
    images[2]["b"] = replace(images[2]["b"], record=replace(blank, layers=layers))
    found = compared(images, metric="auroc")
    assert {name: (one.scores["auroc"].images, one.scores["auroc"].phrases) for name, one in found.systems.items()} == {
        "a": (4, 8),
        "b": (4, 8),
    }
    kept = np.delete(np.array(plain_scores(images, "auroc")), 2, axis=1)
    assert found.systems["a"].scores["auroc"].value == pytest.approx(kept[0].mean(), abs=1e-6)
    assert found.systems["a"].native("auroc").phrases == 10
    assert found.left_out == {"auroc: b: the map is the same in every patch, so it points nowhere (phrases)": 2}
    assert "2 of 10 phrases count for no system, because b gives no auroc" in found.paired[0].note


def changed(images: Images, change: Callable[[AttentionRecord], AttentionRecord]) -> Images:
    return [{"a": one["a"], "b": SystemRecord(change(one["b"].record), one["b"].masks)} for one in images]


def test_values_of_other_kinds_are_compared_only_where_that_is_fair() -> None:
    images = changed(make_systems(4), lambda record: replace(record, softmax_over="tokens"))
    raw = compared(images, reading="attention")
    assert [one.metric for one in raw.paired] == ["pointing", "auroc"]
    assert [one.metric for one in raw.refused] == ["lift"]
    for words in ("offset", "softmax over sequence", "softmax over tokens", "as recorded"):
        assert words in raw.refused[0].reason
    assert raw.systems["a"].scores["lift"].value > 0
    with pytest.raises(InputError, match="not compared under 'lift'"):
        raw.difference("a", "b", "lift")
    with pytest.raises(InputError, match=r"nothing can be compared: lift.*use one of pointing"):
        compared(images, reading="attention", metric="lift")
    # Eq. 3 takes an offset away first.
    minus = compared(images)
    assert minus.refused == ()
    assert ["own mean" in one.note for one in minus.paired] == [False, False, True]
    alike = compared(make_systems(4), reading="attention")
    assert (len(alike.paired), alike.refused) == (3, ())
    assert not any(one.note for one in alike.paired)


def test_scale_and_offset_of_one_systems_values_change_no_difference() -> None:
    plain, moved = (
        compared(images)
        for images in (
            make_systems(6),
            changed(
                make_systems(6),
                lambda record: replace(
                    record,
                    layers=tuple(
                        replace(one, values=one.values * 64 + 2, token_mean=one.token_mean * 64 + 2)
                        for one in record.layers
                    ),
                ),
            ),
        )
    )
    for one, two in zip(plain.paired, moved.paired, strict=True):
        assert one.difference.value == pytest.approx(two.difference.value, abs=1e-4)


def test_fairness_by_kind() -> None:
    sequence, tokens = Traits("attention", "sequence", "minus mean"), Traits("attention", "tokens", "minus mean")
    raw = replace(tokens, reading="attention")
    assert [unfairness("auroc", sequence, one) for one in (tokens, raw)] == ["", ""]
    assert unfairness("lift", sequence, sequence) == ""
    assert not is_refused("energy", sequence, tokens)
    assert is_refused("energy", sequence, raw)
    assert unfairness("energy", sequence, tokens) != unfairness("energy", sequence, raw)


def test_every_reading_has_a_name() -> None:
    record = make_record()
    assert reading_name(record, "minus mean") == "answer tokens, minus mean over the answer, mean over layers and heads"
    assert reading_name(record, "attention") == "answer tokens, mean over layers and heads"
    contribution = replace(record, quantity="contribution", query_kind="text token", softmax_over=None)
    assert "contributions of patches" in reading_name(contribution, "minus mean")
    assert "minus mean over texts" in reading_name(contribution, "minus mean")
    layers = tuple(replace(one, timesteps=(100,)) for one in record.layers)
    diffusion = replace(record, layers=layers, query_kind="caption token", softmax_over="tokens")
    assert (
        reading_name(diffusion, "minus mean")
        == "cross-attention at t=100, minus mean over words, mean over layers and heads"
    )
    row = replace(record, query_kind="class token")
    assert "the same for every phrase" in reading_name(row, "minus mean")
    assert "minus mean" not in reading_name(row, "minus mean")


def test_three_systems_make_three_pairs_and_a_table() -> None:
    images = [one | {"c": one["a"]} for one in make_systems(5)]
    found = compared(images)
    pairs = [(one.first, one.second) for one in found.paired[:3]]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    same = found.difference("a", "c", "auroc")
    assert (same.difference.value, same.difference.low, same.difference.high, same.p_value) == (0, 0, 0, 1)
    frame = found.to_frame()
    assert len(frame) == 3 * (3 * (3 + len(BESIDE)) + 3)
    assert set(frame.query("kind == 'difference'")["name"]) == {"a - b", "a - c", "b - c"}
    assert "a - b" in repr(found)
    with pytest.raises(InputError, match="No difference of 'b' and 'a'"):
        found.difference("b", "a", "auroc")


def test_systems_must_have_seen_the_same() -> None:
    images = make_systems(3)
    with pytest.raises(InputError, match="There is no image"):
        compared([])
    with pytest.raises(InputError, match=r"Image 0: .*two systems or more, found a"):
        compared([{"a": images[0]["a"]}])
    with pytest.raises(InputError, match=r"Image 1: the systems are a, but of image 0 a, b"):
        compared([images[0], {"a": images[1]["a"]}])
    swapped = dict(zip(PHRASES, reversed(images[1]["b"].masks.values()), strict=True))
    with pytest.raises(InputError, match=r"Image 1: b has 2 masks .* same image and the same phrases"):
        compared([images[0], images[1] | {"b": replace(images[1]["b"], masks=swapped)}])
    fewer = {PHRASES[0]: images[0]["b"].masks[PHRASES[0]]}
    with pytest.raises(InputError, match=r"Image 0: b has 1 masks"):
        compared([images[0] | {"b": replace(images[0]["b"], masks=fewer)}])
    with pytest.raises(InputError, match=r"Image 0: .*reworded text has other phrases"):
        compared([images[0] | {"a": replace(images[0]["a"], reworded_masks=fewer)}])
    with pytest.raises(InputError, match=r"Image 1: b: .*softmax_over"):
        compared([images[0], changed([images[1]], lambda one: replace(one, softmax_over="tokens"))[0]])
    with pytest.raises(InputError, match="No metric"):
        compared(images, metric=())


def test_one_image_has_no_interval_and_no_p_value_and_no_phrase_counts_for_nothing() -> None:
    images = make_systems(1)
    alone = compared(images, metric="auroc").paired[0]
    assert np.isnan([alone.difference.low, alone.p_value, alone.p_holm]).all()
    empty = {name: SystemRecord(one.record, {}) for name, one in images[0].items()}
    found = compared([*make_systems(3), empty], metric="auroc")
    assert (found.images, found.systems["a"].scores["auroc"].images) == (4, 3)
    assert found.left_out == {"no phrase (images)": 1}


def test_nothing_is_kept_of_earlier_images() -> None:
    alive: list[Any] = []

    def stream() -> Iterator[dict[str, SystemRecord]]:
        for index in range(6):
            systems = make_systems(index + 1)[index]
            alive.append(weakref.ref(systems["a"].record))
            yield systems
            del systems
            gc.collect()
            assert sum(one() is not None for one in alive) <= 2

    assert compared(stream(), metric="auroc", replicates=10).images == 6
    assert all(one is not two for one, two in pairwise(alive))
