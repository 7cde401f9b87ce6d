"""The remedies for attention sinks, compared on the same maps and masks: ``score_remedies``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis import controls
from probe.analysis.metrics import REASONS, degenerate_reason, find_metric
from probe.analysis.permutations import SignFlips, holm
from probe.analysis.sinks import KEPT, REMEDIES, remedied_maps, stable_sinks
from probe.analysis.stats import PoissonBootstrap
from probe.analysis.structure import Structure
from probe.analysis.systems import Traits, unfairness
from probe.analysis.targets import Masks, Target, in_step, read_masks
from probe.attention import AttentionRecord
from probe.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["score_remedies"]

#: What stands under the same name as a remedy in the running sums.
CHANCE = "chance"


def score_remedies(
    records: Iterable[AttentionRecord],
    masks: Iterable[Masks],
    *,
    generic: Iterable[AttentionRecord] | None = None,
    sinks: Iterable[Any] | None = None,
    metric: str | Sequence[str] = ("pointing", "auroc", "lift"),
    kept: float = KEPT,
    replicates: int = 1000,
    permutations: int = 9999,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """What each of ``probe.analysis.sinks.REMEDIES`` scores, and how it differs from none: one pass, in memory for one image.

    >>> score_remedies(records, masks, generic=records_of_a_generic_prompt)

    All are scored on the same phrases: one on which any of them gives no answer under a metric counts for none under it. Intervals
    are of the Poisson bootstrap over images, paired; p-values by flipping signs of whole images, Holm-corrected over all remedies
    and metrics.

    Parameters
    ----------
    records, masks : as for ``score_heads``, with all layers of a record on one grid.
    generic : for each image its record under a generic prompt ("Describe the image."), for the remedy of that name.
    sinks : for each image a (row, col) bool of its sinks; by default those of ``stable_sinks``.
    metric : one name or several of ``probe.analysis.metrics.METRICS``.
    kept : the share of its attention that a sink keeps in "redistribution".
    replicates, confidence, seed : of the bootstrap; the seed also draws the signs.
    permutations : random flips of the test.

    Returns
    -------
    One row for each metric and remedy. Columns: metric, remedy, value, low, high, difference (to "none"), difference_low,
    difference_high, p_value, p_corrected, chance, images, phrases, care (why to read the difference with care, or ""). ``attrs``:
    "sinks", the mean number of sinks in an image; "left_out", reason -> number of phrases that count for no remedy.

    Raises
    ------
    InputError
        If there is no image, the inputs differ in length, or as ``score_heads`` and ``remedied_maps`` do; the message names the
        image, counted from 0.
    """
    names = (metric,) if isinstance(metric, str) else tuple(dict.fromkeys(metric))
    if not names:
        raise InputError("No metric asked for; give at least one, for example metric='pointing'.")
    for name in names:
        find_metric(name)
    remedies = tuple(one for one in REMEDIES if one != "generic prompt" or generic is not None)
    tally = _Tally(names, remedies, replicates=replicates, permutations=permutations, seed=seed)
    others, marks = (iter(repeat(None) if one is None else one) for one in (generic, sinks))
    for index, record, of_image in in_step(records, masks):
        try:
            given = _next(marks, "sinks")
            found = stable_sinks(record) if given is None else torch.as_tensor(given, dtype=torch.bool)
            tally.add(index, record, of_image, found, _next(others, "generic"), kept)
        except InputError as error:
            raise InputError(f"Image {index}: {error}") from None
    for one, what in ((others, "generic"), (marks, "sinks")):
        if next(one, None) is not None:
            raise InputError(f"There are more entries in {what} than records; give one for each image.")
    return tally.result(confidence)


def _next(given: Iterator[Any], what: str) -> Any:
    try:
        return next(given)
    except StopIteration:
        raise InputError(f"{what} has no entry for this image; give one for each.") from None


class _Tally:
    """Running sums of the table, one image after the other."""

    def __init__(
        self, metrics: Sequence[str], remedies: Sequence[str], *, replicates: int, permutations: int, seed: int
    ) -> None:
        self.metrics, self.remedies = metrics, remedies
        self.scored = [(metric, name) for metric in metrics for name in (*remedies, CHANCE)]
        self.compared = [(metric, name) for metric in metrics for name in remedies if name != "none"]
        self.left_out: dict[str, int] = {}
        self._first: Structure | None = None
        self._care: dict[tuple[str, str], str] = {}
        self._sinks: list[int] = []
        cells = len(self.scored) + len(self.compared)
        self._bootstrap = PoissonBootstrap(cells, replicates=replicates, seed=seed)
        self._flips = SignFlips(len(self.compared), permutations=permutations, seed=seed)

    def add(
        self,
        index: int,
        record: AttentionRecord,
        masks: Masks,
        sinks: Tensor,
        generic: AttentionRecord | None,
        kept: float,
    ) -> None:
        structure = Structure.of(record)
        if self._first is None:
            self._first = structure
            traits = [Traits.of(record, "attention"), Traits.of(record, "minus mean")]
            self._care = {(one, "minus mean"): unfairness(one, traits[1], traits[0]) for one in self.metrics}
        structure.require_like(self._first)
        tokens, read = read_masks(record, masks)
        self._sinks.append(int(sinks.sum()))
        sums, counts = np.zeros(self._bootstrap.cells), np.zeros(self._bootstrap.cells)
        if tokens:
            maps = remedied_maps(record, tokens, sinks, generic=generic, kept=kept)
            target = Target.from_masks(record.layers[0].grid, read, device=record.layers[0].values.device)
            rows = self._rows(maps, target)
            sums, counts = rows.nansum(-1).cpu().numpy(), (~rows.isnan()).sum(-1).double().cpu().numpy()
        self._bootstrap.add(index, sums, counts)
        self._flips.add(index, sums[len(self.scored) :])

    def _rows(self, maps: dict[str, Tensor], target: Target) -> Tensor:
        """(cell, phrase) scores, and then differences to none; NaN where any remedy has none."""
        scores, differences = [], []
        for metric in map(find_metric, self.metrics):
            found = {name: metric(one, target) for name, one in maps.items()}
            known = torch.stack([~one.isnan() for one in found.values()]).all(0)
            self._note(metric.name, maps, target, known)
            found[CHANCE] = controls.chance(metric, target)
            found = {name: torch.where(known, one, nan) for name, one in found.items()}
            scores += [found[name] for name in (*self.remedies, CHANCE)]
            differences += [found[name] - found["none"] for name in self.remedies if name != "none"]
        return torch.stack([*scores, *differences])

    def _note(self, metric: str, maps: dict[str, Tensor], target: Target, known: Tensor) -> None:
        """Counts the phrases that count for no remedy, by the first that is to blame."""
        reasons = {name: degenerate_reason(metric, one, target) for name, one in maps.items()}
        for phrase in np.flatnonzero(~known.cpu().numpy()):
            name = next(name for name, one in reasons.items() if one[phrase])
            key = f"{metric}: {name}: {REASONS[str(reasons[name][phrase])]} (phrases)"
            self.left_out[key] = self.left_out.get(key, 0) + 1

    def result(self, confidence: float) -> pd.DataFrame:
        import pandas as pd

        if self._first is None:
            raise InputError("There is no image to compare remedies on: records and masks are empty.")
        found = self._bootstrap.intervals(confidence=confidence)
        several = found.images[len(self.scored) :] > 1
        p_values = np.where(several, self._flips.p_values(), nan)
        tests = dict(zip(self.compared, zip(p_values, holm(p_values), strict=True), strict=True))
        rows = []
        for place, key in enumerate(self.scored):
            metric, remedy = key
            if remedy == CHANCE:
                continue
            interval = vars(found[place])
            row: dict[str, Any] = {"metric": metric, "remedy": remedy} | {
                name: interval[name] for name in ("value", "low", "high")
            }
            row |= self._difference(key, found, tests)
            row |= {"chance": found[self.scored.index((metric, CHANCE))].value}
            row |= {name: interval[name] for name in ("images", "phrases")}
            rows.append(row | {"care": self._care.get(key, "")})
        frame = pd.DataFrame(rows)
        frame.attrs |= {"sinks": float(np.mean(self._sinks)), "left_out": self.left_out}
        return frame

    def _difference(self, key: tuple[str, str], found: Any, tests: dict[Any, Any]) -> dict[str, float]:
        names = ("difference", "difference_low", "difference_high", "p_value", "p_corrected")
        if key not in tests:
            return dict.fromkeys(names, nan)
        interval = found[len(self.scored) + self.compared.index(key)]
        numbers: NDArray[np.float64] = np.array([interval.value, interval.low, interval.high, *tests[key]])
        return dict(zip(names, numbers.tolist(), strict=True))
