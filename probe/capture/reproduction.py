"""How well recorded rows rebuild what the kernels gave out: which of them are held against it, and the largest error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from probe.capture.taps import AttentionCall
from probe.capture.weights import index_on, reproduction_error, tolerance_of
from probe.errors import CertificateError
from probe.provenance import Certificate

__all__ = ["Reproduction", "Verify", "picked_rows"]

#: How many rows must rebuild what the kernel gave out: a sample of them, all, or none.
Verify = Literal["sample", "all", "off"]


class Reproduction:
    """The largest error of what was checked, and in which layer it is.

    Errors stay on the device until that is asked for: a number that is read in every layer keeps a GPU from running ahead.

    Attributes
    ----------
    verify : how many rows are checked.
    rows : how many were.
    """

    def __init__(self, verify: Verify) -> None:
        self.verify, self.rows = verify, 0
        self._errors: dict[str, Tensor] = {}

    def check(
        self,
        name: str,
        call: AttentionCall,
        weights: Tensor,
        *,
        rows: Tensor,
        heads: tuple[int, ...],
        picked: Sequence[int] | None = None,
    ) -> None:
        """Hold rows of one call against what its kernel gave out.

        Parameters
        ----------
        weights : (head, row, key), as ``attention_rows`` gives them for these rows and heads.
        picked : which of the rows; by default those that ``verify`` asks for.
        """
        chosen = picked_rows(self.verify, len(rows)) if picked is None else picked
        if not chosen:
            return
        if len(chosen) < len(rows):
            index = index_on(chosen, rows.device)
            weights, rows = weights.index_select(1, index), rows.index_select(0, index)
        self.note(name, reproduction_error(call, weights, rows=rows, heads=heads), len(chosen))

    def note(self, name: str, error: Tensor, rows: int) -> None:
        """Take the error of so many rows of a layer: a tensor of no dimension, infinite where nothing can be said."""
        before = self._errors.get(name)
        self._errors[name] = error if before is None else torch.maximum(before, error)
        self.rows += rows

    def worst(self) -> tuple[float, str]:
        """The largest error and its layer; 0 and "" if nothing was checked."""
        found = [(float(error), name) for name, error in self._errors.items()]
        return max(found, default=(0.0, ""), key=lambda one: one[0])

    def certificate(
        self, dtype: torch.dtype | None, kernel: str, *, layers: int, tokens: int, patches: int, advice: str
    ) -> Certificate:
        """The certificate of a pass on queries of this number type under this kernel.

        Raises
        ------
        CertificateError
            If a row does not rebuild what the kernel gave out, with the ``advice``.
        """
        (error, where), tolerance = self.worst(), tolerance_of(dtype, kernel)
        if self.verify != "off" and not error <= tolerance:
            raise CertificateError(
                f"The recorded attention does not rebuild what the model computed: largest error {error:.1e} of the output in "
                f"{where}, allowed {tolerance:.0e} for {dtype} under {kernel!r}. {advice}"
            )
        return Certificate(self.verify, self.rows, error, tolerance, layers, tokens, patches)


def picked_rows(verify: Verify, count: int, *, sample: int = 4) -> list[int]:
    """Which of that many rows are checked: all, none, or up to ``sample``, evenly from the first to the last."""
    if verify == "off":
        return []
    if verify == "all" or count <= sample:
        return list(range(count))
    return sorted({round(i * (count - 1) / (sample - 1)) for i in range(sample)})
