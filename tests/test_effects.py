"""The effect of an ablation is the paired change, phrase by phrase, of what plain passes give."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import probe
from probe.capture.ablation import ablate
from probe.capture.passes import inputs_with_answer
from probe.effects import ablation_effects, removal_curves
from probe.errors import InputError
from probe.evaluation.examples import Example, ExamplePhrase
from tests.tiny import picture, tiny_llava

PROMPT = "Describe the image."


def _example(seed: int) -> Example:
    mask = np.zeros((40, 56), bool)
    mask[5:30, 10 + seed : 40] = True
    text = "a man with a red ball"
    return Example(
        f"image {seed}",
        picture(seed=seed),
        text,
        (ExamplePhrase("man", 2, 5, mask), ExamplePhrase("red ball", 13, 21, ~mask)),
    )


def _plain_log_probability(subject, example, phrase) -> float:
    inputs, start = inputs_with_answer(subject, example.image, PROMPT, example.text)
    with torch.no_grad():
        logits = subject.model(**inputs).logits[0].double()
    record = probe.run(subject, example.image, PROMPT, answer=example.text).record
    total = 0.0
    for token in record.tokens_of(phrase.start, phrase.end):
        row = logits[start + token - 1]
        total += float(row[record.token_ids[token]] - torch.logsumexp(row, 0))
    return total


def test_changes_are_what_plain_passes_give():
    subject, examples = tiny_llava(), [_example(seed) for seed in range(3)]
    heads = [(1, 0), (2, 3)]
    table = ablation_effects(subject, examples, {"two heads": heads, "layer 0": [(0, head) for head in range(4)]})
    row = table[(table["ablation"] == "two heads") & (table["effect"] == "log-probability")].iloc[0]
    before, after = [], []
    for example in examples:
        for phrase in example.phrases:
            before.append(_plain_log_probability(subject, example, phrase))
            with ablate(subject, heads=heads):
                after.append(_plain_log_probability(subject, example, phrase))
    assert row["before"] == pytest.approx(np.mean(before), abs=1e-4)
    assert row["change"] == pytest.approx(np.mean(after) - np.mean(before), abs=1e-4)
    assert row["low"] <= row["change"] <= row["high"]
    assert (row["images"], row["phrases"], row["heads"]) == (3, 6, 2)
    assert list(table["ablation"].unique()) == ["two heads", "layer 0"]
    assert not any(math.isnan(one) for one in table["change"])


def test_taking_nothing_of_consequence_away_changes_nothing():
    subject = tiny_llava()
    # Whatever a head of the last layer gives out is multiplied by zero here, so taking it away is without consequence.
    projection = subject.model.model.language_model.layers[2].self_attn.o_proj
    with torch.no_grad():
        projection.weight[:, 8:16] = 0
    table = ablation_effects(subject, [_example(0), _example(1)], {"mute head": [(2, 1)]})
    assert (table["change"] == 0).all()


def test_empty_requests_are_refused():
    with pytest.raises(InputError, match="nothing to take away"):
        ablation_effects(tiny_llava(), [_example(0)], {})
    with pytest.raises(InputError, match="no example to read"):
        ablation_effects(tiny_llava(), [], {"one": [(0, 0)]})
    with pytest.raises(InputError, match="none of its examples has a phrase"):
        ablation_effects(tiny_llava(), [replace(_example(0), phrases=())], {"one": [(0, 0)]})


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "Ablation 'odd': heads is empty"),
        ([(0, 1), (0, 1)], r"Ablation 'odd': Head \(0, 1\) is named twice"),
        ([(9, 1)], r"Ablation 'odd': Head \(9, 1\) does not exist"),
        ([(0, "1")], r"Ablation 'odd': heads=.* is not a list"),
    ],
)
def test_heads_that_do_not_exist_are_refused_before_anything_is_read(heads, message):
    def unread():
        raise AssertionError("an example was read")
        yield

    with pytest.raises(InputError, match=message):
        ablation_effects(tiny_llava(), unread(), {"good": [(0, 0)], "odd": heads})


def test_other_bad_requests_are_refused():
    subject, heads = tiny_llava(), {"one": [(0, 0)]}
    with pytest.raises(InputError, match=r"ablations=\[\(0, 0\)\] has no names"):
        ablation_effects(subject, [_example(0)], [(0, 0)])
    with pytest.raises(InputError, match="how must be"):
        ablation_effects(subject, [_example(0)], heads, how="none")
    with pytest.raises(InputError, match="needs reference"):
        ablation_effects(subject, [_example(0)], heads, how="mean")
    with pytest.raises(InputError, match="needs a Subject"):
        ablation_effects(subject.model, [_example(0)], heads)


def test_phrases_keep_their_places_where_a_text_begins_with_blanks():
    subject, plan = tiny_llava(), {"one": [(1, 0)]}
    example = _example(0)
    moved = tuple(replace(one, start=one.start + 2, end=one.end + 2) for one in example.phrases)
    shifted = replace(example, text="  " + example.text, phrases=moved)
    # An example without a phrase says nothing and counts as none.
    tables = [ablation_effects(subject, [one, replace(example, phrases=())], plan) for one in (example, shifted)]
    assert tables[0].equals(tables[1])
    assert list(tables[0]["images"]) == [1, 1]


def test_the_last_layer_cannot_change_where_heads_look_but_others_can():
    examples = [_example(seed) for seed in range(12)]
    plan = {f"layer {layer}": iter([(layer, head) for head in range(4)]) for layer in range(3)}
    table = ablation_effects(tiny_llava(), examples, plan)
    changes = table[table["effect"] == "pointing"].set_index("ablation")["change"]
    assert changes["layer 2"] == 0
    assert changes["layer 0"] != 0
    assert (table[table["effect"] == "log-probability"]["change"] != 0).all()
    assert list(table["heads"]) == [4] * 6


def test_heads_go_in_the_order_that_is_given():
    subject, examples = tiny_llava(), [_example(0), _example(1)]
    order = [(2, 3), (0, 1), (1, 0)]  # the sets differ from those of the sorted order
    table = removal_curves(subject, examples, {"given": order, "reverse": order[::-1]}, counts=(1, 2))
    expected = ablation_effects(
        subject, examples, {"a": order[:1], "b": order[:2], "c": order[:0:-1][:1], "d": order[:0:-1]}
    )
    assert list(table["order"]) == ["given"] * 4 + ["reverse"] * 4
    assert list(table["change"]) == list(expected["change"])
    assert list(table["heads"]) == [1, 1, 2, 2] * 2
    assert len(removal_curves(subject, examples, {"given": iter(order)})) == 6
    with pytest.raises(InputError, match="'given' has 3 heads, and 4 are to be taken away"):
        removal_curves(subject, examples, {"given": order}, counts=(4,))
    with pytest.raises(InputError, match="counts are numbers of heads"):
        removal_curves(subject, examples, {"given": order}, counts=(0,))
    with pytest.raises(InputError, match="has no names"):
        removal_curves(subject, examples, order)
