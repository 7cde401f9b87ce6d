"""What is recorded of one sequence of a batch, while it is fed to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.capture.pending import PendingRows
from probe.capture.reduce import Queries, RowStore
from probe.capture.reproduction import Reproduction, Verify, picked_rows
from probe.capture.sequence import Sequence
from probe.capture.taps import AttentionCall
from probe.capture.weights import ROWS_AT_ONCE, attention_rows, index_on, rows_at_once
from probe.errors import CaptureError
from probe.layout import Layout

__all__ = ["Track", "dropped_positions"]


class Track:
    """The rows of one sequence, layer by layer, and how well they rebuild what the kernel gave out.

    Attributes
    ----------
    sequence : what the model was fed.
    layout : where text and image tokens stand in it; ``None`` without an image, when nothing is recorded.
    plan : which rows are wanted.
    stores : the rows of each layer.
    pending : rows of decode steps that are not computed yet.
    output_ids : what ``generate`` gave out, prompt included, up to the end token.
    rebuilt : how well the rows rebuild what the kernel gave out.
    """

    def __init__(
        self,
        sequence: Sequence,
        names: Mapping[nn.Module, str],
        heads: tuple[int, ...],
        *,
        offload: bool,
        verify: Verify,
    ) -> None:
        self.sequence, self.names, self.heads, self.offload, self.verify = sequence, names, heads, offload, verify
        self.layout: Layout | None = None
        self.plan: Queries | None = None
        self.stores: dict[nn.Module, RowStore] = {}
        self.pending: dict[nn.Module, PendingRows] = {}
        self.output_ids: list[int] | None = None
        self.rebuilt = Reproduction(verify)

    def lay_out(
        self,
        queries: object,
        query_row: Literal["predicting", "own"],
        *,
        keep: frozenset[int] | None,
        count: int | None,
    ) -> None:
        """Find the wanted rows, once the prompt is known."""
        layout, start = self.sequence.layout(), len(self.sequence.prompt)
        self.layout = layout if layout.image else None
        if queries != "prompt":
            self.plan = Queries("answer", query_row, start, keep=keep, count=count)
            return
        prompt = self.sequence.text_positions(lag=1 if query_row == "predicting" else 0)
        self.plan = Queries("prompt", query_row, start, prompt)

    def end(self, ends: frozenset[int]) -> None:
        """Stop at an end token that was fed: what ``generate`` adds behind it while others go on is padding."""
        if self.plan is None or self.plan.kind == "prompt" or self.plan.count is not None:
            return
        answer = self.sequence.ids[self.plan.start :]
        at = next((i for i, one in enumerate(answer) if one in ends), None)
        if at is not None:
            # The end token of a sequence recorded alone is never fed back: it has a predicting row, but no row of its own.
            self.plan = replace(self.plan, count=at + (self.plan.query_row == "predicting"))

    def give_out(self, ids: list[int], ends: frozenset[int]) -> None:
        """Keep the ids that ``generate`` gave out, without what it filled up behind the end token."""
        start = len(self.sequence.prompt)
        at = next((i for i, one in enumerate(ids[start:]) if one in ends), None)
        self.output_ids = ids if at is None else ids[: start + at + 1]
        # Nor is what was fed while others went on a part of the answer, beginning with the end token.
        self.sequence.ids = self.sequence.ids[: len(self.output_ids) - 1]

    def take(
        self,
        module: nn.Module,
        call: AttentionCall,
        *,
        shift: int,
        picked: Verify,
        keeps: bool = False,
    ) -> None:
        """The wanted rows of one call on this sequence alone.

        Parameters
        ----------
        shift : positions that are no longer among the keys: those that a sliding cache dropped.
        picked : which of the rows are checked against the kernel's output.
        keeps : True if the key cache keeps the keys of this call, so that its row can be computed later with others.
        """
        plan, queries = self.plan, call.query.shape[2]
        if plan is None or self.layout is None:
            return
        wanted = plan.wanted(len(self.sequence.ids) - queries, queries)
        pending = self.pending.get(module) or PendingRows()
        if keeps and not shift and wanted and pending.fits(call):
            self.pending[module] = pending
            pending.add(module, call, wanted[0][1], checked=self.verify != "off")
            if len(pending.tokens) == ROWS_AT_ONCE:
                self._settle(module)
            return
        if not wanted:
            return
        self._settle(module)  # rows are stored in the order of the calls
        kept = len(self.names) * len(self.heads) * len(wanted) * len(self.layout.image)
        at_once = rows_at_once(call, len(self.heads), kept=kept)
        if len(wanted) > at_once:
            self._store(module).expect(len(wanted))
        for start in range(0, len(wanted), at_once):
            some = wanted[start : start + at_once]
            chosen = picked_rows(picked, len(some))
            rows = index_on([row for row, _ in some], call.query.device)
            self._compute(module, call, rows, [token for _, token in some], chosen, shift)

    def settle(self) -> None:
        """Compute the rows that are still pending."""
        for module in list(self.pending):
            self._settle(module)

    def _settle(self, module: nn.Module) -> None:
        pending = self.pending.pop(module, None)
        if pending is None:
            return
        call, count = pending.call(), len(pending.tokens)
        # All of them, also of a sample: that the keys were kept as they were is shown by nothing else.
        chosen = [] if self.verify == "off" else list(range(count))
        self._compute(module, call, torch.arange(count, device=call.query.device), pending.tokens, chosen, 0)

    def _compute(
        self, module: nn.Module, call: AttentionCall, rows: Tensor, tokens: list[int], chosen: list[int], shift: int
    ) -> None:
        """Store these rows of a call, and hold the chosen ones, counted among them, against the kernel's output."""
        weights = attention_rows(module, call, rows=rows, heads=self.heads)
        # Keys are counted from the first position that is left; what was dropped gets no attention.
        columns = torch.nn.functional.pad(weights, (shift, 0)) if shift else weights
        self._store(module).add(columns, tokens)
        self.rebuilt.check(self.names[module], call, weights, rows=rows, heads=self.heads, picked=chosen)

    def _store(self, module: nn.Module) -> RowStore:
        assert self.layout is not None  # for the type checker: laid out before the first call
        if module not in self.stores:
            keep = self.plan.keep if self.plan is not None else None
            self.stores[module] = RowStore(self.layout, self.offload, None if keep is None else keep.__contains__)
        return self.stores[module]


def dropped_positions(name: str, module: nn.Module, call: AttentionCall, cache: Any, *, fed: int, total: int) -> int:
    """How many positions, counted from the first, are no longer among the keys of this call.

    Parameters
    ----------
    name : of the module, for errors.
    cache : the key cache of the pass, or ``None``.
    fed, total : positions that were fed in this pass, and since the beginning.

    Raises
    ------
    CaptureError
        If keys are missing in a way that is not known.
    """
    queries, keys = call.query.shape[2], call.key.shape[2]
    if queries == fed and keys >= total:
        return 0
    layers, number = getattr(cache, "layers", ()), getattr(module, "layer_idx", None)
    layer: Any = layers[number] if isinstance(number, int) and number < len(layers) else None
    # This one keeps the last positions of all in their order; others turn theirs round, or say nothing of it.
    in_order = type(layer).__name__ == "DynamicSlidingWindowLayer" and layer.cumulative_length == total
    if queries != fed or not in_order or keys != min(total, layer.sliding_window - 1 + queries):
        raise CaptureError(
            f"{name} saw {queries} queries and {keys} keys where {fed} and {total} were fed: its cache drops or moves positions (a "
            "sliding window) in a way that is not known, so columns cannot be matched to patches; generate with the default cache."
        )
    return total - keys
