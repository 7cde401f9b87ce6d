"""Which heads look at one compact part of the image, found without any mask: the localisation heads of a language model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probe.analysis.concentration import spatial_entropy
from probe.analysis.stats import PoissonBootstrap
from probe.analysis.structure import Structure
from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.layout import resolve_indices

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["find_localisation_heads", "last_prompt_row", "value_elbow"]

Rows = Literal["last prompt", "all"] | Sequence[int]


def value_elbow(sums: ArrayLike) -> float:
    """The value at the elbow of these numbers: sorted, the one farthest from the chord between the smallest and the largest.

    Of equally far ones the smallest; where all are alike, that number. Heads are kept by comparing their *values* with this one: a
    head's number says nothing of its place in the order.
    """
    ordered = np.sort(np.asarray(sums, dtype=np.float64).ravel())
    if not len(ordered) or not np.isfinite(ordered).all():
        raise InputError("An elbow needs at least one number, and all of them finite.")
    # The distance to a straight line grows with the vertical one, whatever the scales of the axes.
    chord = np.linspace(ordered[0], ordered[-1], len(ordered))
    return float(ordered[np.abs(ordered - chord).argmax()])


def last_prompt_row(record: AttentionRecord) -> int:
    """Position of the record's token that was read at the last row of the prompt.

    It is the row that predicts the first token of an answer, or the last row of a recorded prompt.

    Raises
    ------
    InputError
        If the record holds no such row.
    """
    answer = (record.query_kind, record.query_row) == ("generated token", "predicting")
    if answer and record.spans[0][0] == 0:
        return 0
    if (record.query_kind, record.query_row) == ("prompt token", "own") and record.spans[-1][1] == len(record.text):
        return len(record.tokens) - 1
    raise InputError(
        f"the last row of the prompt is not in the record, whose {len(record.tokens)} rows are of {record.query_kind}s "
        f"({record.query_row}); record the whole answer with query_row='predicting', or queries='prompt', or give rows=."
    )


def find_localisation_heads(
    records: Iterable[AttentionRecord],
    *,
    rows: Rows = "last prompt",
    per_image: int = 10,
    count: int = 3,
    epsilon: float = 1e-3,
    relative: bool = False,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Every head, those first that are most often among an image's localisation heads: a table, made in one pass without masks.

    >>> found = find_localisation_heads(records, relative=True)
    >>> found[found["chosen"]][["layer", "head"]]

    In each image heads are kept whose attention to the image is at least that at the elbow of all heads' (``value_elbow``). They
    are ranked by spatial entropy, smallest first; of equal ones the one with more attention to the image, then the earlier. The
    first ``per_image`` are the image's localisation heads; the ``count`` that are so in most images are chosen.

    Parameters
    ----------
    records : one for each image, all from the same layers and heads. May be a generator. Where a model names things unasked, its
        last prompt row names nothing: give ``record[phrase]`` of one phrase an image, with ``rows="all"``.
    rows : which rows are read; their mean, where they are several. The "last prompt" row, which ends a referring expression in the
        paper; "all" of the record; or numbers of the record's tokens.
    per_image, count : how many heads are taken in each image, and at the end.
    epsilon, relative : of ``probe.analysis.concentration.spatial_entropy``. On grids of other sizes than the paper's 24 x 24 give
        ``relative=True``.
    replicates, confidence, seed : of the Poisson bootstrap over images, for the interval of ``frequency``.

    Returns
    -------
    Columns: layer (position), name, head (the model's number), frequency (share of images in which it was taken) with low and high,
    kept (share of images in which it passed the elbow), attention (mean sum over the image's patches), entropy (median over images,
    infinite where it mostly has no region), chosen, images.

    Raises
    ------
    InputError
        If there is no image, records cannot stand in one table, hold no attention that competes with text, or lack the rows.

    References
    ----------
    Kang, Kim, Kim, Hwang, Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding, CVPR 2025.
    """
    if per_image < 1 or count < 1:
        raise InputError(f"per_image and count must be 1 or more, found {per_image} and {count}.")
    structure: Structure | None = None
    sums, entropies, kept, taken = [], [], [], []
    for index, record in enumerate(records):
        try:
            found = Structure.of(record)
            structure = structure or found
            found.require_like(structure)
            total, entropy = _criteria(record, rows, epsilon=epsilon, relative=relative)
            passed = total >= value_elbow(total)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
        sums.append(total)
        entropies.append(entropy)
        kept.append(passed)
        taken.append(_taken(total, entropy, passed, per_image))
    if structure is None:
        raise InputError("There is no image to find heads in: records are empty.")
    bootstrap = PoissonBootstrap(taken[0].size, replicates=replicates, seed=seed)
    for index, one in enumerate(taken):
        bootstrap.add(index, one.astype(np.float64), np.ones(one.size))
    intervals = bootstrap.intervals(confidence=confidence)
    columns = {
        "frequency": intervals.value,
        "low": intervals.low,
        "high": intervals.high,
        "kept": np.mean(kept, axis=0),
        "attention": np.mean(sums, axis=0),
        "entropy": np.median(entropies, axis=0),
    }
    return _table(structure, columns, count, len(taken))


