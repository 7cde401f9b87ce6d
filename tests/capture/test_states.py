"""Hidden states of patches are those that the model itself gives out, at the places of the image."""

from __future__ import annotations

import pytest
import torch

from probe.analysis.sinks import norm_sinks
from probe.capture.hooks import hook_tables
from probe.capture.passes import inputs_with_answer
from probe.capture.states import patch_states
from probe.errors import CaptureError, InputError
from probe.tiny import tiny_model
from tests.tiny import picture, tiny_clip, tiny_llava


def test_states_are_the_models_own_where_its_patches_stand():
    subject = tiny_llava(seed=3)
    patch_states(subject, picture(), "What is it?", answer="a red ball")  # the library leaves hooks of its own, once
    tables = hook_tables(subject.model)
    found = patch_states(subject, picture(), "What is it?", answer="a red ball")
    assert hook_tables(subject.model) == tables
    inputs, _ = inputs_with_answer(subject, picture(), "What is it?", "a red ball")
    with torch.no_grad():
        states = subject.model(**inputs, output_hidden_states=True).hidden_states
    image = (inputs["input_ids"][0] == subject.model.config.image_token_id).nonzero()[:, 0]
    assert found.values.shape == (3, 4, 4, 32)
    assert [name.rpartition(".layers.")[2] for name in found.layers] == ["0", "1", "2"]
    for layer in range(3):
        assert torch.equal(found.values[layer].flatten(0, 1), states[layer][0, image])
        assert torch.equal(found.first[layer], states[layer][0, 0])
    assert found.grid.image_size == (40, 56)


def test_a_patch_that_is_made_massive_is_found_as_a_sink(monkeypatch):
    subject = tiny_llava(seed=3)
    layer = subject.model.get_decoder().layers[0]
    forward, place = layer.forward, {}

    def massive(hidden: torch.Tensor, *args, **kwargs):
        output = forward(hidden, *args, **kwargs)
        output = output.clone()
        output[0, place["at"], 5] += 1e4
        return output

    inputs, _ = inputs_with_answer(subject, picture(), "What is it?", "a red ball")
    place["at"] = int((inputs["input_ids"][0] == subject.model.config.image_token_id).nonzero()[6, 0])
    monkeypatch.setattr(layer, "forward", massive)
    found = norm_sinks(patch_states(subject, picture(), "What is it?", answer="a red ball").values)
    expected = torch.zeros(3, 4, 4, dtype=torch.bool)
    expected[1:, 1, 2] = True
    assert torch.equal(found, expected)


def test_models_without_such_states_are_refused():
    with pytest.raises(InputError, match="needs a Subject with a language model, found Subject"):
        patch_states(tiny_clip(), picture(), "What is it?", answer="a red ball")
    with pytest.raises(CaptureError, match="are no part of its sequence"):
        patch_states(tiny_model("mllama"), picture(), "What is it?", answer="a red ball")
