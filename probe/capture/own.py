"""ModuleRecorder: the attention of any PyTorch module, named by a pattern, seen through whichever kernel it really calls."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from probe.attention import AttentionRecord
from probe.capture.hooks import require_uncompiled, watch_forward
from probe.capture.multihead import MultiheadCall, multihead_error, multihead_rows, watch_multihead
from probe.capture.own_modules import OwnLayer, find_layers
from probe.capture.own_records import assemble_own
from probe.capture.recordings import Recording
from probe.capture.reduce import RowStore
from probe.capture.reproduction import Reproduction, Verify
from probe.capture.sdpa import watch_sdpa
from probe.capture.taps import AttentionCall, edits_of, watch_registry
from probe.capture.weights import ROWS_AT_ONCE, attention_rows, index_on, rows_at_once
from probe.errors import CaptureError, InputError
from probe.layout import Indices, Layout, resolve_indices

__all__ = ["ModuleRecorder", "own_recorder"]


@dataclass
class Seen:
    """What one module showed through one tap: how often, and of its last call the rows and how well they rebuild its output."""

    store: RowStore
    rows: list[int]
    kernel: str
    rebuilt: Reproduction
    calls: int = 0


class ModuleRecorder(Recording):
    """Watches any PyTorch module for one forward pass; a context manager, made by ``probe.record(module, attention=...)``.

    >>> layout = Layout.of_patches(PatchGrid.from_affine((224, 224), shape=(14, 14), patch_size=16), before=1)
    >>> with probe.record(module, attention="blocks.*.attn", layout=layout) as recorder:
    ...     module(pixels)
    >>> record = recorder.result()

    Three kernels are known, and which one a layer calls is seen while it runs: transformers' attention functions, torch's own
    ``scaled_dot_product_attention``, and ``nn.MultiheadAttention``. The certificate shows that what is recorded rebuilds what the
    layer gave out, but nobody can know where *your* patches are: that is what ``layout`` says.

    Parameters
    ----------
    model : the module whose forward is one pass.
    attention : a shell pattern of the names of its attention modules, or of their classes; ``{head}`` stands for the number of a
        head where each head is a module of its own. See ``find_layers``.
    layout : where the patches are among the keys, from ``probe.layout``.
    layers, heads : which to record, by number; all by default. Each layer asked for must have these heads.
    queries : which rows are read: "text", every query that is no patch (and no padding); "patches", the first picture's patches; or
        numbers of query rows. Where there are other queries than keys (a decoder that looks at an encoded picture), "text" is all.
    offload : True moves every row to host memory at once.
    verify : how many rows must rebuild the kernel's own output: a "sample" in every layer and head, "all", or "off".

    Raises
    ------
    InputError
        If nothing fits the pattern, or a layer or option does not exist.
    CaptureError
        If the model is compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        attention: str,
        layout: Layout,
        layers: Indices = None,
        heads: Indices = None,
        queries: Literal["text", "patches"] | Sequence[int] = "text",
        offload: bool = False,
        verify: Verify = "sample",
    ) -> None:
        if verify not in ("sample", "all", "off"):
            raise InputError(f"verify must be one of 'sample', 'all', 'off'; found {verify!r}.")
        if not isinstance(layout, Layout):
            raise InputError(
                "layout must say where the patches are among the keys, such as probe.layout.Layout.of_patches(grid, before=1); "
                f"found {type(layout).__name__}."
            )
        if not isinstance(model, nn.Module):
            raise InputError(f"attention= names modules of a torch.nn.Module, found a {type(model).__name__}.")
        require_uncompiled(model)
        found = find_layers(model, attention)
        self.model, self.layout, self.pattern = model, layout, attention
        self.layers: list[OwnLayer] = [found[i] for i in resolve_indices(layers, len(found), what="layer")]
        self.wanted_heads, self.queries = heads, _queries(queries)
        self.offload, self.verify = offload, verify
        self._owner = {module: layer for layer in self.layers for module in layer.modules}
        super().__init__()
        self._state: Literal["empty", "running", "finished"] = "empty"
        self._reset()

    def _reset(self) -> None:
        self.seen: dict[nn.Module, dict[str, Seen]] = {}
        self.dtype: torch.dtype | None = None
        self.edits: tuple[str, ...] = ()

    def _attach(self, attached: ExitStack) -> None:
        multihead = [one for one in self._owner if isinstance(one, nn.MultiheadAttention)]
        others = [one for one in self._owner if not isinstance(one, nn.MultiheadAttention)]
        attached.enter_context(watch_registry(others, self._see_registry))
        attached.enter_context(watch_sdpa(others, self._see_sdpa))
        attached.enter_context(watch_multihead(multihead, self._see_multihead))
        attached.enter_context(watch_forward([self.model], before=self._pass_begins, after=self._pass_ends))

    def result(self, *, image: Any = None) -> AttentionRecord:
        """The record of the pass, after its certificate has been checked.

        Parameters
        ----------
        image : the picture, if its size is to be held against that of the layout's grid.

        Raises
        ------
        CaptureError
            If nothing, or not everything, was recorded.
        CertificateError
            If what was recorded does not rebuild what the module computed.
        InputError
            If a head does not exist, or the image is not of the layout's size.
        """
        if self._state != "finished":
            raise CaptureError(
                "Nothing was recorded: the module did not run to its end inside the context, the same one and in the same thread."
            )
        return assemble_own(self, image)

    def shown(self, module: nn.Module) -> Seen:
        """What a module showed through the tap that it called: the outer one, since transformers' functions call torch's."""
        taps = self.seen[module]
        return taps.get("registry") or next(iter(taps.values()))

    # Called by hooks ----------------------------------------------------------------------------------------------------

    def _pass_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._mine() or module is not self.model:  # a copy made inside the context has copies of the hooks
            return
        if self._state == "finished":
            raise CaptureError("This recorder already holds one pass; use one record() context for each forward.")
        self._reset()
        self._state = "running"

    def _pass_ends(self, module: nn.Module, output: Any) -> None:
        if not self._running() or module is not self.model:
            return
        for one, layer in self._owner.items():
            count = self.shown(one).calls if self.seen.get(one) else 0
            what = f"{layer.name} ({type(one).__name__})"
            if count == 0:
                raise CaptureError(
                    f"{what} ran no attention kernel that is known: it computes its softmax itself, or did not run at all. Let it "
                    "call torch.nn.functional.scaled_dot_product_attention (looked up there at each call), or name the module that "
                    "does."
                )
            if count > 1:
                raise CaptureError(
                    f"{what} called attention {count} times in one pass, so its rows have no one meaning; name the modules inside "
                    "it that call it once each."
                )
        self._state = "finished"

    def _see_registry(self, module: nn.Module, call: AttentionCall) -> None:
        self._see(module, call, "registry")

    def _see_sdpa(self, module: nn.Module, call: AttentionCall) -> None:
        self._see(module, call, "sdpa")

    def _see(self, module: nn.Module, call: AttentionCall, tap: str) -> None:
        if not self._running():
            return
        heads = tuple(range(call.query.shape[1]))
        seen = self._begin_call(module, tap, call.kernel, queries=call.query.shape[2], keys=call.key.shape[2])
        self.dtype = call.query.dtype
        kept = len(self._owner) * len(heads) * len(seen.rows) * len(self.layout.image)
        at_once = rows_at_once(call, len(heads), kept=kept)
        for start in range(0, len(seen.rows), at_once):
            rows = seen.rows[start : start + at_once]
            index = index_on(rows, call.query.device)
            weights = attention_rows(module, call, rows=index, heads=heads)
            seen.store.add(weights, rows)
            seen.rebuilt.check("", call, weights, rows=index, heads=heads)

    def _see_multihead(self, module: nn.Module, call: MultiheadCall) -> None:
        if not self._running() or module not in self._owner:  # a copy made inside the context has copies of the hooks
            return
        kernel = "torch.nn.MultiheadAttention"
        seen = self._begin_call(module, "multihead", kernel, queries=call.query.shape[1], keys=call.key.shape[1])
        self.dtype = call.query.dtype
        for start in range(0, len(seen.rows), ROWS_AT_ONCE):
            rows = seen.rows[start : start + ROWS_AT_ONCE]
            index = index_on(rows, call.query.device)
            weights = multihead_rows(module, call, rows=index)
            seen.store.add(weights, rows)
            if self.verify != "off":  # all of these rows: each call of the module gives them with all heads
                seen.rebuilt.note("", multihead_error(module, call, weights, rows=index), len(rows))

    # Helpers ------------------------------------------------------------------------------------------------------------

    def _running(self) -> bool:
        return self._mine() and self._state == "running"

    def _begin_call(self, module: nn.Module, tap: str, kernel: str, *, queries: int, keys: int) -> Seen:
        """Where the rows of this call go; the keys must be those of the layout."""
        name, layout = self._owner[module].name, self.layout
        if keys != layout.prompt_length:
            raise CaptureError(
                f"{name} saw {keys} keys where the layout has {layout.prompt_length} positions, so columns cannot be matched to "
                "patches; give the layout of what this layer attends to."
            )
        self.edits = tuple(dict.fromkeys((*self.edits, *edits_of([module]))))
        taps = self.seen.setdefault(module, {})
        calls = taps[tap].calls if tap in taps else 0
        rows, rebuilt = self._rows(name, queries, keys), Reproduction(self.verify)
        taps[tap] = Seen(RowStore(layout, self.offload), rows, kernel, rebuilt, calls + 1)
        return taps[tap]

    def _rows(self, name: str, queries: int, keys: int) -> list[int]:
        """The query rows that are read."""
        if self.queries == "patches":
            rows = list(self.layout.views[0].positions)
        elif self.queries == "text":
            taken = {one for view in self.layout.views for one in view.positions} | set(self.layout.padding)
            rows = [one for one in range(queries) if queries != keys or one not in taken]
        else:
            rows = list(self.queries)  # type: ignore[arg-type]
        if not rows or max(rows) >= queries:
            asked = f"row {max(rows)}" if rows else "no row at all"
            raise InputError(
                f"queries={self.queries!r} asks for {asked}, but {name} has {queries} query rows; give numbers of rows, "
                '"patches" or "text".'
            )
        return rows


