"""Scores and controls of the maps in a view, where the true masks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probe.analysis import controls
from probe.analysis.metrics import METRICS, REASONS, degenerate_reason
from probe.analysis.targets import Masks, Targets, read_masks
from probe.attention import AttentionRecord
from probe.layout import PatchGrid
from probe.text import phrase_span
from probe.widgets.sheets import Reading, Sheet, make_sheet

__all__ = ["COLUMNS", "SHOWN_METRICS", "MaskedPhrase", "PhraseScores"]

#: As ``score_heads`` has them by default.
SHOWN_METRICS = ("pointing", "auroc", "lift")
#: What stands beside a score, from "this map" on; "shuffled" needs other images and is not here.
COLUMNS = ("this map", "chance", "centre_prior", "object_size_prior", "other_phrase", "oracle_patch")


@dataclass(frozen=True, eq=False)
class MaskedPhrase:
    """A phrase at characters [start, end) of the text, the tokens that spell it, and its (height, width) mask."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PhraseScores:
    """The phrases of a record that have masks, and what their maps score."""

    phrases: tuple[MaskedPhrase, ...]
    targets: Targets

    @classmethod
    def of(cls, record: AttentionRecord, masks: Masks) -> PhraseScores:
        """The scores of a record whose image has these masks.

        Raises
        ------
        InputError
            If a phrase is not in the record, or a mask is not of the image's size or not of 0 and 1.
        """
        tokens, read = read_masks(record, masks)
        keys = masks.keys() if hasattr(masks, "keys") else [key for key, _ in masks]
        spans = [_span(record.text, key) for key in keys]
        phrases = [
            MaskedPhrase(record.text[slice(*span)], *span, each, mask)
            for span, each, mask in zip(spans, tokens, read, strict=True)
        ]
        return cls(tuple(phrases), Targets(read))

    def sheets(self, record: AttentionRecord, *, timestep: int | None, reading: Reading) -> list[Sheet]:
        """The maps of every phrase; ``record`` is of one view."""
        return [make_sheet(record, one.tokens, timestep=timestep, reading=reading) for one in self.phrases]

    def of_maps(self, maps: Any, grid: PatchGrid) -> NDArray[np.float64]:
        """(metric, column, phrase) scores of ``SHOWN_METRICS`` and their controls, NaN where there is no answer.

        Parameters
        ----------
        maps : (phrase, row, col), of one place: a head, a layer's mean, or the mean over all.
        """
        target, given = self.targets.on(grid), torch.as_tensor(maps)
        centre, largest = controls.centre_prior(grid), controls.object_size_prior(target)
        rows = []
        for metric in (METRICS[name] for name in SHOWN_METRICS):
            nothing = torch.full((len(self.phrases),), torch.nan, dtype=torch.float64)
            each = [
                metric(given, target),
                controls.chance(metric, target),
                metric(centre, target),
                metric(largest, target),
                controls.other_phrase(metric, given, target),
                controls.oracle_patch(metric, target),
            ]
            rows.append(torch.stack([one.expand_as(nothing) for one in each]))
        return torch.stack(rows).numpy()

    def of_heads(self, sheets: Sequence[Sheet], layer: int, grid: PatchGrid) -> NDArray[np.float64]:
        """(metric, head, phrase) scores of one layer's heads, without controls."""
        maps = torch.as_tensor(np.stack([one.heads[layer] for one in sheets], axis=1))
        target = self.targets.on(grid)
        return torch.stack([METRICS[name](maps, target) for name in SHOWN_METRICS]).numpy()

    def table(self, maps: Any, grid: PatchGrid, phrase: int) -> list[dict[str, Any]]:
        """A row for each metric, in plain types: its name, a number or None for each of ``COLUMNS``, and why this map has none."""
        target = self.targets.on(grid)
        numbers = self.of_maps(maps, grid)[:, :, phrase]
        rows = []
        for name, row in zip(SHOWN_METRICS, numbers, strict=True):
            why = str(degenerate_reason(name, torch.as_tensor(maps), target)[phrase])
            rows.append({"metric": name, "values": list(map(_plain, row)), "reason": REASONS.get(why, "")})
        return rows


def _span(text: str, key: Any) -> tuple[int, int]:
    """Characters of a phrase that ``read_masks`` found."""
    if isinstance(key, str):
        return phrase_span(text, key)
    first, second = key
    return phrase_span(text, first, occurrence=int(second)) if isinstance(first, str) else (int(first), int(second))


def _plain(value: float) -> float | None:
    return float(value) if isfinite(value) else None
