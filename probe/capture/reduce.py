"""What is kept of repeated attention calls: the wanted rows, split into patches and rest, and their running mean."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from probe.errors import CaptureError, InputError
from probe.layout import REST_PLACES, Layout

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

    Nothing here waits for the device: what has to be looked at is looked at in ``finished``.

    Attributes
    ----------
    layout : where the patches are among the keys.
    offload : True moves every row to host memory as soon as it is there.
    keep : whether the row of a token is kept; ``None`` keeps all.
    """

    layout: Layout
    offload: bool
    keep: Callable[[int], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    count: int = 0
    _rows: list[list[Tensor]] = field(default_factory=list)
    _rest: list[list[Tensor]] = field(default_factory=list)
    _sums: list[Tensor] = field(default_factory=list)
    _on_padding: list[Tensor] = field(default_factory=list)

    def add(self, weights: Tensor, tokens: Sequence[int]) -> None:
        """Take (head, row, key) weights whose rows stand for these tokens."""
        columns = _columns_on(self.layout, weights.device)
        if not self._rows:
            self._rows, self._rest = [[] for _ in columns], [[] for _ in columns]
        if self.layout.padding:
            self._on_padding.append(weights[..., list(self.layout.padding)].amax())
        kept = list(range(len(tokens)))
        if self.keep is not None:
            kept = [row for row in kept if self.keep(tokens[row])]
            self._add_to_sums([weights[..., places].sum(1) for places in columns])
            weights = weights[:, kept]
        for view, places in enumerate(columns):
            self._rows[view].append(self._moved(weights[..., places]))
            self._rest[view].append(self._moved(self._elsewhere(weights, view)))
        self.tokens += [tokens[row] for row in kept]
        self.count += len(tokens)

    def finished(self, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """(head, token, patch) rows, (head, patch) mean over all tokens, (head, token, place) rest, in order of the calls.

        Raises
        ------
        CaptureError
            If padding was attended to, or a row is not a number.
        """
        rows, rest = torch.cat(self._rows[view], dim=1), torch.cat(self._rest[view], dim=1)
        mean = rows.mean(1) if self.keep is None else (self._sums[view] / self.count).to(rows.device)
        mass = max((float(one) for one in self._on_padding), default=0.0)
        if mass > 0:
            raise CaptureError(
                f"Padding receives attention (up to {mass:.2g}), so the mask that was given does not hide it; pass the "
                "processor's attention_mask to the model."
            )
        if bool(torch.isnan(mean).any() or torch.isnan(rest).any()):
            raise CaptureError(
                "A recorded query row has every key masked, or the model itself computes NaN: its softmax is undefined. Check the "
                "attention mask, and whether the model's output is finite."
            )
        return rows, mean, rest

    def _add_to_sums(self, totals: list[Tensor]) -> None:
        self._sums = [a + b for a, b in zip(self._sums, totals, strict=True)] if self._sums else totals

    def _moved(self, part: Tensor) -> Tensor:
        # A slice would keep the whole row of keys alive.
        return part.to("cpu") if self.offload and part.device.type != "cpu" else part.clone()

    def _elsewhere(self, weights: Tensor, view: int) -> Tensor:
        """(head, row, place): what fell on the first text token, on other text, and on image tokens outside this view."""
        table = _places_on(self.layout, view, weights.device, weights.dtype)
        rest = weights[..., : len(table)] @ table[: weights.shape[-1]]  # a prompt fed in chunks has fewer keys at first
        # What comes after the prompt is text.
        rest[..., REST_PLACES.index("text")] += weights[..., len(table) :].sum(-1)
        return rest


Columns = slice | Tensor


@lru_cache(maxsize=64)
def _columns_on(layout: Layout, device: torch.device) -> tuple[Columns, ...]:
    """The key positions of each view's patches: a slice where they stand in a row, which needs no copy to read."""
    found: list[Columns] = []
    for view in layout.views:
        first, last = view.positions[0], view.positions[-1]
        together = view.positions == tuple(range(first, last + 1))
        found.append(slice(first, last + 1) if together else torch.tensor(view.positions, device=device))
    return tuple(found)


@lru_cache(maxsize=64)
def _places_on(layout: Layout, view: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(prompt position, place) table of 0 and 1: to which place of ``REST_PLACES`` each position of the prompt counts."""
    place = ["text"] * layout.prompt_length
    for number, one in enumerate(layout.views):
        for position in one.positions:
            place[position] = "own patches" if number == view else "other views"
    for position in layout.other:
        place[position] = "other views"
    if layout.bos is not None:
        place[layout.bos] = "bos"
    return torch.tensor([[float(one == name) for name in REST_PLACES] for one in place], dtype=dtype).to(device)
