"""The table of remedies against plain loops, phrase by phrase, and on a planted sink that some of them remove."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probe.analysis.metrics import METRICS
from probe.analysis.permutations import holm, random_signs
from probe.analysis.remedies import score_remedies
from probe.analysis.sinks import remedied_maps, stable_sinks
from probe.analysis.stats import poisson_weights
from probe.analysis.targets import Target, read_masks
from probe.errors import InputError
from tests.analysis.images import make_images, plant
from tests.records import make_record

NAMES = ("none", "minus mean", "generic prompt", "redistribution", "dropped sinks")


def images(count: int) -> list[tuple[Any, Any, Any]]:
    """Record, masks and generic record; every head looks a little at what is named and far more at one patch."""
    found = []
    for index, (record, masks) in enumerate(make_images(count)):
        for layer in range(len(record.layers)):
            for head in record.layers[0].heads:
                record = plant(record, masks, layer=layer, head=head, factor=0.4)
        layers = []
        for layer in record.layers:
            values = layer.values.clone() * 0.5
            values[..., 0, 0] = 0.8 + 0.1 * values[..., 0, 0]
            layers.append(replace(layer, values=values, token_mean=values.mean(2)))
        generic = make_record(seed=100 + index, grid=record.layers[0].grid)
        found.append((replace(record, layers=tuple(layers)), masks, generic))
    return found


IMAGES = images(7)
RECORDS, MASKS, GENERIC = (list(one) for one in zip(*IMAGES, strict=True))


@pytest.fixture(scope="module")
def table() -> Any:
    return score_remedies(RECORDS, iter(MASKS), generic=iter(GENERIC), replicates=50, permutations=99, seed=2)


def plain(metric: str) -> dict[str, list[np.ndarray]]:
    """Remedy -> (phrase,) scores of each image."""
    scores: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for record, masks, generic in IMAGES:
        tokens, read = read_masks(record, masks)
        maps = remedied_maps(record, tokens, stable_sinks(record), generic=generic)
        target = Target.from_masks(record.layers[0].grid, read)
        for name in NAMES:
            scores[name].append(METRICS[metric](maps[name], target).numpy())
    return scores


def test_values_differences_and_tests_are_the_plain_ones(table: Any) -> None:
    assert list(zip(table["metric"], table["remedy"], strict=True)) == [
        (metric, name) for metric in ("pointing", "auroc", "lift") for name in NAMES
    ]
    drawn = np.array([poisson_weights(index, replicates=50, seed=2) for index in range(7)])
    signs = np.array([random_signs(index, permutations=99, seed=2) for index in range(7)])
    p_values = []
    for metric in ("pointing", "auroc", "lift"):
        scores = plain(metric)
        part = table[table["metric"] == metric].set_index("remedy")
        for name in NAMES:
            row = part.loc[name]
            assert row["value"] == pytest.approx(np.concatenate(scores[name]).mean())
            assert (row["images"], row["phrases"]) == (7, 14)
            if name == "none":
                assert np.isnan(row["difference"])
                continue
            gaps = np.array([(one - two).sum() for one, two in zip(scores[name], scores["none"], strict=True)])
            assert row["difference"] == pytest.approx(gaps.sum() / 14)
            replicates = (drawn.T @ gaps) / (drawn.sum(0) * 2)
            expected = np.quantile(replicates, (0.025, 0.975))
            assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(expected))
            p = (1 + (np.abs(signs.T @ gaps) >= abs(gaps.sum()) - 1e-9).sum()) / 100
            assert row["p_value"] == pytest.approx(p)
            p_values.append(p)
    corrected = table.loc[table["remedy"] != "none", "p_corrected"]
    assert list(corrected) == pytest.approx(list(holm(p_values)))


def test_a_planted_sink_is_removed_by_those_that_can(table: Any) -> None:
    part = table[table["metric"] == "pointing"].set_index("remedy")["value"]
    assert part["none"] < 0.2
    assert part["minus mean"] > part["none"] + 0.3
    assert part["dropped sinks"] > part["none"] + 0.3
    # One patch keeps more than all the others are given.
    assert part["redistribution"] == part["none"]
    assert table.attrs["sinks"] == 1
    assert set(table.loc[table["metric"] == "auroc", "chance"]) == {0.5}


def test_lift_of_signed_maps_says_why_it_is_to_be_read_with_care(table: Any) -> None:
    careful = table[table["care"] != ""]
    assert list(zip(careful["metric"], careful["remedy"], strict=True)) == [("lift", "minus mean")]
    assert "changes with the offset" in careful["care"].iloc[0]


def test_given_sinks_are_used_and_without_a_generic_prompt_there_is_no_such_row() -> None:
    none = [torch.zeros(record.layers[0].grid.shape) for record in RECORDS]
    found = score_remedies(RECORDS, MASKS, sinks=none, metric="auroc", replicates=20, permutations=9)
    assert "generic prompt" not in set(found["remedy"])
    part = found.set_index("remedy")
    assert part.loc["dropped sinks", "difference"] == 0
    assert part.loc["dropped sinks", "p_value"] == 1
    assert found.attrs["sinks"] == 0


def test_a_phrase_counts_for_all_remedies_or_for_none() -> None:
    record = RECORDS[0]
    flat = tuple(
        replace(one, values=torch.full_like(one.values, 0.01)) for one in make_record(grid=record.layers[0].grid).layers
    )
    zero = replace(GENERIC[0], layers=tuple(replace(one, values=0 * one.values) for one in flat))
    found = score_remedies(
        RECORDS[:2], MASKS[:2], generic=[zero, GENERIC[1]], metric="auroc", replicates=20, permutations=9
    )
    assert set(found["phrases"]) == {2}
    assert found.attrs["left_out"] == {
        "auroc: generic prompt: the map has NaN or infinite values in patches that show the image (phrases)": 2
    }
    alone = score_remedies(RECORDS[:1], MASKS[:1], metric="auroc", replicates=20, permutations=9)
    assert alone["p_value"].isna().all()
    assert alone["low"].isna().all()


@pytest.mark.parametrize(
    ("records", "masks", "options", "message"),
    [
        ([], [], {}, "no image to compare remedies on"),
        (RECORDS, MASKS, {"metric": ()}, "No metric asked for"),
        (RECORDS, MASKS, {"metric": "iou"}, "No metric 'iou'"),
        (RECORDS, MASKS[:2], {}, "more records: image 2 has none"),
        (RECORDS, MASKS, {"generic": GENERIC[:3]}, "Image 3: generic has no entry for this image"),
        (RECORDS[:2], MASKS[:2], {"generic": GENERIC}, "more entries in generic than records"),
        (RECORDS, MASKS, {"sinks": []}, "Image 0: sinks has no entry"),
        (RECORDS, MASKS, {"kept": -1}, "Image 0: kept is the share"),
    ],
)
def test_what_cannot_be_compared_is_refused(records: Any, masks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_remedies(records, masks, replicates=5, permutations=9, **options)
