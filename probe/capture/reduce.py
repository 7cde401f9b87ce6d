"""What is kept of repeated attention calls: the wanted rows, split into patches and rest, and their running mean."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from probe.errors import CaptureError, InputError
from probe.layout import REST_PLACES, Layout, View

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

    def wanted(self, first: int, rows: int) -> list[tuple[int, int]]:
        """(row, token) of the wanted ones among this many rows from position ``first`` on, and which token each stands for."""
        lag = 1 if self.query_row == "predicting" else 0
        last = first + rows
        if self.kind == "prompt":
            order = self._prompt_order
            return [(at - first, order[at + lag]) for at in range(first, last) if at + lag in order]
        stop = last if self.count is None else min(last, self.start + self.count - lag)
        return [(at - first, at + lag - self.start) for at in range(max(first, self.start - lag), stop)]

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
    """The rows of one layer, collected call by call: the columns of all image tokens, and what fell elsewhere.

    Nothing here waits for the device: what has to be looked at is looked at in ``finished``.

    Attributes
    ----------
    layout : where the image tokens are among the keys.
    offload : True moves every row to host memory as soon as it is there.
    keep : whether the row of a token is kept; ``None`` keeps all.
    """

    layout: Layout
    offload: bool
    keep: Callable[[int], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    count: int = 0
    _rows: _Parts = field(default_factory=lambda: _Parts())
    _rest: _Parts = field(default_factory=lambda: _Parts())
    _sum: Tensor | None = None
    _on_padding: list[Tensor] = field(default_factory=list)

    def expect(self, rows: int) -> None:
        """Say that so many rows follow, in several calls of ``add``: then they are written where they will stay."""
        if self.keep is None:
            self._rows.expect(rows)
            self._rest.expect(rows)

    def add(self, weights: Tensor, tokens: Sequence[int]) -> None:
        """Take (head, row, key) weights whose rows stand for these tokens."""
        if self.layout.padding:
            self._on_padding.append(weights[..., list(self.layout.padding)].amax())
        (places,) = _columns_on(self.layout, weights.device)
        kept = list(range(len(tokens)))
        if self.keep is not None:
            kept = [row for row in kept if self.keep(tokens[row])]
            total = weights[..., places].sum(1)
            self._sum = total if self._sum is None else self._sum + total
            weights = weights[:, kept]
        device = torch.device("cpu") if self.offload else weights.device
        self._rows.add(weights[..., places], device)
        self._rest.add(self._elsewhere(weights), device)
        self.tokens += [tokens[row] for row in kept]
        self.count += len(tokens)

    def finished(self, view: int | View) -> tuple[Tensor, Tensor, Tensor]:
        """(head, token, patch) rows, (head, patch) mean over all tokens, (head, token, place) rest, in order of the calls.

        Parameters
        ----------
        view : one of the layout's by number, or any whose positions are image tokens of the layout.

        Raises
        ------
        CaptureError
            If padding was attended to, or a row is not a number.
        """
        positions = (self.layout.views[view] if isinstance(view, int) else view).positions
        rows, rest = self._rows.whole(), self._rest.whole()
        mean = rows.mean(1) if self._sum is None else (self._sum / self.count).to(rows.device)
        mass = max((float(one) for one in self._on_padding), default=0.0)
        if mass > 0:
            raise CaptureError(
                f"Padding receives attention (up to {mass:.2g}), so the mask that was given does not hide it; pass the "
                "processor's attention_mask to the model."
            )
        if bool(torch.isnan(mean).any() | torch.isnan(rest).any()):
            raise CaptureError(
                "A recorded query row has every key masked, or the model itself computes NaN: its softmax is undefined. Check the "
                "attention mask, and whether the model's output is finite."
            )
        if positions == self.layout.image:
            return rows, mean, torch.cat([rest, torch.zeros_like(rest[..., :1])], dim=-1)
        where = {position: column for column, position in enumerate(self.layout.image)}
        own = torch.tensor([where[one] for one in positions], device=rows.device)
        others = torch.ones(len(where), dtype=torch.bool, device=rows.device)
        others[own] = False
        elsewhere = rows[..., others].sum(-1, keepdim=True)
        # Patches of a view that stand together are a part of the rows, which needs no copy.
        first = where[positions[0]]
        part = slice(first, first + len(positions))
        seen = rows[..., part] if own.tolist() == list(range(first, part.stop)) else rows[..., own]
        return seen, mean[..., own], torch.cat([rest, elsewhere], dim=-1)

    def _elsewhere(self, weights: Tensor) -> Tensor:
        """(head, row, place): what fell on the first text token, and on other text."""
        before, after = self.layout.image[0], self.layout.prompt_length
        table = _places_on(self.layout, weights.device, weights.dtype)
        (places,) = _columns_on(self.layout, weights.device)
        if isinstance(places, slice):  # only text is left to be told apart
            behind = table[places.stop : weights.shape[-1]]
            rest = weights[..., :before] @ table[: min(before, weights.shape[-1])]
            rest += weights[..., places.stop : places.stop + len(behind)] @ behind
        else:
            rest = weights[..., :after] @ table[: weights.shape[-1]]  # a prompt fed in chunks has fewer keys at first
        # What comes after the prompt is text.
        rest[..., REST_PLACES.index("text")] += weights[..., after:].sum(-1)
        return rest


class _Parts:
    """(head, row, ...) parts of rows, which become one tensor."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self._expected = 0
        self._free: Tensor | None = None

    def expect(self, rows: int) -> None:
        """Make room for so many rows at the next ``add``: pieces between what is freed meanwhile would keep it from use."""
        self._expected, self._free = rows, None

    def add(self, part: Tensor, device: torch.device) -> None:
        """Copy a part to where it stays: a slice would keep the whole row of keys alive."""
        count = part.shape[1]
        if self._expected < count:
            self.parts.append(part.to(device, copy=True))
            return
        if self._free is None:
            self._free = torch.empty((part.shape[0], self._expected, *part.shape[2:]), dtype=part.dtype, device=device)
            self.parts.append(self._free)
        self._free[:, :count] = part
        self._free, self._expected = self._free[:, count:], self._expected - count

    def whole(self) -> Tensor:
        """All rows; put together in place of the parts, or they would be held twice."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, dim=1)]
        return self.parts[0]


Columns = slice | Tensor


# Kept with the layout, and no longer: every pass has one of its own.
_tables: WeakKeyDictionary[Layout, dict[Any, Any]] = WeakKeyDictionary()


def _columns_on(layout: Layout, device: torch.device) -> tuple[Columns]:
    """The key positions of the image tokens: a slice where they stand in a row, which needs no copy to read."""
    tables = _tables.setdefault(layout, {})
    if device not in tables:
        first, last = layout.image[0], layout.image[-1]
        together = layout.image == tuple(range(first, last + 1))
        tables[device] = slice(first, last + 1) if together else torch.tensor(layout.image, device=device)
    return (tables[device],)


def _places_on(layout: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(prompt position, place) table of 0 and 1: which positions of the prompt are its beginning, and which other text."""
    tables = _tables.setdefault(layout, {})
    if (device, dtype) not in tables:
        place = ["text"] * layout.prompt_length
        for position in layout.image:
            place[position] = "image"
        if layout.bos is not None:
            place[layout.bos] = "bos"
        table = [[float(one == name) for name in REST_PLACES[:2]] for one in place]
        tables[device, dtype] = torch.tensor(table, dtype=dtype).to(device)
    found: Tensor = tables[device, dtype]
    return found
