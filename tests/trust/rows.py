"""Recorded rows held against those of the library's own eager attention, column by column."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from probe.attention import AttentionRecord
from probe.capture.encoders import EncoderRecorder
from probe.capture.weights import TOLERANCES
from probe.models import Subject
from tests.capture.reference import exact_softmax
from tests.trust.ledger import Line

__all__ = [
    "ALLOWED",
    "CERTIFIED",
    "PARITY",
    "SUMS",
    "columns_of",
    "count_certificate",
    "count_rows",
    "count_same",
    "eager_encoder",
    "in_dtype",
    "worst_rows",
]

PARITY = "<= 1e-6 float32, 1e-12 float64, 2e-3 float16, 1e-2 bfloat16, 100 % of rows"
CERTIFIED = "<= 1e-5 float32, 2e-2 bfloat16; ids, columns and counts the model's own"
SUMS = "|sum - 1| <= 1e-5, masked exactly 0, no NaN"

#: Recorded rows hold float32 sums in another order than the kernel's; half precision also rounds the reference itself.
ALLOWED = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def in_dtype(subject: Subject, dtype: torch.dtype) -> Subject:
    """The same subject in that number type. In half precision with smaller logits, since the reference rounds them to as few bits:
    heads differ by more than is allowed all the same.
    """
    if dtype in (torch.float16, torch.bfloat16):
        with torch.no_grad():
            for name, one in subject.model.named_parameters():
                if any(part in name for part in ("q_proj", "k_proj", "query", "key", "qkv", "in_proj")):
                    one.mul_(0.6)
    subject.model.to(dtype)
    return subject


def columns_of(record: AttentionRecord) -> Tensor:
    """(layer, head, token, cell): the cells of all views of a record, one view after the other."""
    names = list(dict.fromkeys(one.view for one in record.layers))
    parts = [[one.values[0].flatten(-2) for one in record.layers if one.view == name] for name in names]
    return torch.cat([torch.stack(one) for one in parts], dim=-1)


def worst_rows(found: Tensor, reference: Tensor, *, in_order: bool) -> Tensor:
    """(layer, head, token) largest difference of each row from the reference's (layer, head, token, key).

    ``in_order``: cells are the keys in their order. Where tiles are put together they are in another one; then each cell must be
    one key in all rows of all layers and heads at once, and no two cells the same key.
    """
    reference = reference.to(found.dtype)
    if in_order:
        return (found - reference).abs().amax(-1)
    cells, keys = found.flatten(0, -2).T, reference.flatten(0, -2).T
    nearest = torch.cdist(cells.double(), keys.double(), p=torch.inf).argmin(1)
    if len(set(nearest.tolist())) < len(nearest):
        return torch.full(found.shape[:-1], torch.inf)
    return (found - reference[..., nearest]).abs().amax(-1)


def count_rows(line: Line, found: Tensor, reference: Tensor, *, in_order: bool, dtype: torch.dtype, what: str) -> None:
    """Count every row of every layer and head as a trial of parity; none counts as right where heads are alike."""
    heads_differ = float((reference[:, 0] - reference[:, 1]).abs().max()) > 0.02
    off = worst_rows(found, reference, in_order=in_order)
    line.every((off <= ALLOWED[dtype]) & heads_differ, what=f"{what}: {float(off.max()):.1e}")


def count_certificate(line: Line, record: AttentionRecord, *, rows: int, dtype: torch.dtype, what: str) -> None:
    """Count a record's certificate as right if it holds, for as many rows, tokens and patches as there really are."""
    seen, tolerance = record.certificate, TOLERANCES[dtype]
    sizes = (rows, len(record.tokens), columns_of(record).shape[-1])
    right = seen.passed and seen.max_error <= tolerance and (seen.rows, seen.tokens, seen.patches) == sizes
    line.trial(right, silent=True, what=f"{what}: {seen}")


def count_same(line: Line, found: AttentionRecord, expected: AttentionRecord, *, allowed: float, what: str) -> None:
    """Count every row of every layer and head as a trial: of one record, against that of another way to the same pass."""
    parts = ("token_ids", "tokens", "spans", "text", "query_row", "image_size")
    names = [[(one.name, one.view, one.grid.shape) for one in record.layers] for record in (found, expected)]
    same = all(getattr(found, part) == getattr(expected, part) for part in parts) and names[0] == names[1]
    if not line.trial(same, silent=True, what=f"{what}: other tokens, layers or sizes"):
        return
    for one, other in zip(found.layers, expected.layers, strict=True):
        edges = [(grid.row_edges, grid.col_edges) for grid in (one.grid, other.grid)]
        off = (one.values - other.values).abs().amax((-1, -2)).maximum((one.rest - other.rest).abs().amax(-1))
        mean = (one.token_mean - other.token_mean).abs().max()
        right = (off <= allowed) & (mean <= allowed) & (edges[0] == edges[1])
        line.every(right, what=f"{what} {one.name}: {float(off.max()):.1e}")


def eager_encoder(recorder: EncoderRecorder, run: Any) -> list[Tensor]:
    """(head, query, key) of every layer that the recorder watches, from an eager copy of the encoder.

    ``run(tower, **options)`` encodes the picture. Each layer of the copy is given the input that it has in the encoder itself,
    whose kernel rounds differently on the way there.
    """
    tower = recorder.tower
    twin = copy.deepcopy(tower)
    twin.set_attn_implementation("eager")
    names = {one: name for name, one in tower.named_modules()}
    inward: dict[str, tuple[Any, dict[str, Any]]] = {}
    handles = []
    for module in recorder.layers:

        def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            inward[names[module]] = args, kwargs

        def give(module: Any, args: Any, kwargs: dict[str, Any], name: str = names[module]) -> Any:
            given, named = inward[name]
            same = {one: named[one] for one in named if one == "hidden_states"}
            return given or args, kwargs | same

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        handles.append(twin.get_submodule(names[module]).register_forward_pre_hook(give, with_kwargs=True))
    holder = Subject(twin, None, recorder.family, "eager")
    with torch.inference_mode(), exact_softmax(holder):
        run(tower)
        found = run(twin, output_attentions=True).attentions
    for one in handles:
        one.remove()
    return [one[0] for one in found]