def _criteria(record: AttentionRecord, rows: Rows, *, epsilon: float, relative: bool) -> tuple[Any, Any]:
    """(head of any layer,) attention to the image, and spatial entropy."""
    if record.quantity != "attention" or record.softmax_over != "sequence":
        raise InputError(
            f"localisation heads are told by how much attention goes to the image instead of the text, but the record holds "
            f"{record.quantity} with a softmax over {record.softmax_over}; give attention of a language model whose image is part "
            "of its sequence."
        )
    places = _places(record, rows)
    sums, entropies = [], []
    for layer in record.layers:
        maps = layer.values[:, :, places].mean((0, 2))  # (head, row, col)
        weight = torch.as_tensor(layer.grid.weight, device=maps.device)
        sums.append((maps.double() * (weight > 0)).sum((-2, -1)))
        entropies.append(spatial_entropy(maps, weight, epsilon=epsilon, relative=relative))
    return torch.cat(sums).cpu().numpy(), torch.cat(entropies).numpy()


def _places(record: AttentionRecord, rows: Rows) -> list[int]:
    if rows == "last prompt":
        return [last_prompt_row(record)]
    if rows == "all":
        return list(range(len(record.tokens)))
    if isinstance(rows, str) or not len(rows):
        raise InputError(f"rows must be 'last prompt', 'all' or numbers of the record's tokens, found {rows!r}.")
    return list(resolve_indices(rows, len(record.tokens), what="token"))


def _taken(
    total: NDArray[np.float64], entropy: NDArray[np.float64], passed: NDArray[np.bool_], per_image: int
) -> NDArray[np.bool_]:
    """(head of any layer,) True for the first so many of those that passed and have a region at all."""
    able = passed & np.isfinite(entropy)
    order = np.lexsort((-total, entropy))  # the last key counts first, and of equal ones the earlier stays first
    best = [one for one in order if able[one]][:per_image]
    taken = np.zeros(total.size, dtype=np.bool_)
    taken[best] = True
    return taken


def _table(structure: Structure, columns: dict[str, Any], count: int, images: int) -> pd.DataFrame:
    import pandas as pd

    named = [
        {"layer": layer, "name": name, "head": head}
        for layer, (name, heads) in enumerate(zip(structure.layers, structure.heads, strict=True))
        for head in heads
    ]
    frame = pd.concat([pd.DataFrame(named), pd.DataFrame(columns)], axis=1)
    frame = frame.sort_values(["frequency", "entropy"], ascending=[False, True], kind="stable", ignore_index=True)
    frame["chosen"] = (frame.index < count) & (frame["frequency"] > 0)
    return frame.assign(images=images)
