"""Records for views: of a grid that is padded, of ragged layers and timesteps, and with hostile words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from probe.attention import AttentionRecord
from probe.layout import PatchGrid
from tests.records import make_grid, make_record

__all__ = ["HOSTILE", "disc", "hostile_record", "padded_grid", "picture", "ragged_record"]

#: Words that must stay words: they close elements, load pictures, run scripts, turn the direction of text, end comments.
HOSTILE = (
    "</script><script>window.stolen=1</script>",
    "<img src=x onerror=window.stolen=2>",
    "</style><svg/onload=window.stolen=3>",
    "&lt;b&gt;",
    "<!--",
    "${window.stolen=4}",
    "'\"><b>",
    "\u202eright\u202c",
    "שלום",
    "مرحبا",
    "👩‍🔬",
    "e\u0301",
    "𝒳",
    "\u2028",
    "javascript:alert(1)",
)


def padded_grid(size: tuple[int, int] = (40, 64), *, patches: int = 8) -> PatchGrid:
    """A wide image padded to a square: the upper and lower rows of patches show nothing of it, others in part."""
    longest = max(size)
    edges = np.linspace(0, longest, patches + 1)
    row, col = ((longest - length) / 2 for length in size)
    return PatchGrid(size, tuple(edges - row), tuple(edges - col))


def picture(size: tuple[int, int] = (40, 64)) -> np.ndarray:
    """(height, width, 3) uint8, brighter downwards and to the right."""
    row, col = np.mgrid[: size[0], : size[1]]
    return np.stack([row * 4, col * 3, 60 + row + col], axis=2).astype(np.uint8)


def disc(size: tuple[int, int] = (40, 64), *, centre: tuple[int, int] = (15, 20), radius: int = 9) -> np.ndarray:
    """(height, width) bool."""
    row, col = np.mgrid[: size[0], : size[1]]
    return (row - centre[0]) ** 2 + (col - centre[1]) ** 2 <= radius**2


def ragged_record(*, seed: int = 0) -> AttentionRecord:
    """Two layers with other grids and numbers of heads, three timesteps; each patch spreads 1 over the words."""
    size, generator = (40, 64), torch.Generator().manual_seed(seed)
    base = make_record(layers=1, heads=1, grid=make_grid(4, 4, image_size=size))
    layers = []
    for number, (heads, rows, cols) in enumerate(((2, 8, 8), (3, 4, 4))):
        weights = torch.rand((3, heads, len(base.tokens), rows, cols), generator=generator).softmax(2)
        layers.append(
            replace(
                base.layers[0], name=f"blocks.{number}", grid=make_grid(rows, cols, image_size=size), values=weights,
                token_mean=weights.mean(2), rest=torch.zeros((3, heads, len(base.tokens), 3)),
                heads=tuple(range(heads)), timesteps=(900, 500, 100),
            )
        )  # fmt: skip
    return replace(base, layers=tuple(layers), softmax_over="tokens", query_kind="text token", query_row=None)


def hostile_record() -> AttentionRecord:
    """A record whose every word is hostile, and whose model, prompt and layer are too."""
    record = make_record(text=" ".join(HOSTILE), grid=padded_grid())
    source = replace(record.source, model="</title><script>window.stolen=5</script>", prompt=HOSTILE[1])
    layers = tuple(replace(one, name=HOSTILE[0]) for one in record.layers)
    return replace(record, source=source, layers=layers)
