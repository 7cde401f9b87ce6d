"""cut_edges(): keep some positions from attending to others, where the softmax is taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probe.capture.ablation import check_heads, editing
from probe.capture.references import require_language_model
from probe.capture.taps import AttentionCall
from probe.capture.weights import attention_rows
from probe.errors import InputError, did_you_mean
from probe.models import Subject

__all__ = ["EDGES", "Edge", "check_edge_name", "cut_edges", "edge_positions", "without_edges"]

# At most this many rows are computed at a time, so that no (token x token) map is ever held.
_ROWS_AT_ONCE = 256

_GROUPS = ("image", "prompt", "answer", "text")

#: Names of edges: who may no longer look at what. "text" is prompt and answer together.
EDGES = tuple(f"{queries} to {keys}" for queries in _GROUPS for keys in _GROUPS)


@dataclass(frozen=True)
class Edge:
    """Attention that is taken away in one layer: from each of ``queries`` to each of ``keys``, positions in the sequence.

    A position always goes on seeing itself, so that no row is left with nothing. ``heads`` is ``None`` for all of them.
    """

    layer: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: tuple[int, ...] | None = None


def check_edge_name(name: str) -> str:
    """The name itself, if it is one of ``EDGES``.

    Raises
    ------
    InputError
        If it is not.
    """
    if name not in EDGES:
        raise InputError(
            f"There is no edge {name!r}; say 'QUERIES to KEYS' with two of {', '.join(_GROUPS)}, such as 'answer to image'."
            f"{did_you_mean(str(name), EDGES)}"
        )
    return name


def edge_positions(
    name: str, ids: Sequence[int], *, image_token: int, answer_start: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Query and key positions of an edge of ``EDGES`` in a sequence of token ids whose answer begins at ``answer_start``.

    As keys, "answer" are the answer's own tokens. As queries they are the rows that predict them: from the last position before
    the answer on, which is then no query of "prompt". So every row is a query of exactly one of image, prompt and answer.

    Raises
    ------
    InputError
        If there is no edge of that name.
    """
    queries, keys = check_edge_name(name).split(" to ")

    def positions(group: str, first: int) -> tuple[int, ...]:
        image = [one == image_token for one in ids]
        chosen = {
            "image": lambda i: image[i] and i < first,
            "prompt": lambda i: not image[i] and i < first,
            "answer": lambda i: i >= first,
            "text": lambda i: not image[i] or i >= first,
        }[group]
        return tuple(i for i in range(len(ids)) if chosen(i))

    return positions(queries, answer_start - 1), positions(keys, answer_start)


@contextmanager
def cut_edges(subject: Subject, edges: Iterable[Edge]) -> Iterator[None]:
    """A context in which these edges are missing: the rows' attention goes to what is left, and sums to 1 over it.

    >>> with cut_edges(subject, [Edge(layer=3, queries=tuple(range(590, 640)), keys=tuple(range(5, 581)))]):
    ...     subject.model(**inputs, use_cache=False)

    Meant for whole passes over one conversation. A record that is made inside still shows what the kernel computed.

    Raises
    ------
    InputError
        If there is none, a layer or head does not exist, or an edge has no query or no key.
    CaptureError
        If the model is compiled, its attention holds something that is not understood, or, when the context ends, the model did
        not run inside or a layer ran without being edited.
    """
    require_language_model(subject, "cut_edges")
    count = subject.model.config.get_text_config().num_attention_heads
    chosen: dict[int, list[Edge]] = defaultdict(list)
    for edge in edges:
        heads = range(count) if edge.heads is None else edge.heads
        check_heads(subject, [(edge.layer, head) for head in heads])
        if not (edge.queries and edge.keys):
            raise InputError(
                f"The edge in layer {edge.layer} has no {'keys' if edge.queries else 'queries'}; give one or more."
            )
        chosen[edge.layer].append(edge)
    if not chosen:
        raise InputError("edges is empty; give at least one Edge(layer, queries, keys).")

    def edit(module: nn.Module, call: AttentionCall, layer: int) -> Tensor:
        return without_edges(module, call, chosen[layer])

    listed = [edge for one in chosen.values() for edge in one]
    name = "; ".join(f"layer {edge.layer}: {len(edge.queries)} x {len(edge.keys)} edges cut" for edge in listed)
    with editing(subject, chosen, edit, name=name):
        yield


def without_edges(module: nn.Module, call: AttentionCall, edges: Sequence[Edge]) -> Tensor:
    """(batch, query, head, channel) output in which these edges are missing; what the kernel gave out stays as it is.

    Queries of the call are the last of its keys' positions, so that rows against a cache are found too.
    """
    output, length = call.output.clone(), call.key.shape[2]
    first, group = length - call.query.shape[2], call.query.shape[1] // call.key.shape[1]
    heads = tuple(sorted({head for edge in edges for head in _heads(edge, call)}))
    picked = torch.tensor(heads, device=output.device)
    queries = sorted({row - first for edge in edges for row in edge.queries if first <= row < length})
    for rows in torch.tensor(queries, dtype=torch.long, device=output.device).split(_ROWS_AT_ONCE):
        cut = _cut(call, edges, picked, rows + first)
        changed = cut.any(-1).transpose(0, 1)[..., None]  # (row, head, 1)
        for batch in range(output.shape[0]):
            one = call.of(batch)
            weights = attention_rows(module, one, rows=rows, heads=heads, cut=cut)
            mixed = torch.matmul(weights, one.value[0, picked // group].to(weights.dtype)).transpose(0, 1).to(output)
            place = (batch, rows[:, None], picked)
            output[place] = torch.where(changed, mixed, output[place])
    return output


def _cut(call: AttentionCall, edges: Sequence[Edge], heads: Tensor, rows: Tensor) -> Tensor:
    """(head, row, key) bool: what these rows, by their position in the sequence, may no longer see."""
    keys = torch.arange(call.key.shape[2], device=rows.device)
    cut = torch.zeros((len(heads), len(rows), len(keys)), dtype=torch.bool, device=rows.device)
    for edge in edges:
        parts = [torch.isin(of, torch.tensor(some, device=rows.device)) for of, some in
                 ((heads, _heads(edge, call)), (rows, edge.queries), (keys, edge.keys))]  # fmt: skip
        cut |= parts[0][:, None, None] & parts[1][:, None] & parts[2]
    return cut & (keys != rows[:, None])


def _heads(edge: Edge, call: AttentionCall) -> tuple[int, ...]:
    return tuple(range(call.query.shape[1])) if edge.heads is None else edge.heads
