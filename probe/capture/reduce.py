"""What is kept of repeated attention calls: the wanted rows, split into patches and rest, and their running mean."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from probe.errors import CaptureError, InputError
from probe.layout import Layout

__all__ = ["Queries", "RowStore", "answer_tokens"]


@dataclass(frozen=True)
class Queries:
    """Which query rows of a pass are wanted, and which token each of them stands for.

    Attributes
    ----------
    kind : "answer" for the tokens after the prompt, "prompt" for the text tokens of the prompt.
    query_row : "predicting": token t is read at position t - 1; "own": at its own position.
    start : position of the first answer token.
    prompt : positions of the prompt's text tokens, for kind "prompt".
    keep : answer tokens that are kept, counted from 0; ``None`` keeps all. The mean is over all in any case.
    count : number of answer tokens, where it is known beforehand: the last row of a whole text predicts one more, unknown.
    """

    kind: Literal["answer", "prompt"]
    query_row: Literal["predicting", "own"]
    start: int
    prompt: tuple[int, ...] = ()
    keep: frozenset[int] | None = None
    count: int | None = None

    def token_at(self, position: int) -> int | None:
        """The number of the token that this row stands for, or ``None`` if the row is not wanted."""
        token = position + 1 if self.query_row == "predicting" else position
        if self.kind == "prompt":
            return self._prompt_order.get(token)
        stop = float("inf") if self.count is None else self.start + self.count
        return token - self.start if self.start <= token < stop else None

    @cached_property
    def _prompt_order(self) -> dict[int, int]:
        return {position: order for order, position in enumerate(self.prompt)}


def answer_tokens(queries: Any) -> tuple[int, ...]:
    """Numbers of answer tokens to keep; whether the answer has as many is known only when it is there.

    Raises
    ------
    InputError
        If it is not a list of different whole numbers.
    """
    try:
        chosen = tuple(operator.index(one) for one in queries)
    except TypeError:
        chosen = ()
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(
            f'queries must be "answer", "prompt" or a list of different numbers of answer tokens from 0; found {queries!r}.'
        )
    return chosen


@dataclass
class RowStore:
    """The rows of one layer, collected call by call.

    Attributes
    ----------
    layout : where the patches are among the keys.
    offload : True moves every row to host memory as soon as it is there.
    """

    layout: Layout
    offload: bool
    keep: Callable[[int], bool]
    tokens: list[int] = field(default_factory=list)
    count: int = 0
    _rows: list[list[Tensor]] = field(default_factory=list)
    _rest: list[list[Tensor]] = field(default_factory=list)
    _sums: list[Tensor] = field(default_factory=list)
    _columns: dict[torch.device, list[Tensor]] = field(default_factory=dict)

    def add(self, weights: Tensor, tokens: Sequence[int]) -> None:
        """Take (head, row, key) weights whose rows stand for these tokens."""
        self._require_no_padding(weights)
        kept = [row for row, token in enumerate(tokens) if self.keep(token)]
        columns = self._columns_on(weights.device)
        if not self._rows:
            self._rows = [[] for _ in columns]
            self._rest = [[] for _ in columns]
        for view, places in enumerate(columns):
            patches = weights[..., places]
            total = patches.sum(1)
            if len(self._sums) <= view:
                self._sums.append(total)
            else:
                self._sums[view] = self._sums[view] + total
            self._rows[view].append(self._moved(patches[:, kept]))
            self._rest[view].append(self._moved(self._elsewhere(weights, view)[:, kept]))
        self.tokens += [tokens[row] for row in kept]
        self.count += len(tokens)

    def finished(self, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """(head, token, patch) rows, (head, patch) mean over all tokens, (head, token, place) rest, in order of the tokens."""
        rows, rest = torch.cat(self._rows[view], dim=1), torch.cat(self._rest[view], dim=1)
        mean = rows.mean(1) if self.count == rows.shape[1] else (self._sums[view] / self.count).to(rows.device)
        return rows, mean, rest

    def _columns_on(self, device: torch.device) -> list[Tensor]:
        if device not in self._columns:
            self._columns[device] = [torch.tensor(view.positions, device=device) for view in self.layout.views]
        return self._columns[device]

    def _moved(self, part: Tensor) -> Tensor:
        return part.to("cpu", non_blocking=False) if self.offload else part

    def _elsewhere(self, weights: Tensor, view: int) -> Tensor:
        """(head, row, place): what fell on the first text token, on other text, and on image tokens outside this view."""
        columns = self._columns_on(weights.device)
        text = torch.ones(weights.shape[-1], dtype=torch.bool, device=weights.device)
        others = torch.zeros_like(text)
        for number, places in enumerate(columns):
            text[places] = False
            others[places] = number != view
        text[list(self.layout.other)] = False
        others[list(self.layout.other)] = True
        bos = weights.new_zeros(weights.shape[:-1])
        if self.layout.bos is not None:
            text[self.layout.bos] = False
            bos = weights[..., self.layout.bos]
        return torch.stack([bos, weights[..., text].sum(-1), weights[..., others].sum(-1)], dim=-1)

    def _require_no_padding(self, weights: Tensor) -> None:
        if self.layout.padding:
            mass = float(weights[..., list(self.layout.padding)].abs().max())
            if mass > 0:
                raise CaptureError(
                    f"Padding receives attention (up to {mass:.2g}), so the mask that was given does not hide it; pass the "
                    "processor's attention_mask to the model."
                )
        if bool(torch.isnan(weights).any()):
            raise CaptureError(
                "A recorded query row has every key masked, or the model itself computes NaN: its softmax is undefined. Check the "
                "attention mask, and whether the model's output is finite."
            )
