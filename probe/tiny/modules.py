"""Tiny random modules of no known family, as people write them: what any PyTorch model's recorder is checked on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MultiheadViT", "SeparateHeads", "spread_weights"]


def spread_weights(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """The module in evaluation mode with random weights so large that its heads differ."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in module.parameters():
            # Sharp, but not so that one key takes all.
            one.copy_(torch.randn(one.shape, generator=random) * (1.5 / one.shape[-1] ** 0.5 if one.ndim == 2 else 0.3))
    return module.eval()


class _Block(nn.Module):
    """A block in the style of open_clip or torchvision, around ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, *, batch_first: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.norm(states)
        states = states + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return states + self.mlp(states)


class MultiheadViT(nn.Module):
    """A vision transformer written with ``nn.MultiheadAttention``: a class token, 16 patches of 8 pixels, 3 blocks of 4 heads.

    Parameters
    ----------
    batch_first : True as in torchvision, False as in open_clip.
    """

    def __init__(self, *, batch_first: bool = True, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.ModuleList(_Block(width, heads, batch_first=batch_first) for _ in range(3))

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        states = self.patches(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.class_token.expand(len(states), -1, -1), states], dim=1) + self.positions
        states = states if self.batch_first else states.transpose(0, 1)
        for block in self.blocks:
            states = block(states, mask)
        return states if self.batch_first else states.transpose(0, 1)


class _Head(nn.Module):
    """One head, as lectures on transformers write it."""

    def __init__(self, width: int, channels: int, *, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.query, self.key, self.value = (nn.Linear(width, channels, bias=False) for _ in range(3))

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = self.query(states), self.key(states), self.value(states)
        if self.by_hand:
            return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1) @ value
        return functional.scaled_dot_product_attention(query, key, value)


class _Heads(nn.Module):
    def __init__(self, width: int, heads: int, *, by_hand: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(width, width // heads, by_hand=by_hand) for _ in range(heads))
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(torch.cat([head(states) for head in self.heads], dim=-1))


class SeparateHeads(nn.Module):
    """Two layers of 12 heads that are modules of their own, over 3 words and then 6 patches, whose states it is given.

    Parameters
    ----------
    by_hand : True computes the softmax in plain sight, with no kernel that could be seen.
    """

    def __init__(self, *, width: int = 48, heads: int = 12, by_hand: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Heads(width, heads, by_hand=by_hand) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = states + layer(states)
        return states
