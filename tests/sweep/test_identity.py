"""What a stored row is keyed by: any single change of what it depends on gives another key, and is refused with its name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from probe.errors import InputError, ModelError
from probe.evaluation.examples import Example
from probe.sweep.identity import describe_differences, example_digest, identify, outline_of
from probe.sweep.store import Store
from tests.sweep.single_changes import LIVE, PLAN, files


def test_pictures_in_memory_differ_by_their_pixels_and_mode(tmp_path):
    mask = np.zeros((6, 5), bool)
    pixels = np.arange(30, dtype=np.uint8).reshape(6, 5)
    pictures = [Image.fromarray(pixels), Image.fromarray(pixels + 1), Image.fromarray(pixels).convert("P")]
    found = {example_digest(Example("one", one, "", ())) for one in pictures}
    found.add(example_digest(Example("one", tmp_path / "absent.png", "", ())))
    assert len(found) == 4
    assert mask.shape == (6, 5)


def test_another_sweeps_folder_is_refused_with_the_difference(tmp_path):
    outline = files(tmp_path / "model")
    options = {"columns": PLAN.columns(), "ablations": 3}
    Store.create(tmp_path / "out", PLAN, identify(PLAN, outline, **LIVE), **options)
    other = identify(replace(PLAN, prompt="Look."), outline, **LIVE | {"kernel": "eager"})
    with pytest.raises(
        InputError, match=r"another sweep: prompt='Describe the image.' \(now 'Look.'\), kernel='sdpa' \(now 'eager'\)"
    ):
        Store.create(tmp_path / "out", PLAN, other, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="holds something that is no sweep"):
        Store.create(tmp_path / "full", PLAN, other, **options)
    with pytest.raises(InputError, match="is a file"):
        Store.create(tmp_path / "full" / "x", PLAN, other, **options)
    with pytest.raises(InputError, match="holds no sweep"):
        Store.open(tmp_path / "full")


def test_differences_are_named():
    assert describe_differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": "x" * 99}).startswith(
        "b=2 (now 3), c=None (now 'xxx"
    )
    assert describe_differences({"a": 1}, {"a": 1}) == ""


def test_a_model_is_known_by_its_configuration_alone():
    found = outline_of("lab/llava")
    assert (found.layers, found.heads) == (4, 8)  # as its config.json says
    assert outline_of("lab/difflmm").layers > 0
    with pytest.raises(ModelError, match="has no language model whose heads could be taken away"):
        outline_of("lab/clip")
    with pytest.raises(ModelError, match="Did you mean 'lab/llava'"):
        outline_of("lab/lava")
