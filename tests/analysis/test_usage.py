"""Use and localisation of heads: each number by a plain line, planted agreement found, and what cannot be compared refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from probe.analysis import compare_use, head_effects, score_heads
from probe.errors import InputError
from tests.analysis.images import make_images, plant

SPANS = ((2, 12), (19, 30))  # of the two phrases in the records' text
HEADS = [(layer, head) for layer in range(2) for head in range(3)]


def sweep_table(
    images: int, loss: Any, *, effect: str = "log_probability", how: str = "zero", noise: float = 0.0
) -> pd.DataFrame:
    """A sweep's table in which phrase p of image i loses ``loss(i, p, layer, head)`` without that head."""
    rng, rows = np.random.default_rng(0), []
    for image in range(images):
        for phrase, (start, end) in enumerate(SPANS):
            common = {"example": f"e{image}", "image": f"i{image}", "phrase": str(phrase), "start": start, "end": end}
            before = -1.0 - image - phrase
            rows.append(common | {"kind": "none", "layer": None, "head": None, "how": "", effect: before})
            for layer, head in HEADS:
                after = before - loss(image, phrase, layer, head) - noise * rng.standard_normal()
                rows.append(common | {"kind": "head", "layer": layer, "head": head, "how": how, effect: after})
    return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


def apart(images: list[Any]) -> tuple[list[Any], list[Any], list[str]]:
    return [one for one, _ in images], [one for _, one in images], [f"e{i}" for i in range(len(images))]


@pytest.fixture(scope="module")
def planted() -> list[Any]:
    found = []
    for record, masks in make_images(8):
        for place, (layer, head) in enumerate(HEADS):
            record = plant(record, masks, layer=layer, head=head, factor=0.05 * place**2)
        found.append((record, masks))
    return found


def test_changes_are_means_over_phrases_of_paired_differences() -> None:
    table = sweep_table(5, lambda image, phrase, layer, head: image + 10 * phrase + 100 * layer + 1000 * head)
    found = head_effects(table, confidence=0.9)
    assert list(zip(found["layer"], found["head"], strict=True)) == HEADS
    for row in found.itertuples():
        expected = -np.mean([i + 10 * p + 100 * row.layer + 1000 * row.head for i in range(5) for p in range(2)])
        assert row.change == pytest.approx(expected)
        assert row.low < row.change < row.high
    assert found["before"].to_numpy() == pytest.approx(-np.mean([1 + i + p for i in range(5) for p in range(2)]))
    assert set(found["images"]) == {5}
    assert set(found["phrases"]) == {10}


def test_parts_give_what_the_whole_gives() -> None:
    table = sweep_table(6, lambda image, phrase, layer, head: image * phrase + layer - head)
    parts = (part for _, part in table.groupby("example", sort=False))
    pd.testing.assert_frame_equal(head_effects(parts), head_effects(table))
    failed = table.iloc[:1].assign(kind="failed", example="broken")
    pd.testing.assert_frame_equal(head_effects([failed, table, table.iloc[:0]]), head_effects(table))
    with pytest.raises(InputError, match="no example that was read"):
        head_effects([failed])
    with pytest.raises(InputError, match="other heads"):
        head_effects(
            [table[table["example"] == "e0"], table[(table["example"] == "e1") & (table["head"].fillna(0) != 1)]]
        )


def test_phrases_of_the_same_words_are_told_apart() -> None:
    table = sweep_table(3, lambda image, phrase, layer, head: phrase, effect="pointing").sort_values(
        ["example", "phrase"]
    )
    table = table.assign(start=2, end=12)  # both masks of an example now belong to the same words
    assert set(head_effects(table, effect="pointing")["change"]) == {-0.5}


def test_a_caption_counts_once_for_each_example() -> None:
    table = sweep_table(4, lambda image, phrase, layer, head: image, effect="caption_log_probability")
    found = head_effects(table.sort_values("start"), effect="caption_log_probability")
    assert set(found["phrases"]) == {4}
    assert set(found["change"]) == {-1.5}


def test_values_that_are_missing_are_left_out() -> None:
    table = sweep_table(4, lambda image, phrase, layer, head: 1 + phrase, effect="exact_match")
    table.loc[table["phrase"] == "1", "exact_match"] = np.nan
    found = head_effects(table, effect="exact_match")
    assert set(found["phrases"]) == {4}
    assert set(found["change"]) == {-1}


def test_both_sides_are_those_of_their_own_tables(planted: list[Any]) -> None:
    records, masks, names = apart(planted)
    table = sweep_table(8, lambda image, phrase, layer, head: 3 * layer + head + 0.1 * image)
    use = compare_use(records, masks, names, table, metric="auroc", replicates=100)
    scores, effects = score_heads(records, masks, metric="auroc", replicates=1), head_effects(table, replicates=100)
    assert use.heads["localises"].to_numpy() == pytest.approx(scores.grid()[0].ravel())
    assert use.heads["used"].to_numpy() == pytest.approx(-effects["change"].to_numpy())
    assert use.heads["used_low"].to_numpy() == pytest.approx(-effects["high"].to_numpy())
    row = use.agreement.set_index("measure").loc["spearman"]
    assert row["value"] == pytest.approx(spearmanr(scores.grid()[0].ravel(), -effects["change"]).statistic)
    assert row["value"] > 0.8
    assert row["low"] <= row["value"] <= row["high"]
    assert use.order("used") == HEADS[::-1]
    assert use.order("localises")[0] == (1, 2)


def test_heads_that_are_used_the_other_way_round_disagree(planted: list[Any]) -> None:
    table = sweep_table(8, lambda image, phrase, layer, head: -(3 * layer + head))
    use = compare_use(*apart(planted), table, metric="auroc", replicates=50, top=2)
    agreement = use.agreement.set_index("measure")
    assert agreement.loc["spearman", "high"] < -0.5
    assert agreement.loc["top overlap", "value"] == 0
    assert agreement.loc["top overlap", "chance"] == pytest.approx(2 / 6)


def test_noise_on_the_side_of_use_gives_an_interval_around_nothing(planted: list[Any]) -> None:
    table = sweep_table(8, lambda *_: 0.0, noise=1.0)
    row = (
        compare_use(*apart(planted), table, metric="auroc", replicates=300)
        .agreement.set_index("measure")
        .loc["spearman"]
    )
    assert row["low"] < 0 < row["high"]


def test_what_cannot_be_compared_is_refused(planted: list[Any]) -> None:
    table = sweep_table(8, lambda *_: 1.0)
    records, masks, names = apart(planted)
    with pytest.raises(InputError, match=r"no example 'e9'.*"):
        compare_use(records, masks, ["e9", *names[1:]], table)
    with pytest.raises(InputError, match="There are 3 names of examples but more records"):
        compare_use(records, masks, names[:3], table)
    with pytest.raises(InputError, match=r"how='mean' .* in the place of heads: zero"):
        head_effects(table, how="mean")
    with pytest.raises(InputError, match=r"no column 'pointin'; .*"):
        head_effects(table, effect="pointin")
    with pytest.raises(InputError, match="has 0 of the 6 heads"):
        compare_use(records, masks, names, table.assign(layer=table["layer"] + 7))
    with pytest.raises(InputError, match="no image to compare"):
        compare_use([], [], [], table)
    with pytest.raises(InputError, match="top must be 1 or more"):
        compare_use(records, masks, names, table, top=0)
    with pytest.raises(InputError, match="ordered by"):
        compare_use(records, masks, names, table, replicates=5).order("best")
