"""Whether the heads that localise are the heads that are used: their maps' scores beside what taking each of them away changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probe.analysis.metrics import find_metric
from probe.analysis.scorer import ImageScorer, Reading, ScoreSettings
from probe.analysis.stability import likeness
from probe.analysis.stats import Pictures, PoissonBootstrap
from probe.analysis.structure import Structure
from probe.analysis.targets import Masks, in_step
from probe.attention import AttentionRecord
from probe.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HeadUse", "compare_use", "head_effects"]

Heads = list[tuple[int, int]]
Sums = NDArray[np.float64]


def head_effects(
    table: pd.DataFrame | Iterable[pd.DataFrame],
    *,
    effect: str = "log_probability",
    how: str = "zero",
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """A table with one row for each head: the mean change over phrases when it is taken away, with its interval over images.

    >>> head_effects(pandas.read_parquet("sweep.parquet"), how="mean")

    Columns: layer, head, effect, how, before (without an ablation), change, low, high, images, phrases. Changes are paired: each
    phrase with and without the head. A negative change of a log-probability says that the head was of use.

    Parameters
    ----------
    table : what ``probe sweep export`` writes; with rows of kind "head" and of the unablated pass, "none". Or parts of it, one
        after another, each with all rows of its examples: one is in memory at a time.
    effect : a column of the table: log_probability, caption_log_probability (then once for each example), exact_match, pointing
        or auroc.
    how : what stood in the heads' place.
    replicates, confidence, seed : of the Poisson bootstrap over images, see ``probe.analysis.stats``.

    Raises
    ------
    InputError
        If the table lacks the effect, has no row of such heads, or no unablated pass.
    """
    import pandas as pd

    pictures, heads, bootstrap = Pictures(), None, None
    for part in [table] if isinstance(table, pd.DataFrame) else table:
        if not len(part) or (part["kind"] == "failed").all():
            continue
        changes = _Changes(part, effect=effect, how=how)
        if heads is None or bootstrap is None:
            heads = changes.heads
            bootstrap = PoissonBootstrap(len(heads) + 1, replicates=replicates, seed=seed)
        if changes.heads != heads:
            raise InputError(
                f"A part of the table has other heads ({len(changes.heads)}) than the first ({len(heads)})."
            )
        for name in changes.examples:
            picture, sums, counts = changes.of(name)
            bootstrap.add(pictures.number(picture), sums, counts, new=pictures.new(picture, counts))
    if heads is None or bootstrap is None:
        raise InputError("The table has no example that was read; nothing can be said of its heads.")
    found = bootstrap.intervals(confidence=confidence)
    rows = []
    for place, (layer, head) in enumerate(heads, start=1):
        cell = found[place]
        row = {"layer": layer, "head": head, "effect": effect, "how": how, "before": found.value[0]}
        row |= {
            "change": cell.value,
            "low": cell.low,
            "high": cell.high,
            "images": cell.images,
            "phrases": cell.phrases,
        }
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class HeadUse:
    """How well each head localises beside how much it is used, and how well the one predicts the other.

    Attributes
    ----------
    heads : one row for each head: layer, head; localises, localises_low, localises_high (score of its map); used, used_low,
        used_high (how much lower the effect is without it); images, phrases.
    agreement : rows "spearman" (correlation of ranks over heads) and "top overlap" (share of the ``top`` best localising heads that
        are among the ``top`` most used): measure, value, low, high, chance, heads, images.
    metric, effect, how, top : as asked for.
    """

    heads: pd.DataFrame
    agreement: pd.DataFrame
    metric: str
    effect: str
    how: str
    top: int

    def order(self, by: str = "localises") -> Heads:
        """(layer, head) from the best to the worst, by "localises" or "used"; of equal ones the earlier head comes first."""
        if by not in ("localises", "used"):
            raise InputError(f"Heads are ordered by 'localises' or 'used', found {by!r}.")
        ordered = self.heads.sort_values(by, ascending=False, kind="stable")
        return list(zip(ordered["layer"].tolist(), ordered["head"].tolist(), strict=True))


def compare_use(
    records: Iterable[AttentionRecord],
    masks: Iterable[Masks],
    examples: Iterable[str],
    table: pd.DataFrame,
    *,
    metric: str = "pointing",
    reading: Reading = "minus mean",
    effect: str = "log_probability",
    how: str = "zero",
    top: int = 10,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> HeadUse:
    """Each head's localisation beside its use on the same images, and the agreement of the two with an interval over images.

    >>> use = compare_use(records, masks, names, table, metric="auroc", how="mean")
    >>> use.agreement, use.order("used")[:5]

    Every replicate draws images once, for both sides, and ranks the heads by both; noise within the images pulls a correlation
    towards 0, so a weak one is a lower bound. Heads whose score is better when lower count with the opposite sign.

    Parameters
    ----------
    records, masks, metric, reading : as for ``score_heads``; every layer is recorded, so that its place is its number.
    examples : for each record, the name of its example in the table.
    table, effect, how : as for ``head_effects``. ``used`` is minus the change.
    top : of the heads on either side, how many the overlap is of.
    replicates, confidence, seed : of the bootstrap.

    Raises
    ------
    InputError
        If an example is not in the table, the record has none of the table's heads, or as ``score_heads`` and ``head_effects`` do.
    """
    name = find_metric(metric).name
    if top < 1:
        raise InputError(f"top must be 1 or more heads, found {top}.")
    changes = _Changes(table, effect=effect, how=how)
    both = _Both(changes, ScoreSettings((name,), reading), replicates=replicates, seed=seed)
    named = iter(examples)
    for index, record, of_image in in_step(records, masks):
        example = next(named, None)
        if example is None:
            raise InputError(f"There are {index} names of examples but more records; give one for each record.")
        both.add(index, example, record, of_image)
    return both.result(metric=name, effect=effect, how=how, top=top, confidence=confidence)


class _Both:
    """Running sums of both sides, with the same images in every replicate."""

    def __init__(self, changes: _Changes, settings: ScoreSettings, *, replicates: int, seed: int) -> None:
        self.changes, self.scorer, self.pictures = changes, ImageScorer(settings), Pictures()
        self.options: dict[str, int] = {"replicates": replicates, "seed": seed}
        self.sign = 1.0 if find_metric(settings.metrics[0]).higher_is_better else -1.0
        self.structure: Structure | None = None

    def add(self, index: int, example: str, record: AttentionRecord, masks: Masks) -> None:
        try:
            found = Structure.of(record)
            if self.structure is None:
                self._begin(found)
            found.require_like(self.structure or found)
            sums, counts, _ = self.scorer.score(record, masks)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
        picture, lost, number = self.changes.of(example)
        # Used is what is lost without the head.
        sums = np.concatenate([self.sign * sums[self.localises], -lost[self.used]])
        counts = np.concatenate([counts[self.localises], number[self.used]])
        place = self.pictures.number(picture)
        self.bootstrap.add(place, sums, counts, new=self.pictures.new(picture, counts))

    def _begin(self, structure: Structure) -> None:
        cells = structure.cells(self.scorer.settings.metrics)
        wanted = self.scorer.settings.metrics
        at = {
            (one.layer, one.head): place
            for place, one in enumerate(cells)
            if one.kind == "head" and one.metric in wanted
        }
        self.heads = [one for one in self.changes.heads if one in at]
        if len(self.heads) < 2:
            raise InputError(
                f"the record has {len(self.heads)} of the {len(self.changes.heads)} heads that were taken away; two or more can "
                "be compared. Record every layer, of the model that was swept."
            )
        self.structure = structure
        self.localises = [at[one] for one in self.heads]
        self.used = [self.changes.heads.index(one) + 1 for one in self.heads]
        self.bootstrap = PoissonBootstrap(2 * len(self.heads), **self.options)

    def result(self, *, metric: str, effect: str, how: str, top: int, confidence: float) -> HeadUse:
        import pandas as pd

        if self.structure is None:
            raise InputError("There is no image to compare: records and masks are empty.")
        found, count = self.bootstrap.intervals(confidence=confidence), len(self.heads)
        heads = pd.DataFrame(self.heads, columns=["layer", "head"])
        for place, side in enumerate(("localises", "used")):
            some = slice(place * count, (place + 1) * count)
            low, high = found.low[some], found.high[some]
            if side == "localises" and self.sign < 0:
                low, high = -high, -low
            value = found.value[some] * (self.sign if side == "localises" else 1)
            heads[side], heads[f"{side}_low"], heads[f"{side}_high"] = value, low, high
        heads["images"], heads["phrases"] = found.images[count:], found.phrases[count:]
        agreement = self._agreement(top=top, confidence=confidence)
        return HeadUse(heads, agreement, metric, effect, how, top)

    def _agreement(self, *, top: int, confidence: float) -> pd.DataFrame:
        import pandas as pd

        count, tail = len(self.heads), (1 - confidence) / 2
        drawn = [likeness(one[:count], one[count:], top=top) for one in self.bootstrap.replicated()]
        value = likeness(self.bootstrap.value[:count], self.bootstrap.value[count:], top=top)
        rows = []
        for measure, chance in (("spearman", 0.0), ("top overlap", min(top, count) / count)):
            known = np.array([one[measure] for one in drawn])
            known = known[~np.isnan(known)]
            enough = len(self.pictures) > 1 and len(known)
            low, high = np.quantile(known, (tail, 1 - tail)) if enough else (np.nan, np.nan)
            rows.append({"measure": measure, "value": value[measure], "low": low, "high": high, "chance": chance})
        return pd.DataFrame(rows).assign(heads=count, images=len(self.pictures))


class _Changes:
    """What a sweep's table says of each example: sums over phrases of the change without each head, and of the value with all."""

    def __init__(self, table: pd.DataFrame, *, effect: str, how: str) -> None:
        phrase = ["example", "start", "end"]
        _require_columns(table, [*phrase, "image", "kind", "layer", "head", "how", effect])
        rows = table[(table["kind"] == "head") & (table["how"] == how)]
        clean = table[table["kind"] == "none"]
        if not len(rows) or not len(clean):
            ways = ", ".join(sorted(set(table.loc[table["kind"] == "head", "how"]))) or "nothing"
            raise InputError(
                f"The table has {len(rows)} rows of heads with how={how!r} and {len(clean)} of the unablated pass; in it stands "
                f"in the place of heads: {ways}."
            )
        if effect == "caption_log_probability":  # one value for all phrases of an example
            rows = rows.drop_duplicates(["example", "layer", "head"])
            clean = clean.drop_duplicates("example")
        # Two phrases of an example can have the same words, with a mask each; they stand in one order in every pass.
        rows = rows.assign(occurrence=rows.groupby([*phrase, "layer", "head"]).cumcount())
        clean = clean.assign(occurrence=clean.groupby(phrase).cumcount())
        before = clean[[*phrase, "occurrence", effect]]
        rows = rows.merge(before, on=[*phrase, "occurrence"], how="left", suffixes=("", "_before"))
        change = rows[effect].to_numpy(float) - rows[f"{effect}_before"].to_numpy(float)
        heads = list(zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True))
        self.heads: Heads = sorted(set(heads))
        places = {one: place for place, one in enumerate(self.heads, start=1)}
        self.examples: Sequence[str] = list(dict.fromkeys(clean["example"]))
        self._pictures = dict(zip(clean["example"], clean["image"], strict=True))
        number = {one: index for index, one in enumerate(self.examples)}
        self._sums, self._counts = (np.zeros((len(number), len(self.heads) + 1)) for _ in range(2))
        self._number = number
        self._add(clean["example"], np.zeros(len(clean), int), clean[effect].to_numpy(float))
        self._add(rows["example"], np.array([places[one] for one in heads]), change)

    def _add(self, examples: Any, cells: NDArray[np.int64], values: Sums) -> None:
        at = np.array([self._number.get(one, -1) for one in examples])
        known = ~np.isnan(values) & (at >= 0)
        np.add.at(self._sums, (at[known], cells[known]), values[known])
        np.add.at(self._counts, (at[known], cells[known]), 1)

    def of(self, example: str) -> tuple[str, Sums, Sums]:
        """The example's picture, and (1 + head,) sums and counts: the value with all heads first, then the changes."""
        if example not in self._number:
            hint = did_you_mean(example, self.examples)
            raise InputError(f"The sweep's table has no example {example!r}, or it failed.{hint}")
        at = self._number[example]
        return self._pictures[example], self._sums[at], self._counts[at]


def _require_columns(table: pd.DataFrame, wanted: list[str]) -> None:
    known = [str(one) for one in table.columns]
    for one in wanted:
        if one not in known:
            hint = did_you_mean(one, known)
            raise InputError(f"The table has no column {one!r}; it has {', '.join(known)}.{hint}")
