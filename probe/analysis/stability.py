"""How stable a ranking of heads is: over halves of the images, and between several tables of scores, such as of other seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.analysis.heads import HeadScores
from probe.analysis.metrics import find_metric
from probe.analysis.scorer import ImageScorer, Reading, ScoreSettings
from probe.analysis.structure import Structure
from probe.analysis.targets import Masks, in_step
from probe.attention import AttentionRecord
from probe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURES", "compare_rankings", "likeness", "ranking_stability"]

#: Name -> how alike two rankings are.
MEASURES = {
    "spearman": "correlation of ranks",
    "kendall": "tau-b: pairs of heads in the same order minus those in the other, over all, ties apart",
    "top overlap": "share of the best heads of the one that are among the best of the other",
}

Scores = NDArray[np.float64]


def ranking_stability(
    records: Iterable[AttentionRecord],
    masks: Iterable[Masks],
    *,
    metric: str = "pointing",
    reading: Reading = "minus mean",
    top: int = 10,
    splits: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike the rankings of heads are on two halves of the images, over many random halvings: one row for each of ``MEASURES``.

    >>> ranking_stability(records, masks, metric="auroc")

    A ranking that is hardly the same on the other half of the images is no property of the model. Halves share no image; each has
    half of the images that the whole ranking has, so that one is at least as stable.

    Parameters
    ----------
    records, masks, reading : as for ``score_heads``. One (image, head) table of scores is kept in memory.
    metric : one name of ``probe.analysis.metrics.METRICS``.
    top : how many of the best heads are compared.
    splits : random halvings.
    confidence : share of the halvings between ``low`` and ``high``.
    seed : of the halvings.

    Returns
    -------
    Columns: metric, measure, value (mean over halvings), low, high (within which that share of the halvings lies; no interval over
    other images), chance (of rankings that have nothing in common), heads, images, splits. Heads without a score in a half are left
    out of that halving.

    Raises
    ------
    InputError
        If there are fewer than four images or two heads, or as ``score_heads`` does; the message names the image, counted from 0.
    """
    import pandas as pd

    if top < 1 or splits < 1 or not 0 < confidence < 1:
        raise InputError(
            f"top and splits must be 1 or more and confidence between 0 and 1, found {top}, {splits} and {confidence}."
        )
    name, better = find_metric(metric).name, find_metric(metric).higher_is_better
    sums, counts = _by_image(records, masks, ScoreSettings((name,), reading))
    images, heads = sums.shape
    if images < 4 or heads < 2:
        raise InputError(
            f"Rankings on two halves need four images and two heads or more, found {images} images, {heads} heads."
        )
    rng, found = np.random.default_rng(seed), []
    for _ in range(splits):
        order = rng.permutation(images)
        halves = [_mean(sums[some], counts[some]) for some in (order[: images // 2], order[images // 2 :])]
        found.append(likeness(halves[0], halves[1], top=top, higher_is_better=better))
    tail = (1 - confidence) / 2
    rows = []
    for measure in MEASURES:
        values = np.array([one[measure] for one in found])
        low, high = np.nanquantile(values, (tail, 1 - tail)) if not np.isnan(values).all() else (np.nan, np.nan)
        value = np.nan if np.isnan(values).all() else np.nanmean(values)
        rows.append({"metric": name, "measure": measure, "value": value, "low": low, "high": high})
    frame = pd.DataFrame(rows)
    frame["chance"] = [_chance(measure, heads, top) for measure in MEASURES]
    return frame.assign(heads=heads, images=images, splits=splits)


def compare_rankings(scores: Mapping[str, HeadScores], *, metric: str | None = None, top: int = 10) -> pd.DataFrame:
    """How alike the rankings of heads are in each two of several tables: of other seeds, other prompts or other data, by name.

    >>> compare_rankings({"seed 0": first, "seed 1": second})

    All must be of the same layers and heads. Heads of separately trained models do not correspond, so do not compare these.

    Parameters
    ----------
    metric : the first of the first table, by default.
    top : how many of the best heads are compared.

    Returns
    -------
    Columns: metric, first, second, then each of ``MEASURES``, chance (of the overlap), heads (scored in both).

    Raises
    ------
    InputError
        If there are fewer than two tables, or they are of other heads.
    """
    import pandas as pd

    if len(scores) < 2 or top < 1:
        raise InputError(
            f"Rankings are compared between two tables or more, found {len(scores)}; and top is 1 or more."
        )
    names = list(scores)
    one = scores[names[0]]
    name = metric or one.metrics[0]
    better = find_metric(name).higher_is_better
    grids = {}
    for key, table in scores.items():
        if (table.layers, table.heads) != (one.layers, one.heads):
            raise InputError(
                f"{key!r} and {names[0]!r} are of other layers or heads, so their heads do not correspond; compare scores of one "
                "model."
            )
        filled = np.concatenate([row[: len(of)] for row, of in zip(table.grid(name)[0], table.heads, strict=True)])
        grids[key] = filled
    rows: list[dict[str, Any]] = []
    for first, second in combinations(names, 2):
        known = ~np.isnan(grids[first]) & ~np.isnan(grids[second])
        rows.append(
            {"metric": name, "first": first, "second": second}
            | likeness(grids[first], grids[second], top=top, higher_is_better=better)
            | {"chance": _chance("top overlap", int(known.sum()), top), "heads": int(known.sum())}
        )
    return pd.DataFrame(rows)


def _by_image(
    records: Iterable[AttentionRecord], masks: Iterable[Masks], settings: ScoreSettings
) -> tuple[Scores, Scores]:
    """(image, head of any layer) sums of the phrases' scores, and how many were summed."""
    scorer, first = ImageScorer(settings), None
    sums, counts = [], []
    places: list[int] = []
    for index, record, of_image in in_step(records, masks):
        try:
            structure = Structure.of(record)
            if first is None:
                cells = structure.cells(settings.metrics)
                places = [i for i, one in enumerate(cells) if one.kind == "head" and one.metric in settings.metrics]
            first = first or structure
            structure.require_like(first)
            found, count, _ = scorer.score(record, of_image)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
        sums.append(found[places])
        counts.append(count[places])
    if not sums:
        raise InputError("There is no image to score: records and masks are empty.")
    return np.stack(sums), np.stack(counts)


def _mean(sums: Scores, counts: Scores) -> Scores:
    """(head,) mean over phrases, NaN where there is none."""
    total = counts.sum(0)
    return np.where(total > 0, sums.sum(0) / np.maximum(total, 1), np.nan)


def likeness(first: Scores, second: Scores, *, top: int, higher_is_better: bool = True) -> dict[str, float]:
    """Each of ``MEASURES`` of two (head,) scores; NaN where one of them ranks nothing."""
    from scipy.stats import kendalltau, spearmanr

    known = ~np.isnan(first) & ~np.isnan(second)
    one, two = first[known], second[known]
    count = min(top, len(one))
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return dict.fromkeys(MEASURES, np.nan)
    sign = -1 if higher_is_better else 1
    # Of equal scores the earlier head comes first, as in HeadScores.top.
    best = [set(np.argsort(sign * some, kind="stable")[:count].tolist()) for some in (one, two)]
    return {
        "spearman": float(spearmanr(one, two).statistic),
        "kendall": float(kendalltau(one, two).statistic),
        "top overlap": len(best[0] & best[1]) / count,
    }


def _chance(measure: str, heads: int, top: int) -> float:
    return min(top, heads) / heads if measure == "top overlap" and heads else 0.0
