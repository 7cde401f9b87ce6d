"""What one of several systems gives for an image, what is read of it in words, and what may fairly be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from probe.analysis.grids import common_grid, onto_grid
from probe.analysis.metrics import find_metric
from probe.analysis.scorer import Reading, is_single_row, mean_maps
from probe.analysis.targets import ROUNDING, Masks, Target
from probe.attention import AttentionRecord
from probe.layout import PatchGrid

__all__ = [
    "SystemRecord",
    "Traits",
    "is_refused",
    "reading_map",
    "reading_name",
    "seen_by_all",
    "shared_grid",
    "unfairness",
]

_ASKED = {
    "generated token": "answer tokens",
    "prompt token": "prompt tokens",
    "text token": "text tokens",
    "patch reading text": "patches that read text",
    "text reading patches": "text that reads patches",
}


@dataclass(frozen=True, eq=False)
class SystemRecord:
    """What one system gave for one image.

    Attributes
    ----------
    record : of the caption.
    masks : its phrases with their masks, as for ``score_heads``; all systems have the same, in the same order, by their own keys.
    reworded, reworded_masks : the same of the same image and phrases in other words, for the paraphrase floor; or None.
    """

    record: AttentionRecord
    masks: Masks
    reworded: AttentionRecord | None = None
    reworded_masks: Masks | None = None


@dataclass(frozen=True)
class Traits:
    """What decides whether the values of two systems can be compared: what they are, over what they sum to 1, what is read."""

    quantity: str
    softmax_over: str | None
    reading: Reading

    @classmethod
    def of(cls, record: AttentionRecord, reading: Reading) -> Traits:
        """The record's traits; of one row for all phrases there is nothing to subtract, so it is read as recorded."""
        chosen: Reading = "attention" if is_single_row(record) else reading
        over: str | None = record.softmax_over
        if record.query_kind == "patch reading text":
            # Each patch spreads 1 of its own: not what a token that reads patches spreads, though both spread it over the sequence.
            over = f"{over}, from each patch"
        return cls(record.quantity, over, chosen)

    def __str__(self) -> str:
        over = "no softmax" if self.softmax_over is None else f"softmax over {self.softmax_over}"
        return f"{self.quantity} ({over}), read {'as recorded' if self.reading == 'attention' else self.reading}"


def reading_name(record: AttentionRecord, reading: Reading) -> str:
    """What is read of such records, in words: which map, what is subtracted, and what the mean is taken over."""
    steps, minus = record.layers[0].timesteps, Traits.of(record, reading).reading == "minus mean"
    if record.quantity == "contribution":
        what, over = "contributions of patches to the similarity with each phrase", "texts"
    elif is_single_row(record):
        what, over = f"attention of the {record.query_kind}, the same for every phrase", ""
    elif record.softmax_over == "tokens":
        what, over = "cross-attention", "words"
    else:
        what = _ASKED.get(record.query_kind, f"{record.query_kind}s")
        over = "the answer" if record.query_kind == "generated token" else "tokens"
    if steps != (-1,):
        what += " at " + ", ".join(f"t={step}" for step in steps)
    parts = [what, *([f"minus mean over {over}"] if minus else []), "mean over layers and heads"]
    return ", ".join(parts)


def unfairness(metric: str, one: Traits, other: Traits) -> str:
    """Why the scores of two systems under a metric are not simply comparable, or "" where they are.

    Scores that stay under any scale and offset of a map can always be compared; the others where both systems' values are of one
    kind. Where both are read minus their mean, an offset is taken away before scoring: that is fair enough to show, with the
    reason beside it, see ``is_refused``.
    """
    found = find_metric(metric)
    if one == other or (found.scale_invariant and found.offset_invariant):
        return ""
    if not is_refused(metric, one, other):
        return f"{metric} counts values above 0, and 0 is here each system's own mean, over other words: {one}; {other}"
    return (
        f"{metric} changes with the {'offset' if found.scale_invariant else 'scale'} of a map, and these values are not of one "
        f"kind: {one}; {other}"
    )


def is_refused(metric: str, one: Traits, other: Traits) -> bool:
    """True if the scores of two systems under a metric must not be compared at all."""
    found = find_metric(metric)
    if one == other or (found.scale_invariant and found.offset_invariant):
        return False
    return not (found.scale_invariant and one.reading == other.reading == "minus mean")


def shared_grid(grids: Sequence[PatchGrid]) -> PatchGrid:
    """The grid that all systems' maps of one image are brought onto: an even division of the image, as coarse as the coarsest.

    As many rows and cols as patches of the tallest and widest kind fit the image, rounded: a finer grid would show some systems
    more finely than they see.
    """
    height, width = grids[0].image_size
    tallest = max((one.row_edges[-1] - one.row_edges[0]) / one.shape[0] for one in grids)
    widest = max((one.col_edges[-1] - one.col_edges[0]) / one.shape[1] for one in grids)
    rows, cols = max(1, round(height / tallest)), max(1, round(width / widest))
    edges = [tuple(map(float, np.linspace(0, size, n + 1))) for size, n in ((height, rows), (width, cols))]
    return PatchGrid((height, width), edges[0], edges[1])


def seen_by_all(grids: Sequence[PatchGrid], target: Target) -> Target:
    """The target without the pixels that one of these grids leaves out where it was cropped: all are scored on the same ones."""
    seen = np.logical_and.reduce([one.seen for one in grids])
    if seen.all():
        return target
    cut = Target.from_masks(target.grid, np.concatenate([seen[None], target.masks & seen]))
    # What is seen takes the place of what is image, so it is the mask of all that counts.
    weight, share = cut.share[0], torch.minimum(cut.share[1:], cut.share[0])
    share = torch.where(weight - share < ROUNDING, weight, share)
    return replace(target, share=share, weight=weight, hit=cut.hit[0] & cut.hit[1:])


def reading_map(
    record: AttentionRecord, tokens: Sequence[tuple[int, ...]], wanted: PatchGrid, *, reading: Reading
) -> Tensor:
    """(phrase, row, col) float64 maps of a system on a shared grid, 0 where it saw nothing; on the host."""
    maps = mean_maps(record, tokens, reading).double().cpu()
    # Every metric is invariant to scale, so patches that share a sum need not be rescaled to the new size.
    moved = onto_grid(maps, common_grid(record.layers), wanted, mass=False)
    # A map's own NaN must stay and be refused by the metrics; what was cropped away is no fault of the map.
    return torch.where(_seen(common_grid(record.layers), wanted), moved, 0.0)


def _seen(grid: PatchGrid, wanted: PatchGrid) -> Tensor:
    """(row, col) bool: some patch of the one grid covers some of this patch of the other."""
    rows, cols = (np.isfinite(one).all(1) for one in grid.resampling_onto(wanted))
    return torch.from_numpy(np.logical_and.outer(rows, cols))
