"""The effect of an ablation is the paired change, phrase by phrase, of what plain passes give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import probe
from probe.capture.ablation import ablate
from probe.capture.passes import inputs_with_answer
from probe.effects import ablation_effects
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
