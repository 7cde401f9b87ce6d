"""The script that draws the method: the saved record, and the scene read again."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import probe
from tests.plots.scripts import DATA, load_script


def test_the_steps_are_means_and_their_difference() -> None:
    script, facts = load_script("method"), json.loads((DATA / "method.json").read_text(encoding="utf-8"))
    record = probe.load(DATA / "method.safetensors")
    steps = script.Steps.of(record, facts["phrase"])
    words = [one.strip() for one in record.tokens]
    wanted = facts["phrase"].split()
    first = next(i for i in range(len(words)) if words[i : i + len(wanted)] == wanted)
    maps = record.layers[0].values.numpy()[0, 0]
    of_phrase, of_answer = maps[first : first + len(wanted)].mean(0), maps.mean(0)
    assert np.allclose(steps.of_phrase, of_phrase, atol=1e-7)
    assert np.allclose(steps.of_answer, of_answer, atol=1e-4)  # values on disk are of half precision, their mean is not
    assert np.allclose(steps.difference, of_phrase - of_answer, atol=1e-4)
    _, ax = plt.subplots()
    script.draw_rows(ax, record, steps)
    assert np.array_equal(ax.images[0].get_array(), maps.reshape(len(maps), -1))
    assert [one.get_text() for one in ax.get_yticklabels() if one.get_fontweight() == "bold"] == wanted


def test_the_point_is_the_largest_pixel_of_what_is_drawn() -> None:
    script, facts = load_script("method"), json.loads((DATA / "method.json").read_text(encoding="utf-8"))
    record = probe.load(DATA / "method.safetensors")
    steps = script.Steps.of(record, facts["phrase"])
    patch = np.unravel_index(steps.difference.argmax(), steps.difference.shape)
    side = record.image_size[0] / steps.difference.shape[0]
    # Bicubic upsampling may move it a little out of the best patch.
    assert max(abs((one + 0.5) * side - at) for one, at in zip(patch, facts["point"], strict=True)) < side
    _, ax = plt.subplots()
    script.mark_point(ax, facts["point"])
    assert (ax.lines[0].get_ydata()[0], ax.lines[0].get_xdata()[0]) == tuple(one + 0.5 for one in facts["point"])
    levels = np.asarray(Image.open(DATA / "method-masks.png"))
    overlap = np.logical_and(levels & 1, levels & 2).sum() / np.logical_or(levels & 1, levels & 2).sum()
    assert f"IoU {overlap:.2f})" in script.caption(DATA)


def test_the_scene_can_be_read_again(tmp_path: Path) -> None:
    script = load_script("method")
    script.measure(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(script.READS)
    facts, before = (json.loads((one / "method.json").read_text(encoding="utf-8")) for one in (tmp_path, DATA))
    assert facts["phrase"] in probe.load(tmp_path / "method.safetensors").text
    assert (facts["scene"], facts["phrase"]) == (before["scene"], before["phrase"])
    kept, again = (load_file(one / "method.safetensors") for one in (DATA, tmp_path))
    assert {name: one.shape for name, one in kept.items()} == {name: one.shape for name, one in again.items()}
    assert facts["point"] == pytest.approx(before["point"], abs=2)
