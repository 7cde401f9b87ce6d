"""The script that draws phrases and systems: the saved maps, and two scenes read again."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import probe
from tests.plots.scripts import DATA, load_script


@pytest.mark.parametrize(("name", "side"), [("lab/llava", 8), ("lab/diffusion", 16)])
def test_what_is_drawn_is_the_stored_map(name: str, side: int) -> None:
    script = load_script("phrases")
    maps, phrases, images, masks = script.read_saved(DATA)
    assert len(phrases) == len(images) == len(masks) == script.SCENES
    assert len(maps) == script.SCENES * len(script.SYSTEMS)
    values = maps[name, 2]
    _, ax = plt.subplots()
    script.show_map(ax, values, images[2], masks[2])
    height = images[2].height // side
    assert np.allclose(ax.images[1].get_array()[height // 2 :: height, height // 2 :: height], values, atol=1e-6)
    assert ax.images[1].get_clim() == (np.sort(values.ravel())[[side**2 // 2 - 1, side**2 // 2]].mean(), values.max())
    [mark] = ax.lines
    row, col = np.argwhere(values == values.max())[0]
    place = (int(row * height + height / 2), int(col * height + height / 2))
    assert (mark.get_ydata()[0], mark.get_xdata()[0]) == (place[0] + 0.5, place[1] + 0.5)
    assert mark.get_marker() == ("x" if masks[2][place] else "o")


def test_two_scenes_can_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are the phrase's mean minus the answer's, of all layers and heads."""
    script = load_script("phrases")
    monkeypatch.setattr(script, "SYSTEMS", ("lab/llava",))
    monkeypatch.setattr(script, "SCENES", 2)
    script.measure(tmp_path)
    maps, phrases, images, masks = script.read_saved(tmp_path)
    from probe.lab.scenes import scene

    example = scene(1)
    assert (phrases[1], list(masks[1][example.phrases[0].mask])) == (
        example.phrases[0].text,
        [True] * int(example.phrases[0].mask.sum()),
    )
    assert np.array_equal(np.asarray(images[1]), np.asarray(example.image))
    record = probe.run(
        probe.load_model("lab/llava"), example.image, "Describe the image.", answer=example.caption
    ).record
    every = np.stack([one.values[0].numpy() for one in record.layers]).mean((0, 1))  # (token, row, col)
    words = [one.strip() for one in record.tokens]
    first = words.index(phrases[1].split()[0])
    expected = every[first : first + 3].mean(0) - every.mean(0)
    assert np.allclose(maps["lab/llava", 1], expected, atol=1e-6)
