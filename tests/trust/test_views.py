"""R12: in every family, painting pixels moves the image token whose cell lies over them, whatever the picture's shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.capture.painting import paint_patches
from probe.capture.passes import read_and_record
from probe.capture.questions import smooth_picture
from probe.capture.view_painting import _views, paint_views, visual_tokens
from probe.tiny import tiny_model
from tests.capture.families import LANGUAGE
from tests.tiny import picture

TARGET = "0 wrong cells, error <= 0.5 px"
ENCODERS = ["clip", "siglip", "siglip2", "dinov2", "dinov3", "vit", "blip_2_vision"]
LARGE = [(300, 400), (150, 500), (400, 131)]
MORE = [(97, 101), (333, 500), (224, 224), (640, 480), (60, 90), (500, 333), (90, 61), (31, 47)]
#: Of so few pixels that cells are finer, or so long that processors refuse them.
EXTREME = [(1, 1), (1, 40), (40, 1), (2, 3), (7, 5), (16, 8000), (8000, 16), (33, 32)]


def _shown(size):
    return smooth_picture().resize(size[::-1])


@pytest.mark.promises("R12")
@pytest.mark.parametrize("name", LANGUAGE)
def test_painting_a_cell_moves_the_token_that_its_view_names(name, line, full):
    cells, subject = line("R12", target=TARGET), tiny_model(name)
    for size in LARGE + MORE * full:
        _, found, _, wrong = paint_views(subject, _shown(size))
        count = int(found.split(" of ")[1].split()[0])
        cells.add(trials=count, failures=wrong, silent_wrong=wrong, what=f"{name} {size}: {found}")
    cells.settle()


@pytest.mark.promises("R12")
@pytest.mark.parametrize("name", ENCODERS)
def test_painting_a_cell_moves_the_patch_embedding_that_the_grid_names(name, line, full):
    cells, subject = line("R12", target=TARGET), tiny_model(name)
    for size in LARGE[:1] + (LARGE[1:] + MORE) * full:
        _, found, _, wrong = paint_patches(subject, _shown(size))
        count = int(found.split(" of ")[1].split()[0])
        cells.add(trials=count, failures=wrong, silent_wrong=wrong, what=f"{name} {size}: {found}")
    cells.settle()


@pytest.mark.promises("R12")
@pytest.mark.parametrize("name", LANGUAGE)
def test_extreme_pictures_are_recorded_in_their_place_or_refused(name, line, full):
    cells, subject = line("R12", target=TARGET), tiny_model(name)
    for size in EXTREME if full else EXTREME[:5]:
        shown = picture(*size, seed=1)
        try:
            record = read_and_record(subject, shown, "a dog", answer=[20], layers=[0], verify="off")
        except probe.ProbeError as error:
            cells.trial(f"{size[0]} x {size[1]}" in str(error) or "single image token" in str(error), what=error)
            continue
        for layer in record.layers:
            cells.trial(layer.grid.image_size == size, silent=True, what=f"{name} {size} {layer.view}: size")
        _count_painted(cells, subject, shown, name)
    cells.settle()


def _count_painted(cells, subject, shown, name):
    """Paint one original pixel: what moves most, as a share of how far it moves at most, lies over it or beside it."""
    pixels, (views, reach) = np.asarray(shown), _views(subject, shown)
    plain = visual_tokens(subject, shown)
    furthest = (visual_tokens(subject, Image.fromarray(255 - pixels)) - plain).norm(dim=-1)
    for row, col in ((0, 0), (shown.height - 1, shown.width - 1), (shown.height // 2, shown.width // 2)):
        painted = pixels.copy()
        painted[row, col] = 255 * (painted[row, col] < 128)
        moved = (visual_tokens(subject, Image.fromarray(painted)) - plain).norm(dim=-1)
        for view in views:
            own, most = list(view.positions), furthest[list(view.positions)].clamp(min=1e-6)
            share = torch.where(torch.as_tensor(view.grid.weight.flatten() > 0.01), moved[own] / most, -1.0)
            if float(share.max()) < 0.02:  # one of many pixels under a cell, or cropped away
                continue
            top, left, bottom, right = view.grid.boxes.reshape(-1, 4)[int(share.argmax())]
            # Resampling smears a pixel over the two on either side, or over as much of a processed one.
            margin = [2.5 + reach * np.diff(edges).max() for edges in (view.grid.row_edges, view.grid.col_edges)]
            inside = (
                top - margin[0] < row + 0.5 < bottom + margin[0] and left - margin[1] < col + 0.5 < right + margin[1]
            )
            cells.trial(bool(inside), silent=True, what=f"{name} {pixels.shape} {view.name} pixel {(row, col)}")
