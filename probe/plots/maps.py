"""What an overlay draws: a phrase's map on patches, the muted image below it, and the mask."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from probe.analysis.grids import mean_of_layers
from probe.attention import AttentionRecord, is_whole
from probe.errors import InputError
from probe.images import recorded_image
from probe.layout import PatchGrid
from probe.plots.styles import one_line
from probe.text import shorten

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_TEXT", "PhraseMap", "Picture", "Reading", "mask_pixels", "muted_pixels", "phrase_map"]

Reading = Literal["minus mean", "attention"]
Picture = str | os.PathLike[str] | Image.Image | np.ndarray

#: What a picture of an image encoder must not be mistaken for.
NO_TEXT = "an image encoder has no attention from text to patches"

#: Longest side in pixels that is drawn: at 300 dots an inch no column shows more, and files stay small.
LONGEST = 1500
#: The image below the map: this share of its own colour is kept, in tones from LIFT to white.
SATURATION, LIFT = 0.45, 0.45


@dataclass(frozen=True, eq=False)
class PhraseMap:
    """One phrase's map on patches, and how it is called."""

    values: NDArray[np.float64]  # (row, col)
    grid: PatchGrid
    phrase: str
    label: str
    detail: str
    signed: bool = False  # parts of a sum, for which below zero means as much as above

    @property
    def top(self) -> float:
        """Largest value of a patch that shows some of the image."""
        shown = self.values[(self.grid.weight > 0) & np.isfinite(self.values)]
        return float(shown.max()) if shown.size else 0.0

    @property
    def bottom(self) -> float:
        """Smallest value of a patch that shows some of the image."""
        return -replace(self, values=-self.values).top

    def pixels(self, size: tuple[int, int], *, smooth: bool) -> NDArray[np.float32]:
        """(height, width), NaN where no patch covers the pixel."""
        if smooth:
            return self.grid.upsample(torch.from_numpy(self.values), size=size)
        drawn = self.values
        inside = []
        axes = zip((self.grid.row_edges, self.grid.col_edges), size, self.grid.image_size, strict=True)
        for axis, (edges, count, length) in enumerate(axes):
            centres = (np.arange(count) + 0.5) * length / count
            index = np.searchsorted(edges, centres, side="right") - 1
            inside.append((index >= 0) & (index < len(edges) - 1))
            drawn = np.take(drawn, np.clip(index, 0, len(edges) - 2), axis=axis)
        return np.where(np.logical_and.outer(*inside), drawn, np.nan).astype(np.float32)


def phrase_map(record: AttentionRecord, *, reading: Reading, view: str | None) -> PhraseMap:
    if reading not in ("minus mean", "attention"):
        raise InputError(f"reading must be 'minus mean' or 'attention', found {reading!r}.")
    if reading == "attention" and "minus mean" in record.history:
        raise InputError(
            "reading='attention' was asked for, but this record has had its mean subtracted; draw it with "
            "reading='minus mean', or select the phrase in the record as it was made."
        )
    views = list(dict.fromkeys(one.view for one in record.layers))
    if view is None and len(views) > 1:
        raise InputError(f"This record shows the image in {len(views)} views, {views}; choose one with view=...")
    if view is not None:
        record = record.select(view=view)
    subtracted = record.minus_mean() if reading == "minus mean" else record
    if reading == "minus mean" and is_whole(record):
        raise InputError(
            f"{_phrase_of(record)!r} is the whole text, whose map minus its own mean is zero everywhere (the rest is rounding); "
            "name a part of it, or draw it with reading='attention'."
        )
    [single] = mean_of_layers(subtracted.mean("timestep", "token")).mean("head").layers
    heads = sorted({len(one.heads) for one in record.layers})
    averaged = any(-1 in one.heads for one in record.layers) or len(heads) > 1
    layers = f"{len(record.layers)} layer{'s' * (len(record.layers) > 1)}"
    detail = "" if averaged else f"mean of {layers} x {heads[0]} head{'s' * (heads[0] > 1)}"
    steps = {one.timesteps for one in record.layers}
    if len(steps) == 1 and (numbers := next(iter(steps))) != (-1,):
        when = f"timestep {numbers[0]}" if len(numbers) == 1 else f"mean of {len(numbers)} timesteps"
        detail = ", ".join(filter(None, (detail, when)))
    values = single.values[0, 0, 0].detach().cpu().double().numpy()
    label, signed = _label(record, reading), record.quantity == "contribution"
    return PhraseMap(values, single.grid, _phrase_of(record), label, detail, signed)


def _label(record: AttentionRecord, reading: Reading) -> str:
    """What the values are, for the colour bar."""
    minus = " minus mean over tokens" if reading == "minus mean" else ""
    if record.quantity == "contribution":
        return f"contribution to the similarity with the text{minus.replace('tokens', 'texts')}; {NO_TEXT}"
    if record.query_kind in ("class token", "pooling query"):
        return f"{record.quantity} of the {record.query_kind}, the same whatever the text; {NO_TEXT}"
    if record.query_kind == "query token":
        return f"{record.quantity} of learned queries{minus.replace('tokens', 'queries')}, which stand for no word"
    # Squares of the quantity, on a scale of their own.
    spread = [one for one in record.history if one.startswith("variance over")]
    return (
        f"{spread[0].replace('variance', f'variance of {record.quantity}', 1)}" if spread else record.quantity
    ) + minus


def _phrase_of(record: AttentionRecord) -> str:
    """The words that the record's tokens spell, with "…" where the text between them was left out."""
    runs: list[list[int]] = []
    for low, high in sorted(span for span in record.spans if span[1] > span[0]):
        if runs and not record.text[runs[-1][1] : low].strip():
            runs[-1][1] = max(high, runs[-1][1])
        else:
            runs.append([low, high])
    words = [record.text[low:high] for low, high in runs] or list(record.tokens)
    # A token may carry the comma after its word.
    return shorten(one_line(" … ".join(words)), 80).strip(" ,;:.")


def muted_pixels(image: Picture, size: tuple[int, int]) -> NDArray[np.float64]:
    """(height, width, 3) in [0, 1]: the image with muted colours in light tones, no longer than LONGEST."""
    picture = recorded_image(image, size)
    picture.thumbnail((LONGEST, LONGEST))
    colour = np.asarray(picture, dtype=np.float64) / 255
    grey = colour @ np.array([0.2126, 0.7152, 0.0722])  # luma of Rec. 709
    muted = SATURATION * colour + (1 - SATURATION) * grey[..., None]
    return LIFT + (1 - LIFT) * muted


def mask_pixels(mask: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """(height, width) in [0, 1], reduced like the image."""
    array = np.asarray(mask)
    if array.shape != size:
        raise InputError(
            f"The mask is {' x '.join(map(str, array.shape))} but the image is {size[0]} x {size[1]} (height x width); a "
            "mask must have the original image's size."
        )
    picture = Image.fromarray(np.asarray(array, dtype=np.float32))
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float64)
