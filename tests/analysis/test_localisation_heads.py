"""Localisation heads on planted records: the elbow is a value, regions are counted, and what is chosen is what was planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probe.analysis.concentration import spatial_entropy
from probe.analysis.localisation_heads import find_localisation_heads, last_prompt_row, value_elbow
from probe.attention import AttentionRecord
from probe.errors import InputError
from tests.records import make_grid, make_record

WHOLE = torch.ones(6, 6)


def test_the_elbow_keeps_every_strong_head_whatever_its_number() -> None:
    rng = np.random.default_rng(0)
    strong = np.zeros(96, dtype=bool)
    strong[rng.permutation(96)[:60]] = True
    sums = np.where(strong, rng.uniform(0.5, 0.6, 96), rng.uniform(0.0, 0.02, 96))
    assert ((sums >= value_elbow(sums)) == strong).all()
    # The trap: heads' numbers against the elbow's place in the sorted order keeps others.
    order = np.argsort(sums)
    ordered = sums[order]
    place = np.abs(ordered - np.linspace(ordered[0], ordered[-1], 96)).argmax()
    by_number = np.isin(np.arange(96), [head for head in order if head >= place])
    assert (by_number & strong).sum() < 60
    assert (by_number & ~strong).any()


@pytest.mark.parametrize(("sums", "elbow"), [([0, 0, 0, 0, 4], 0), ([0, 4, 4, 4, 4], 4), ([3, 3, 3], 3), ([7], 7)])
def test_elbows_by_hand(sums: list[float], elbow: float) -> None:
    assert value_elbow(sums) == elbow


@pytest.mark.parametrize("sums", [[], [1.0, np.nan]])
def test_an_elbow_of_nothing_is_refused(sums: list[float]) -> None:
    with pytest.raises(InputError, match="all of them finite"):
        value_elbow(sums)


def regions(*cells: tuple[int, int, float]) -> torch.Tensor:
    one = torch.zeros(6, 6, dtype=torch.float64)
    for row, col, value in cells:
        one[row, col] = value
    return one


def test_spatial_entropy_by_hand() -> None:
    touching = regions((1, 1, 0.3), (2, 2, 0.3))  # by their corners: one region
    apart = regions((0, 0, 0.3), (5, 5, 0.3))
    found = spatial_entropy(torch.stack([touching, apart, torch.full((6, 6), 0.1)]), WHOLE)
    assert found[0] == 0
    assert found[1] == pytest.approx(np.log(2))
    assert found[2] == np.inf
    # Masses 3 and 1 above the mean.
    mean = 4.0 / 36
    one, two = (3 - mean) / (4 - 2 * mean), (1 - mean) / (4 - 2 * mean)
    uneven = spatial_entropy(regions((0, 0, 3.0), (5, 5, 1.0)), WHOLE)
    assert float(uneven) == pytest.approx(-one * np.log(one) - two * np.log(two))


def test_the_absolute_epsilon_depends_on_scale_and_the_relative_one_does_not() -> None:
    one = regions((0, 0, 0.3), (5, 5, 0.3), (0, 5, 0.02))
    small = one * 1e-3
    assert spatial_entropy(small, WHOLE) == np.inf
    assert spatial_entropy(one, WHOLE) > np.log(2)  # the weak one is a region too
    for maps in (one, small):
        weak = spatial_entropy(maps, WHOLE, epsilon=1.0, relative=True)  # its 0.02 is hardly above the mean of 0.017
        assert float(weak) == pytest.approx(np.log(2))


def test_padding_and_what_is_no_number() -> None:
    weight = WHOLE.clone()
    weight[5] = 0
    one = regions((0, 0, 0.3), (5, 5, 9.0))
    assert spatial_entropy(one, weight) == 0
    one[5, 5] = torch.nan
    assert spatial_entropy(one, weight) == 0
    one[1, 1] = torch.nan
    assert torch.isnan(spatial_entropy(one, weight))
    with pytest.raises(InputError, match="epsilon must be 0 or more"):
        spatial_entropy(one, weight, epsilon=-1)


def planted(seed: int, *, row: int = 0) -> AttentionRecord:
    """Heads (0, 1) and (1, 2) look at one region in that row, (1, 0) at scattered patches; the others hardly look at the image."""
    rng = np.random.default_rng(seed)
    record = make_record(layers=2, heads=4, grid=make_grid(6, 6, image_size=(48, 48)), seed=seed)
    layers = []
    for number, layer in enumerate(record.layers):
        values = torch.full_like(layer.values, 1e-4)
        for head in ({1}, {0, 2})[number]:
            top, left = rng.integers(0, 5, 2)
            cells = [(top, left), (top + 1, left), (top, left + 1)]
            if (number, head) == (1, 0):
                cells = [(0, 0), (0, 5), (5, 0), (5, 5)]
            for cell in cells:
                values[0, head, row, cell[0], cell[1]] = 0.6 / len(cells)
        layers.append(replace(layer, values=values, token_mean=values.mean(2)))
    return replace(record, layers=tuple(layers))


def test_planted_heads_are_chosen_with_their_frequency() -> None:
    records = [planted(seed) for seed in range(6)]
    found = find_localisation_heads(records, per_image=2, count=2, replicates=50)
    assert len(found) == 8
    chosen = found[found["chosen"]]
    assert set(zip(chosen["layer"], chosen["head"], strict=True)) == {(0, 1), (1, 2)}
    assert set(chosen["name"]) == {"layers.0.self_attn", "layers.1.self_attn"}
    assert list(chosen["frequency"]) == [1, 1]
    assert list(found["frequency"][2:]) == [0] * 6
    scattered = found[(found["layer"] == 1) & (found["head"] == 0)].iloc[0]
    assert scattered["kept"] == 1
    assert scattered["entropy"] == pytest.approx(np.log(4), abs=1e-6)
    sums = [record.layers[1].values[0, 0, 0].sum().item() for record in records]
    assert scattered["attention"] == pytest.approx(np.mean(sums), abs=1e-6)


def test_a_head_that_is_compact_in_some_images_has_an_interval() -> None:
    records = [planted(seed, row=seed % 2) for seed in range(8)]  # in odd images the first row looks nowhere
    found = find_localisation_heads(records, per_image=2, replicates=200)
    first = found.iloc[0]
    assert first["frequency"] == 0.5
    assert 0 < first["low"] < 0.5 < first["high"] < 1
    both = find_localisation_heads(records, rows="all", per_image=2, replicates=20)
    assert both.iloc[0]["frequency"] == 1
    other = find_localisation_heads(records, rows=[1], per_image=2, replicates=20)
    assert other.iloc[0]["frequency"] == 0.5


def test_which_row_is_the_last_of_the_prompt() -> None:
    record = make_record()
    assert last_prompt_row(record) == 0
    prompt = replace(record, query_kind="prompt token", query_row="own")
    assert last_prompt_row(prompt) == len(record.tokens) - 1
    for wrong in (record["blue square"], prompt["red circle"], replace(record, query_row="own")):
        with pytest.raises(InputError, match="the last row of the prompt is not in the record"):
            last_prompt_row(wrong)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "records are empty"),
        ([make_record()], {"per_image": 0}, "per_image and count must be 1 or more"),
        ([make_record()], {"rows": "first"}, "rows must be 'last prompt', 'all' or numbers"),
        ([make_record()], {"rows": [99]}, "Image 0: token 99 does not exist"),
        ([make_record(), make_record(heads=2)], {}, "Image 1: the record has"),
        ([replace(make_record(), softmax_over="patches")], {}, "a softmax over patches; give attention of a language"),
        ([make_record().minus_mean()], {}, "mean map is subtracted already"),
    ],
)
def test_what_cannot_be_ranked_is_refused(records: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_localisation_heads(records, **options)
