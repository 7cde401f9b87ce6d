"""Every family that can be recorded has a tiny model with which that can be tried anywhere."""

from __future__ import annotations

import pytest
import torch

from probe.errors import InputError
from probe.families import FAMILIES
from probe.tiny import TINY, tiny_model


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_of_its_family_and_the_same_each_time(name):
    first, again = tiny_model(name), tiny_model(name)
    assert first.family.name == name
    assert first.family in FAMILIES
    parts = [one.components if hasattr(one, "components") else {"model": one} for one in (first.model, again.model)]
    modules = [name for name, one in parts[0].items() if isinstance(one, torch.nn.Module)]
    assert modules
    for part in modules:
        assert not parts[0][part].training
        states = [one[part].state_dict() for one in parts]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_family_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"There is no family 'fluxx'.*Did you mean 'flux'"):
        tiny_model("fluxx")
