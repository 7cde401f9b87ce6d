"""DiffusionRecorder: where a diffusion model looks while it denoises: its patches at the words, the words at the patches, ..."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.conditioning import Conditioning, Guidance, PipelineConditioning
from probe.capture.denoisers import Pass
from probe.capture.diffusion_records import assemble_diffusion
from probe.capture.geometry import Preparation
from probe.capture.hooks import watch_forward
from probe.capture.places import Place, places_of
from probe.capture.prompts import Keys
from probe.capture.readings import Reading, Sides
from probe.capture.recordings import Recording
from probe.capture.reproduction import Reproduction, picked_rows
from probe.capture.sdpa import watch_sdpa
from probe.capture.steps import StepStore
from probe.capture.taps import AttentionCall, edits_of
from probe.capture.unets import choose_layers
from probe.capture.weights import attention_rows, index_on
from probe.errors import CaptureError, InputError
from probe.layout import Indices, resolve_indices

__all__ = ["DiffusionRecorder", "require_inside"]

# Query rows of one layer that are checked in a pass, unless all are.
_SAMPLE = 16
# Patches along each side of the even grid from which self-attention is read by default.
_EVEN = 8
# At most this many weights of one layer are recomputed at a time.
_WEIGHTS_AT_ONCE = 2**25

Cells = Sequence[tuple[int, int]]


class DiffusionRecorder(Recording):
    """Watches what denoises in one pipeline for one call of it; a context manager, made by ``probe.record``.

    >>> with probe.record(pipeline, place="cross-attention") as recorder:
    ...     pipeline("a red circle", num_inference_steps=50)
    >>> record = recorder.result()
    >>> record["red circle"].heatmap()

    In cross-attention (Stable Diffusion 1, 2, XL; PixArt) each *patch* spreads 1 over the *words*: start, words, end, and
    "[padding]", the sum over all padding positions. In joint attention (Stable Diffusion 3, Flux) one softmax spans patches and
    words, and there are two maps of a word that are not the same thing: "image to text" holds how much each *patch* looks at the
    word (with "[image]", what it looks at in all patches, each patch spreads 1 over the tokens); "text to image" holds how much the
    *word* looks at each patch (with ``rest``, each word spreads 1). Stable Diffusion 3 reads a prompt twice, with CLIP and with T5:
    its words are there twice, in this order, and a phrase covers both. With guidance there are two halves; the one asked for is
    read, and it is checked to be that one.

    Parameters
    ----------
    pipeline : a live diffusion pipeline, or a ``Conditioning`` of another model that holds such a U-Net.
    place : "cross-attention", patches to words, or "self-attention", patches to patches; in joint attention "image to text", "text
        to image" or "image to image". By default the first that the model has.
    layers : which to record: by number, in the order in which they run, or by the beginning of their names ("mid_block",
        "up_blocks.1", "single_transformer_blocks"); all by default.
    heads : by number; each layer asked for must have them.
    timesteps : "mean" keeps a running mean over all timesteps; "all" keeps every timestep apart.
    guidance : which half of a guided pass is read: the "conditional" one, or the "unconditional" one of the negative prompt.
    patches : (row, col) from which attention to patches is read: latents of a U-Net, patches of a transformer; by default 8 x 8 of
        them, evenly spaced.
    verify : how many rows must rebuild the kernel's own output: a "sample" in every layer, head and timestep, "all", or "off".
    offload : True moves every map to host memory at once.
    preparation : how the picture lies in the latents, where they were made from a picture.

    Raises
    ------
    InputError
        If a layer, block, head or option does not exist.
    CaptureError
        If the denoiser is compiled, or computes attention in a way that cannot be seen.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        place: Place | None = None,
        layers: Indices | str | Sequence[str] = None,
        heads: Indices = None,
        timesteps: Literal["mean", "all"] = "mean",
        guidance: Guidance = "conditional",
        patches: Cells | None = None,
        verify: Literal["sample", "all", "off"] = "sample",
        offload: bool = False,
        preparation: Preparation | None = None,
    ) -> None:
        _require_choice("timesteps", timesteps, ("mean", "all"))
        _require_choice("guidance", guidance, ("conditional", "unconditional"))
        _require_choice("verify", verify, ("sample", "all", "off"))
        self.conditioning: Conditioning = (
            PipelineConditioning(pipeline, guidance) if hasattr(pipeline, "encode_prompt") else pipeline
        )
        self.denoiser = self.conditioning.denoiser
        places = places_of(self.denoiser.module, self.denoiser.family)
        self.place: Place = places[0] if place is None else place  # type: ignore[assignment]
        _require_choice("place", self.place, places)
        if patches is not None and self.place not in ("self-attention", "image to image"):
            raise InputError("patches chooses where self-attention is read; cross-attention is read at every patch.")
        self.timesteps, self.verify, self.offload = timesteps, verify, offload
        self.patches = None if patches is None else _cells(patches, self.denoiser.cell)
        self.given_preparation = preparation
        chosen = choose_layers(self.denoiser.attention(self.place), layers, place=self.place)
        self.layers = {module: name for name, module in chosen}
        self.heads = {module: _heads(name, module, heads) for name, module in chosen}
        super().__init__()
        self._state: Literal["empty", "running", "finished"] = "empty"
        self._begin()

    def _begin(self) -> None:
        """Start a new pass; the conditioning calls it when a prompt comes."""
        if self._state == "finished":
            raise CaptureError(
                "This recorder already holds one pass; use one record() context for each call of the pipeline."
            )
        self._state = "empty"
        self._forward = False
        self.reading: Reading | None = None
        self.cells: tuple[int, int] | None = None
        self.steps: list[int] = []
        self.stores = {module: StepStore(self.timesteps == "mean", self.offload) for module in self.layers}
        self.rests = {module: StepStore(self.timesteps == "mean", self.offload) for module in self.layers}
        self.rebuilt = Reproduction(self.verify)
        self.edits: tuple[str, ...] = ()
        self.dtype: torch.dtype | None = None
        self._row = 0
        self._seen: dict[nn.Module, int] = {}
        self._pending: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}

    def _end(self) -> None:
        """The call that made the passes came to its end."""
        if self.steps and not self._forward:
            self._state = "finished"

    def _attach(self, attached: ExitStack) -> None:
        attached.enter_context(watch_sdpa(self.layers, self._see))
        attached.enter_context(
            watch_forward([self.denoiser.module], before=self._forward_begins, after=self._forward_ends)
        )
        attached.enter_context(self.conditioning.watch(self._begin, self._end))

    def result(self, *, image: Any = None) -> AttentionRecord:
        """The record of the pass, after its certificate has been checked.

        Parameters
        ----------
        image : the generated picture, if its size is to be checked; coordinates are its own pixels.

        Raises
        ------
        CaptureError
            If nothing, or not everything, was recorded.
        CertificateError
            If what was recorded does not rebuild what the model computed.
        InputError
            If the image is not of the size that was generated.
        """
        if self._state == "empty" or not self.steps:
            raise CaptureError(
                "Nothing was recorded: call the pipeline inside the context, the same one and in the same thread."
            )
        if self._state != "finished":
            raise CaptureError("The pass that was being recorded did not come to its end, so there is no record of it.")
        return assemble_diffusion(self, image)

    # Called by hooks ----------------------------------------------------------------------------------------------------

    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (
            not self._mine() or module is not self.denoiser.module
        ):  # a copy made inside the context has copies of the hooks
            return
        given = self.denoiser.read(self.denoiser.arguments(args, kwargs))
        half = self.conditioning.read(given.hidden)
        if half is None:  # of the half that was not asked for
            return
        # Kept pass by pass: by the time of result() an edit has usually ended.
        self.edits = tuple(dict.fromkeys((*self.edits, *edits_of(module.modules()))))
        self._row, keys = half
        self._lay_out(given, keys)
        self._step = given.timestep
        self._seen = dict.fromkeys(self.layers, 0)
        self._pending = {}
        self._forward, self._state = True, "running"

    def _lay_out(self, given: Pass, keys: Keys) -> None:
        """Where words and patches of this pass are; they stay where they were in the passes before."""
        if given.hidden.shape[1] != keys.count or given.batch != given.hidden.shape[0]:
            raise CaptureError(
                f"The denoiser was given {given.batch} rows of latents and text states of shape {tuple(given.hidden.shape)} where "
                f"{keys.count} keys were expected; one picture and one text at a time can be recorded."
            )
        if self.cells not in (None, given.cells):
            raise CaptureError(
                f"The {self.denoiser.cell} changed from {self.cells} to {given.cells} (rows, cols) within one pass."
            )
        self.cells = given.cells
        chosen: tuple[tuple[int, int], ...] = ()
        if self.place in ("self-attention", "image to image"):
            chosen = require_inside(self.patches or _even_cells(given.cells), given.cells, self.denoiser.cell)
        self.reading = Reading(self.place, keys, chosen)

    def _forward_ends(self, module: nn.Module, output: Any) -> None:
        if not self._mine() or module is not self.denoiser.module or not self._forward:
            return
        wrong = [f"{self.layers[one]} ({count} times)" for one, count in self._seen.items() if count != 1]
        if wrong:
            raise CaptureError(
                f"{len(wrong)} of {len(self._seen)} attention modules ran without being seen exactly once, the first {wrong[0]}: "
                "their attention does not go through torch.nn.functional.scaled_dot_product_attention, so it cannot be recorded."
            )
        # Only now, so that a pass that was broken off leaves nothing in the mean.
        for layer, (maps, rest) in self._pending.items():
            self.stores[layer].add(maps)
            if rest is not None:
                self.rests[layer].add(rest)
        self._pending = {}
        self.steps.append(self._step)
        self._forward = False
        if not self.conditioning.under_way():
            self._state = "finished"

    def _see(self, module: nn.Module, call: AttentionCall) -> None:
        if not self._mine() or not self._forward:
            return
        self._seen[module] += 1
        call = _of_batch(call, self._row)
        reading = self.reading
        assert reading is not None  # for the type checker: set when the forward pass began
        sides = self._sides(module, call, reading)
        self.dtype = call.query.dtype
        rows, heads = reading.queries(sides), self.heads[module]
        picked = picked_rows(self.verify, len(rows), sample=_SAMPLE)
        at_once = max(1, _WEIGHTS_AT_ONCE // (len(heads) * sides.keys))
        maps, rests = [], []
        for start in range(0, len(rows), at_once):
            index = index_on(rows[start : start + at_once], call.query.device)
            weights = attention_rows(module, call, rows=index, heads=heads)
            own = [one - start for one in picked if 0 <= one - start < len(index)]
            self.rebuilt.check(self.layers[module], call, weights, rows=index, heads=heads, picked=own)
            maps.append(reading.part(weights, sides))
            rests.append(reading.rest(weights, sides))
        rest = (
            torch.cat([one for one in rests if one is not None], dim=1)[..., None, :] if rests[0] is not None else None
        )
        self._pending[module] = (reading.whole(maps, sides), rest)

    def _sides(self, module: nn.Module, call: AttentionCall, reading: Reading) -> Sides:
        """Where patches and words are in this call; refused unless there is nothing else."""
        assert self.cells is not None  # for the type checker: set when the forward pass began
        queries, keys, text = call.query.shape[2], call.key.shape[2], reading.keys.count
        level, (rows, cols) = self.denoiser.grid(queries - (text if reading.joint else 0), self.cells)
        expected = text if self.place == "cross-attention" else queries
        if keys != expected or call.query.shape[1] != module.heads:
            raise CaptureError(
                f"{self.layers[module]} saw {keys} keys in {call.query.shape[1]} heads where {expected} in {module.heads} were "
                "expected: something else than the words or patches is among its keys, so they cannot be told apart."
            )
        first = bool(self.denoiser.family.text_first)
        return reading.sides(queries=queries, keys=keys, text=text, rows=rows, cols=cols, level=level, text_first=first)


def _of_batch(call: AttentionCall, row: int) -> AttentionCall:
    """The part of a call that belongs to one row of its batch."""
    one = slice(row, row + 1)
    mask = call.mask[one] if isinstance(call.mask, Tensor) and call.mask.shape[0] > 1 else call.mask
    return replace(
        call, query=call.query[one], key=call.key[one], value=call.value[one], output=call.output[one], mask=mask
    )


def _heads(name: str, module: Any, heads: Indices) -> tuple[int, ...]:
    try:
        return resolve_indices(heads, module.heads, what="head")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _cells(patches: Any, what: str) -> tuple[tuple[int, int], ...]:
    try:
        cells = tuple((operator.index(row), operator.index(col)) for row, col in patches)
    except (TypeError, ValueError):
        cells = ()
    if not cells or len(set(cells)) < len(cells) or min(min(one) for one in cells) < 0:
        raise InputError(f"patches must be different (row, col) {what}, such as [(3, 4), (5, 0)]; found {patches!r}.")
    return cells


def _even_cells(latent: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    axes = []
    for length in latent:
        count = min(length, _EVEN)
        axes.append([(2 * i + 1) * length // (2 * count) for i in range(count)])
    return tuple((row, col) for row in axes[0] for col in axes[1])


def require_inside(
    chosen: tuple[tuple[int, int], ...], cells: tuple[int, int], what: str
) -> tuple[tuple[int, int], ...]:
    """The same cells, if there are this many (rows, cols) of them; ``InputError`` if not."""
    for one in chosen:
        if one[0] >= cells[0] or one[1] >= cells[1]:
            raise InputError(f"patches: {one} does not exist in {what} of {cells[0]} rows and {cells[1]} cols.")
    return chosen


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}.")
