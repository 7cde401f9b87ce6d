"""The script that draws what CLIP and a diffusion model see, on the tables and records that lie beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import probe
from tests.plots.scripts import DATA, load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("encoders")


@pytest.fixture(scope="module")
def drawn(script: ModuleType) -> Iterator[Figure]:
    """The figure itself, as it would be saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe.plots, "save_figure", lambda figure, out: figure, raising=False)
        yield script.draw(DATA, Path())


def rows(name: str) -> list[dict[str, str]]:
    with open(DATA / f"encoders-{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(figure: Figure, *, across: str) -> list[str]:
    """The values in the cells of the grid with this name below it, in reading order."""
    [ax] = [one for one in figure.axes if one.get_xlabel() == across and one.images]
    cells = sorted((round(one.get_position()[1]), one.get_position()[0], one.get_text()) for one in ax.texts)
    return [text for _, _, text in cells]


def test_the_grids_show_the_stored_numbers(drawn: Figure) -> None:
    heads = [one for one in rows("clip") if one["kind"] == "head" and one["metric"] == "pointing"]
    heads.sort(key=lambda one: (int(one["layer"]), int(one["head"])))
    assert written(drawn, across="head") == [f"{float(one['value']):.2f}" for one in heads]
    each = [one for one in rows("diffusion") if one["kind"] == "head at timestep" and one["metric"] == "pointing"]
    each.sort(key=lambda one: (int(one["layer"]), int(one["timestep"])))
    # An axis of timesteps belongs to the curve too, which has no cells.
    assert written(drawn, across="timestep") == [f"{float(one['value']):.2f}" for one in each]


def test_the_curve_shows_the_stored_numbers(drawn: Figure) -> None:
    stored = rows("timesteps")
    [ax] = [one for one in drawn.axes if one.get_xlabel() == "timestep" and not one.images]
    lines: dict[str, Any] = {
        str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()
    }
    assert lines["mean over layers and heads"].tolist() == [float(one["value"]) for one in stored]
    assert lines["floor of the same map: other phrases' masks"].tolist() == [float(one["floor"]) for one in stored]
    assert set(lines["chance"]) == {float(stored[0]["chance"])}
    [oracle] = [one for one in rows("diffusion") if (one["name"], one["metric"]) == ("oracle_patch", "pointing")]
    assert set(lines["oracle patch"]) == {float(oracle["value"])}


def test_the_maps_are_those_of_the_records(drawn: Figure) -> None:
    """The largest patch on each common scale, and the words, are the record's own."""
    facts = json.loads((DATA / "encoders.json").read_text(encoding="utf-8"))
    kept = probe.load(DATA / "encoders-diffusion.safetensors")
    parts = [layer.values.mean(2) - layer.token_mean for layer in kept.layers]  # (timestep, head, row, col)
    fine = max(one.shape[-1] for one in parts)
    # Patches of coarser layers hold that many of the finest ones; so do their maps.
    maps = np.mean([np.kron(one.mean(1), np.ones((fine // one.shape[-1],) * 2)) for one in parts], axis=0)
    strip = [ax for ax in drawn.axes if ax.get_title().startswith("timestep ")]
    assert [ax.get_title() for ax in strip] == [f"timestep {step}" for step in facts["timesteps"]]
    [top] = {ax.images[1].norm.vmax for ax in strip}  # one scale
    assert top == pytest.approx(maps.max(), rel=1e-5)
    contributions = probe.load(DATA / "encoders-clip.safetensors")
    all_heads = np.concatenate([(one.values.mean(2) - one.token_mean)[0].numpy() for one in contributions.layers])
    [tile] = [ax for ax in drawn.axes if ax.get_title() == "head 0"]
    assert tile.images[1].norm.vmax == -tile.images[1].norm.vmin == pytest.approx(np.abs(all_heads).max(), rel=1e-5)
    [whole] = [ax for ax in drawn.axes if ax.get_title() == f"all {len(all_heads)} heads"]
    assert whole.images[1].norm.vmax == pytest.approx(np.abs(all_heads.sum(0)).max(), rel=1e-5)


def test_the_caption_says_what_the_tables_say(script: ModuleType) -> None:
    said = script.caption(DATA)
    for name in ("clip", "diffusion"):
        found = [one for one in rows(name) if (one["name"], one["metric"]) == ("minus_mean", "pointing")]
        value, low, high = (float(found[0][one]) for one in ("value", "low", "high"))
        assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in said
        assert f"{int(found[0]['images']):,} unseen scenes with {int(found[0]['phrases']):,} phrases" in said
    assert "CLIP has no attention from text to patches" in said
    widest = max(
        abs(float(one[end]) - float(one["value"]))
        for name in ("clip", "diffusion")
        for one in rows(name)
        if one["kind"] in ("head", "head at timestep")
        for end in ("low", "high")
    )
    assert f"no further than {widest:.2f} either way" in said
