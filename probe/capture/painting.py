"""Does a grid name the right patches? Painting one patch of an image and seeing which visual token moves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from probe.capture.geometry import encoder_inputs, image_processor_of, preparation_of, processed_picture
from probe.capture.modules import image_encoder, patch_side
from probe.capture.questions import Answer
from probe.errors import CaptureError

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["paint_patches"]

_CELLS = 12  # patches that are painted, one at a time, to see which visual token moves
_OFF = 0.5  # pixels of the processed picture; rounding grey levels moves the middle of a change by far less


def paint_patches(subject: Subject, picture: Any) -> Answer:
    """Paint one patch's box in the original image: does the visual token that the grid names move most, and do the changed
    pixels of the processed picture lie in its middle?"""
    patch = _patch_size(subject)
    picture = _enlarged(subject, picture)
    grid = preparation_of(subject.processor, (picture.height, picture.width), family=subject.family).grid(patch)
    cells = np.argwhere(grid.weight > 0.99)
    if not len(cells):
        raise CaptureError(
            f"No patch lies wholly inside this picture of {picture.height} x {picture.width} pixels (height x width), so none can "
            "be painted; give another image."
        )
    generator = np.random.default_rng(0)
    cells = cells[generator.permutation(len(cells))[:_CELLS]]
    pixels = np.asarray(picture)
    plain, wrong = _visual_tokens(subject, pixels), []
    for row, col in cells:
        edges = grid.boxes[row, col]
        top, left, bottom, right = np.round(edges).astype(int)
        box = (slice(top, bottom), slice(left, right))
        painted = pixels.copy()
        painted[box] = generator.integers(0, 256, painted[box].shape)
        moved = (_visual_tokens(subject, painted) - plain).norm(dim=-1)
        found = divmod(int(moved.argmax()), grid.shape[1])
        if found != (row, col):
            wrong.append(f"painted ({row}, {col}), moved {found}")
        elif (
            0 < row < grid.shape[0] - 1 and 0 < col < grid.shape[1] - 1
        ):  # at the border a part of the change is cut off
            middle = np.array([top + bottom, left + right]) / 2
            expected = ((middle - edges[:2]) / (edges[2:] - edges[:2]) + (row, col)) * patch
            off = float(np.abs(_changed_middle(subject, pixels.shape, box) - expected).max())
            if off > _OFF:
                wrong.append(f"({row}, {col}) is off by {off:.1f} pixels of the processed picture")
    detail = f"; {wrong[0]}" if wrong else ""
    return not wrong, f"{len(wrong)} of {len(cells)} patches wrong{detail}", "0 wrong", len(wrong)


def _enlarged(subject: Subject, picture: Any) -> Any:
    """The picture, so large that a patch is several of its pixels wide: boxes can only be painted in whole pixels."""
    grid = preparation_of(subject.processor, (picture.height, picture.width), family=subject.family)
    smallest = min(_patch_size(subject) / one for one in grid.scale)
    factor = max(1, math.ceil(8 / smallest))
    return picture.resize((picture.width * factor, picture.height * factor)) if factor > 1 else picture


def _changed_middle(subject: Subject, shape: tuple[int, ...], box: tuple[slice, slice]) -> np.ndarray:
    """(row, col): the middle of what changes in the processed picture when a box of a grey image becomes lighter."""
    # Greys far from 0 and 255, so that no overshoot of the resampling is cut off.
    grey = np.full(shape, 96, dtype=np.uint8)
    light = grey.copy()
    light[box] = 160
    made = (image_processor_of(subject.processor)(images=one, return_tensors="pt") for one in (grey, light))
    before, after = (processed_picture(one, _patch_size(subject))[0].double().numpy() for one in made)
    change = (after - before).sum(axis=0)
    # Pixel i covers i to i + 1.
    return (
        np.array([(change.sum(axis=1 - axis) * (np.arange(change.shape[axis]) + 0.5)).sum() for axis in (0, 1)])
        / change.sum()
    )


def _visual_tokens(subject: Subject, pixels: np.ndarray) -> Tensor:
    """(patch, channel) patch embeddings of a picture, row by row: the visual tokens before they attend to each other."""
    model = subject.model
    _, tower, _ = image_encoder(model)
    size = _patch_size(subject)
    embeddings = [
        one
        for one in tower.embeddings.modules()
        if (isinstance(one, nn.Conv2d) and one.kernel_size == one.stride == (size, size))
        or (isinstance(one, nn.Linear) and one.in_features % (size * size) == 0)
    ]
    if len(embeddings) != 1:
        raise CaptureError(f"{len(embeddings)} patch embeddings were found in {type(tower).__name__}; expected one.")
    inputs = encoder_inputs(subject.processor, pixels, model)
    with torch.inference_mode():
        found: Tensor = embeddings[0](inputs["pixel_values"])[0].float()
    if "spatial_shapes" in inputs:
        return found[: int(inputs["spatial_shapes"][0].prod())]
    return found.flatten(1).T


def _patch_size(subject: Subject) -> int:
    return patch_side(image_encoder(subject.model)[1])
