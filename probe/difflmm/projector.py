"""From the U-Net's features and CLIP's patches to the language model's visual tokens."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from probe.difflmm.configuration import DiffLMMConfig, block_shape

__all__ = ["DiffLMMProjector"]


class DiffLMMProjector(nn.Module):
    """Visual tokens (batch, patch, text width), in the order of CLIP's patches, row by row.

    ``V = concat[GELU(Conv1x1(LayerNorm F)), c]``, then ``Linear, GELU, Linear`` and one learned position a patch.
    """

    def __init__(self, config: DiffLMMConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        text: Any = config.text_config
        diffusion: Any = config.diffusion_config
        channels = block_shape(diffusion)[0]
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, config.diffusion_features, kernel_size=1)
        self.linear_1 = nn.Linear(config.diffusion_features + vision.hidden_size, text.hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(text.hidden_size, text.hidden_size)
        self.position = nn.Parameter(torch.zeros(config.image_seq_length, text.hidden_size))

    def forward(self, features: Tensor, patches: Tensor) -> Tensor:
        """The visual tokens of features (batch, channel, row, col) and CLIP's patches (batch, patch, width)."""
        normed = self.norm(rearrange(features, "batch channel row col -> batch row col channel"))
        mixed = self.act(self.conv(rearrange(normed, "batch row col channel -> batch channel row col")))
        both = torch.cat([rearrange(mixed, "batch width row col -> batch (row col) width"), patches], dim=-1)
        return self.linear_2(self.act(self.linear_1(both))) + self.position
