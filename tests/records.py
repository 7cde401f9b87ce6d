"""Small records made by hand, for the tests of everything that reads records."""

from __future__ import annotations

import numpy as np
import torch

from probe.attention import AttentionRecord, LayerAttention
from probe.layout import PatchGrid
from probe.provenance import Certificate, Source

__all__ = ["make_grid", "make_record"]

CERTIFICATE = Certificate(verify="all", rows=1, max_error=1e-7, tolerance=1e-5, layers=1, tokens=1, patches=1)
SOURCE = Source("test", "by hand", "none", "none", "none", "float32", "squash", "Describe the image.")


def make_grid(rows: int, cols: int, *, image_size: tuple[int, int]) -> PatchGrid:
    """A grid that covers the whole image evenly."""
    row_edges = tuple(np.linspace(0, image_size[0], rows + 1))
    col_edges = tuple(np.linspace(0, image_size[1], cols + 1))
    return PatchGrid(image_size, row_edges, col_edges)


def make_record(
    *,
    layers: int = 2,
    heads: int = 3,
    text: str = "a red circle and a blue square",
    grid: PatchGrid | None = None,
    seed: int = 0,
) -> AttentionRecord:
    """A random record whose rows sum to 1 with ``rest``; one token a word (with its blank) and an end token."""
    grid = grid or make_grid(4, 4, image_size=(32, 32))
    words = text.split(" ")
    tokens = (words[0], *(" " + word for word in words[1:]), "</s>")
    ends = np.cumsum([len(token) for token in tokens[:-1]])
    spans = tuple((int(end) - len(token.strip()), int(end)) for token, end in zip(tokens, ends, strict=False))
    spans = (*spans, (len(text), len(text)))
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for layer in range(layers):
        rows, cols = grid.shape
        weights = torch.rand((1, heads, len(tokens), rows * cols + 3), generator=generator)
        weights = weights / weights.sum(-1, keepdim=True)
        values = weights[..., :-3].reshape(1, heads, len(tokens), rows, cols)
        parts.append(
            LayerAttention(f"layers.{layer}.self_attn", "image 0", grid, values, values.mean(2), weights[..., -3:])
        )
    return AttentionRecord(
        layers=tuple(parts),
        quantity="attention",
        query_kind="generated token",
        tokens=tokens,
        token_ids=tuple(range(len(tokens))),
        spans=spans,
        text=text,
        image_size=grid.image_size,
        softmax_over="sequence",
        query_row="predicting",
        certificate=CERTIFICATE,
        source=SOURCE,
    )
