"""Tiny random models, and a picture to show them."""

from __future__ import annotations

import torch
from PIL import Image

from probe.tiny.encoders import tiny_clip, tiny_dino, tiny_siglip
from probe.tiny.language_models import tiny_llava, tiny_processor

__all__ = ["picture", "tiny_clip", "tiny_dino", "tiny_llava", "tiny_processor", "tiny_siglip"]


def picture(height: int = 40, width: int = 56, *, seed: int = 0) -> Image.Image:
    """A random RGB picture of that size."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
