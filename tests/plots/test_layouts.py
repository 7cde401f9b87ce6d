"""Nothing is cut off and no band stays empty, whatever the picture shows and however large it is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import probe
from probe.analysis.profiles import profile
from tests.analysis.images import make_images
from tests.plots.scores import make_frame
from tests.plots.test_curves import make_table
from tests.records import make_grid, make_record

LONG = (
    "a rather large and very red circle beside an equally large and somewhat bluish square, which stands on the grass"
)


def make_profile(over):
    images = make_images(4)
    return profile([record for record, _ in images], [masks for _, masks in images], over=over, replicates=20)


CURVES = {"training": make_table, "layer": lambda: make_profile("layer"), "token": lambda: make_profile("token")}


def content(figure):
    """What is drawn, in inches: left, bottom, right and top."""
    with probe.plots.style():
        for _ in range(2):
            figure.draw_without_rendering()
        box = figure.get_tightbbox()
    return box.x0, box.y0, box.x1, box.y1


def assert_inside(figure):
    left, bottom, right, top = content(figure)
    width, height = figure.get_size_inches()
    assert (left > -0.02, bottom > -0.02, right < width + 0.02, top < height + 0.02) == (True,) * 4
    return height - top, bottom


@pytest.mark.parametrize("size", [(2.4, 3.35), (2.9, 6.9), (3.5, 2.6)])
@pytest.mark.parametrize("over", CURVES)
def test_curves(over, size):
    figure = probe.plots.new_figure(size)
    probe.plots.emergence(CURVES[over](), ax=figure.subplots())
    assert_inside(figure)


@pytest.mark.parametrize("size", [(1.6, 2.2), (2.4, 3.35), (2.0, 6.9)])
@pytest.mark.parametrize("shape", [(4, 8), (32, 32)])
def test_heads(shape, size):
    figure = probe.plots.new_figure(size)
    ax = probe.plots.heads(make_frame(np.random.default_rng(0).uniform(size=shape)), ax=figure.subplots())
    assert_inside(figure)
    cell = ax.get_window_extent().width / shape[1]
    assert all(one.get_window_extent().width <= cell for one in ax.texts)  # numbers never run into each other


@pytest.mark.parametrize("size", [(32, 32), (20, 60), (60, 20)])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_phrases(size, count):
    record, image = make_record(text=LONG, grid=make_grid(4, 4, image_size=size)), Image.new("RGB", size[::-1])
    words = ["a rather large and very red circle", "circle beside an equally large", "bluish square", "grass", "on"]
    axes = probe.plots.phrases(record, words[:count], image)
    figure = axes[0].figure
    above, below = assert_inside(figure)
    assert max(above, below) < 0.2
    rows = {round(ax.get_position().y0, 2) for ax in axes}
    assert len(rows) == -(-count // 4)


@pytest.mark.parametrize("size", [(32, 32), (20, 60), (200, 20)])
def test_answers(size):
    record, image = make_record(text=LONG, grid=make_grid(4, 4, image_size=size)), Image.new("RGB", size[::-1])
    ax = probe.plots.answer(record, image)
    above, below = assert_inside(ax.figure)
    assert max(above, below) < 0.12
    box = ax.get_window_extent()
    assert box.height / box.width == pytest.approx(size[0] / size[1], rel=1e-3)
    if size[0] <= size[1]:
        assert box.width / ax.figure.dpi > 3.2  # of 3.35 inches


@pytest.mark.parametrize("size", [(32, 32), (20, 60), (60, 20)])
def test_overlays_and_filmstrips(size):
    record, image = make_record(layers=5, grid=make_grid(4, 4, image_size=size)), Image.new("RGB", size[::-1])
    for ax in (probe.plots.overlay(record["circle"], image), probe.plots.filmstrip(record, "circle", image)[0]):
        assert max(assert_inside(ax.figure)) < 0.2
