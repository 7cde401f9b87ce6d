"""SigLIP 2 is given a row of patches with padding behind it: grids of the picture's own shape, and nothing on the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.capture import geometry
from probe.capture.geometry import encoder_inputs, processed_picture
from probe.capture.painting import paint_patches
from probe.capture.questions import smooth_picture
from probe.errors import CaptureError, InputError
from probe.family_checks import check_family
from probe.tiny.encoders import tiny_siglip2
from tests.tiny import picture

SIDE = 8
# (height, width) of a picture, and the rows and cols of at most 24 patches that keep its shape best.
SHAPES = [((40, 56), (4, 6)), ((56, 40), (6, 4)), ((30, 30), (4, 4)), ((20, 200), (2, 12)), ((300, 20), (15, 1))]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _read(subject, shown, *, change=None, **options):
    inputs = encoder_inputs(subject.processor, shown, subject.model) | (change or {})
    with torch.inference_mode(), probe.record(subject, **options) as recorder:
        subject.model.get_image_features(**inputs)
    return recorder


def test_check_passes_in_both_number_types():
    report = check_family("siglip2")
    assert report.passed, report.report or report.why
    assert report.parity <= 1e-6
    assert report.parity_float64 <= 1e-12
    assert (report.state_differences, report.geometry_wrong_cells) == (0, 0)


@pytest.mark.parametrize(("size", "shape"), SHAPES)
def test_the_grid_has_the_pictures_own_shape_and_padding_gets_nothing(size, shape):
    subject, shown = tiny_siglip2(), picture(*size)
    for queries, kind in (("class token", "pooling query"), ([0, shape[0] * shape[1] - 1], "patch")):
        record = _read(subject, shown, queries=queries, verify="all").result(image=shown)
        assert record.query_kind == kind
        assert record.image_size == size
        for layer in record.layers:
            assert layer.grid.shape == shape
            assert layer.grid.row_edges == pytest.approx(np.linspace(0, size[0], shape[0] + 1))
            assert layer.grid.col_edges == pytest.approx(np.linspace(0, size[1], shape[1] + 1))
            # Every patch that is not padding is in the grid, and there is no other token.
            total = layer.values.sum((-1, -2))
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
            assert not layer.rest.any()


@pytest.mark.parametrize(("size", "shape"), SHAPES)
def test_the_picture_put_together_is_the_one_that_was_cut(size, shape):
    subject, shown = tiny_siglip2(), picture(*size)
    images = subject.processor.image_processor
    found = processed_picture(images(images=shown, return_tensors="pt"), SIDE)
    resized = shown.resize((shape[1] * SIDE, shape[0] * SIDE), images.resample)
    plain = (np.asarray(resized, dtype=np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(found[0].numpy(), plain.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(300, 400), (150, 500), (400, 131)], ids=str)
def test_painting_a_patch_moves_the_token_that_the_grid_names(size):
    passed, found, *_ = paint_patches(tiny_siglip2(), smooth_picture().resize(size[::-1]))
    assert passed, found


def test_rows_and_columns_the_wrong_way_round_fail_geometry(monkeypatch):
    real = geometry._resized
    monkeypatch.setattr(geometry, "_resized", lambda images, frame: real(images, frame)[::-1])
    assert not paint_patches(tiny_siglip2(), smooth_picture())[0]


def test_what_cannot_be_read_is_refused():
    subject, shown = tiny_siglip2(), picture()
    inputs = encoder_inputs(subject.processor, shown, subject.model)
    with pytest.raises(
        CaptureError, match=r"pixel_values of shape \(2, 24, 192\) .*one image at a time, as \(1, patch, value\)"
    ):
        _read(subject, shown, change={name: torch.cat([one, one]) for name, one in inputs.items()})
    with pytest.raises(
        CaptureError, match="spatial_shapes says 5 x 6 patches of 8 pixels, but pixel_values has 24 patches"
    ):
        _read(subject, shown, change={"spatial_shapes": torch.tensor([[5, 6]])})
    # A picture of 16 patches, whose padding a mask of ones lets the model look at.
    square = picture(30, 30)
    recorder = _read(
        subject, square, change={"pixel_attention_mask": torch.ones(1, 24, dtype=torch.int32)}, queries=[0]
    )
    with pytest.raises(CaptureError, match="Padding receives attention"):
        recorder.result(image=square)
    recorder = _read(subject, shown)
    with pytest.raises(InputError, match="is not the one that the model saw"):
        recorder.result(image=picture(seed=1))
    subject.processor.image_processor.max_num_patches = 12
    with pytest.raises(CaptureError, match=r"saw a picture of \(32, 48\) pixels .* set to make"):
        recorder.result(image=shown)
    with pytest.raises(CaptureError, match="CLIP"):
        probe.contributions(subject, shown, ["a dog"])
