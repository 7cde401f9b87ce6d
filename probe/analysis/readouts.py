"""The paper's ablation of how maps are read: with Eq. 3 or without, all heads or the best one, and how tokens become a phrase."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from probe.analysis.heads import HeadTally
from probe.analysis.metrics import find_metric
from probe.analysis.scorer import Combine, Reading, ScoreSettings
from probe.analysis.structure import Cell
from probe.analysis.targets import Masks, in_step
from probe.attention import AttentionRecord
from probe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REFERENCE", "score_readouts"]

#: What the others are compared with: the paper's own.
REFERENCE = {"combine": "mean", "reading": "minus mean", "heads": "all"}


def score_readouts(
    records: Iterable[AttentionRecord],
    masks: Iterable[Masks],
    *,
    metric: str = "pointing",
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Twelve ways to read the same maps, each against the paper's own: one pass, in memory for one image.

    >>> score_readouts(records, masks)

    Parameters
    ----------
    records, masks : as for ``score_heads``.
    metric : one name of ``probe.analysis.metrics.METRICS``.
    replicates, confidence, seed : of the Poisson bootstrap over images.

    Returns
    -------
    One row for each way. Columns: metric; combine, how the maps of a phrase's tokens become one ("mean", "first", "max"); reading,
    "minus mean" (Eq. 3) or "attention"; heads, the mean over "all" or the "best" one; layer and head of the best; value, low and
    high; difference to ``REFERENCE`` with its paired interval; images, phrases. The best head is chosen on the images of even
    index, and every row, also that of all heads, is scored on those of odd index, so that all are of the same phrases.

    Raises
    ------
    InputError
        If there are fewer than two images, or as ``score_heads`` does.

    References
    ----------
    Eq. 3: Cao, Gui, Wang, Emergent Visual Grounding in Large Multimodal Models Without Grounding Supervision, arXiv 2410.08209.
    """
    import pandas as pd

    name = find_metric(metric).name
    tallies = {
        (combine, reading): HeadTally(ScoreSettings((name,), reading, combine, replicates, confidence, seed))
        for combine, reading in product(get_args(Combine), get_args(Reading))
    }
    index = -1
    for index, record, of_image in in_step(records, masks):
        try:
            for tally in tallies.values():
                tally.add(index, record, of_image)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
    if index < 1:
        raise InputError(
            "Choosing heads on one half of the images and scoring them on the other needs two images or more."
        )
    rows, drawn = [], []
    for (combine, reading), tally in tallies.items():
        for heads, cell in _cells(tally, name, reading).items():
            interval, values = tally.replicates(cell)
            place = {key: getattr(cell, key) for key in ("layer", "head")}
            rows.append(
                {"metric": name, "combine": combine, "reading": reading, "heads": heads} | place | vars(interval)
            )
            drawn.append(values)
    return pd.DataFrame(_against_reference(rows, drawn, confidence)).astype({"layer": "Int64", "head": "Int64"})


def _cells(tally: HeadTally, metric: str, reading: Reading) -> dict[str, Cell]:
    """The cell of all heads, and that of the best one of the even images, where there is any."""
    found = {"all": Cell(metric, "reading", "minus_mean" if reading == "minus mean" else "mean_map")}
    scores = tally.result()
    best = scores.top(1, metric=metric, split="held-out")
    if len(best):
        layer, head = int(best["layer"].iloc[0]), int(best["head"].iloc[0])
        found["best"] = Cell(metric, "head", scores.layers[layer], layer, head)
    return found


def _against_reference(rows: list[dict[str, Any]], drawn: list[Any], confidence: float) -> list[dict[str, Any]]:
    """The same rows with their difference to the reference and its interval."""
    place = next(i for i, row in enumerate(rows) if all(row[key] == value for key, value in REFERENCE.items()))
    tail = (1 - confidence) / 2
    for row, values in zip(rows, drawn, strict=True):
        low, high = np.nanquantile(values - drawn[place], (tail, 1 - tail))
        row |= {"difference": row["value"] - rows[place]["value"], "difference_low": low, "difference_high": high}
    return rows