def own_recorder(
    model: Any, attention: str | None, layout: Layout | None, *, place: str | None, **options: Any
) -> ModuleRecorder:
    """The recorder of a module that is of no known family, after a look at what was asked for.

    Raises
    ------
    InputError
        If the pattern or the layout is missing, or an option does not exist.
    """
    if attention is None or layout is None:
        raise InputError(
            "attention= and layout= go together: the pattern says which modules are attention, the layout where patches are among "
            "their keys."
        )
    known = ("layers", "heads", "offload", "verify", "queries")
    unknown = [name for name in options if name not in known] + (["place"] if place is not None else [])
    if unknown:
        raise InputError(f"{unknown[0]}= is no option with attention=, which takes layout, {', '.join(known)}.")
    subject = hasattr(model, "family") and hasattr(model, "processor")
    return ModuleRecorder(model.model if subject else model, attention=attention, layout=layout, **options)


def _queries(wanted: Any) -> str | tuple[int, ...]:
    if isinstance(wanted, str):
        if wanted not in ("text", "patches"):
            raise InputError(f"queries must be 'text', 'patches' or numbers of query rows; found {wanted!r}.")
        return wanted
    try:
        rows = tuple(operator.index(one) for one in wanted)
    except TypeError:
        rows = ()
    if not rows or len(set(rows)) < len(rows) or min(rows) < 0:
        raise InputError(f"queries must be different numbers of query rows from 0; found {wanted!r}.")
    return rows
