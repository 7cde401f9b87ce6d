"""Does a diffusion record's grid name the right patches? Changing one patch of the picture, and of the latents, and what moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe.capture.denoisers import Denoiser, denoiser_of
from probe.capture.denoising import draw_noise, latent_preparation
from probe.capture.diffusion import DiffusionRecorder
from probe.capture.geometry import Preparation
from probe.capture.noising import encode_text
from probe.capture.questions import Answer
from probe.layout import PatchGrid

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["paint_latents"]

_CELLS = 8  # patches that are changed, one at a time
_OFF = 0.5  # pixels of the processed picture; rounding grey levels moves the middle of a change by far less
_PICTURES = 2  # over which a change is averaged: attention in the same block spreads it
_PROMPT = "a red circle"


def paint_latents(subject: Subject, picture: Any) -> Answer:
    """Change one patch: do the changed pixels of the prepared picture lie in the middle of its cell, and does that patch's own row
    of the first layer move most when the latents under it are changed? (In a U-Net, whose convolutions come before any attention
    and spread a change unevenly: does the first of them move the latents around it and no others?)"""
    pipeline = subject.model
    denoiser = denoiser_of(getattr(pipeline, "unet", None) or pipeline.transformer)
    side = denoiser.side * int(pipeline.vae_scale_factor)
    small = picture.resize((picture.width // 2, picture.height // 2))  # other than the frame, in both directions
    preparation = latent_preparation(pipeline, denoiser, (small.height, small.width))
    shape = (preparation.frame[0] // side, preparation.frame[1] // side)
    grid = preparation.grid(side)
    every = np.array([(row, col) for row in range(shape[0]) for col in range(shape[1])])
    cells = every[np.random.default_rng(0).permutation(len(every))[:_CELLS]]
    wrong = []
    for row, col in cells:
        off = _off_middle(pipeline, preparation, grid, int(row), int(col))
        found = _moved(pipeline, denoiser, shape, int(row), int(col))
        if found != (row, col):
            wrong.append(f"changed ({row}, {col}), moved {found}")
        elif off > _OFF:
            wrong.append(f"({row}, {col}) is off by {off:.1f} pixels of the prepared picture")
    detail = f"; {wrong[0]}" if wrong else ""
    return not wrong, f"{len(wrong)} of {len(cells)} patches wrong{detail}", "0 wrong", len(wrong)


def _off_middle(pipeline: Any, preparation: Preparation, grid: PatchGrid, row: int, col: int) -> float:
    """How far, in prepared pixels, the middle of what changes lies from where the grid has the box that was painted."""
    edges = grid.boxes[row, col]
    top, left, bottom, right = np.round(edges).astype(int)
    box = (slice(top, bottom), slice(left, right))
    # Greys far from 0 and 255, so that no overshoot of the resampling is cut off.
    grey = np.full((*preparation.image_size, 3), 96, dtype=np.uint8)
    light = grey.copy()
    light[box] = 160
    height, width = preparation.frame
    processor = pipeline.image_processor
    before, after = (
        processor.preprocess(_as_image(one), height=height, width=width)[0].double().sum(0).numpy()
        for one in (grey, light)
    )
    change = after - before
    middle = [
        float((change.sum(axis=1 - axis) * (np.arange(change.shape[axis]) + 0.5)).sum() / change.sum())
        for axis in (0, 1)
    ]
    painted = ((top + bottom) / 2, (left + right) / 2)
    expected = [
        one * scale + moved for one, scale, moved in zip(painted, preparation.scale, preparation.offset, strict=True)
    ]
    inside = 0 < row < grid.shape[0] - 1 and 0 < col < grid.shape[1] - 1
    # At the border a part of the change is cut off, which moves its middle.
    return max(abs(one - other) for one, other in zip(middle, expected, strict=True)) if inside else 0.0


def _as_image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _moved(
    pipeline: Any, denoiser: Denoiser, shape: tuple[int, int], row: int, col: int
) -> tuple[int, int] | tuple[tuple[int, int], ...]:
    """The patch at which the first layer's maps move most when the latents under (row, col) are changed."""
    side, total = denoiser.side, torch.zeros(shape, dtype=torch.float64)
    channels = int(pipeline.vae.config.latent_channels)
    for draw in range(_PICTURES):
        latents = draw_noise((1, channels, shape[0] * side, shape[1] * side), seed=1, draw=draw)
        changed = latents.clone()
        changed[..., row * side : (row + 1) * side, col * side : (col + 1) * side] += 1.0
        if denoiser.cell == "latents":
            return _around(denoiser.module, latents, changed, row, col)
        maps = [_first_layer(pipeline, denoiser, one) for one in (latents, changed)]
        total += (maps[1] - maps[0]).abs().double().sum((0, 1))
    row, col = divmod(int(total.argmax()), shape[1])
    return row, col


@torch.inference_mode()
def _around(
    unet: Any, latents: Tensor, changed: Tensor, row: int, col: int
) -> tuple[int, int] | tuple[tuple[int, int], ...]:
    """(row, col) if the first convolution moves what its kernel reaches from there and nothing else; else the corners of that."""
    before, after = (unet.conv_in(one.to(unet.device, unet.dtype)) for one in (latents, changed))
    moved = ((after - before).abs().sum((0, 1)) > 0).nonzero().cpu()
    reach = unet.conv_in.kernel_size[0] // 2
    size = latents.shape[-2:]
    lowest = tuple(max(one - reach, 0) for one in (row, col))
    highest = tuple(min(one + reach, end - 1) for one, end in zip((row, col), size, strict=True))
    corners = (tuple(moved.amin(0).tolist()), tuple(moved.amax(0).tolist()))
    return (row, col) if corners == (lowest, highest) else corners


def _first_layer(pipeline: Any, denoiser: Denoiser, latents: Tensor) -> Tensor:
    """(head, token, row, col) maps of the first layer, of patches that look at words."""
    with torch.inference_mode(), DiffusionRecorder(pipeline, layers=[0], verify="off") as recorder:
        states = encode_text(pipeline, _PROMPT, device=denoiser.module.device)
        denoiser.run(pipeline, states, latents.to(denoiser.module.device, denoiser.module.dtype), 500)
    return recorder.result().layers[0].values[0].cpu()
