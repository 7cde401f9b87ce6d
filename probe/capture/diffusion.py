"""DiffusionRecorder: where the patches of a U-Net look while it denoises: at the words, or at each other."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.conditioning import Conditioning, Guidance, Keys, PipelineConditioning
from probe.capture.diffusion_records import assemble_diffusion
from probe.capture.geometry import Preparation
from probe.capture.hooks import require_uncompiled, watch_forward
from probe.capture.recordings import Recording
from probe.capture.sdpa import watch_sdpa
from probe.capture.steps import StepStore
from probe.capture.taps import AttentionCall, edits_of
from probe.capture.unets import Place, choose_layers, grid_shape, level_of, unet_attention
from probe.capture.weights import attention_rows, reproduction_error
from probe.errors import CaptureError, InputError
from probe.layout import Indices, resolve_indices

__all__ = ["DiffusionRecorder", "require_inside"]

# Query rows of one layer that are checked in a pass, unless all are.
_SAMPLE = 16
# Patches along each side of the even grid from which self-attention is read by default.
_EVEN = 8

Cells = Sequence[tuple[int, int]]


class DiffusionRecorder(Recording):
    """Watches the U-Net of one pipeline for one call of it; a context manager, made by ``probe.record``.

    >>> with probe.record(pipeline, place="cross-attention") as recorder:
    ...     pipeline("a red circle", num_inference_steps=50)
    >>> record = recorder.result()
    >>> record["red circle"].heatmap()

    In cross-attention each *patch* spreads 1 over the *words*: start, words, end, and "[padding]", the sum over all padding
    positions. With guidance the batch holds two halves; the one asked for is read, and it is checked to be that one.

    Parameters
    ----------
    pipeline : a live Stable Diffusion pipeline, or a ``Conditioning`` of another model that holds such a U-Net.
    place : "cross-attention", patches to words, or "self-attention", patches to patches.
    layers : which to record: by number, in the order in which they run, or by the beginning of their names ("mid_block",
        "up_blocks.1"); all by default.
    heads : by number; each layer asked for must have them.
    timesteps : "mean" keeps a running mean over all timesteps; "all" keeps every timestep apart.
    guidance : which half of a guided batch is read: the "conditional" one, or the "unconditional" one of the negative prompt.
    patches : (row, col) latents from which self-attention is read; by default 8 x 8 of them, evenly spaced.
    verify : how many rows must rebuild the kernel's own output: a "sample" in every layer, head and timestep, "all", or "off".
    offload : True moves every map to host memory at once.
    preparation : how the picture lies in the latents, where they were made from a picture.

    Raises
    ------
    InputError
        If a layer, block, head or option does not exist.
    CaptureError
        If the U-Net is compiled, or computes attention in a way that cannot be seen.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        place: Place = "cross-attention",
        layers: Indices | str | Sequence[str] = None,
        heads: Indices = None,
        timesteps: Literal["mean", "all"] = "mean",
        guidance: Guidance = "conditional",
        patches: Cells | None = None,
        verify: Literal["sample", "all", "off"] = "sample",
        offload: bool = False,
        preparation: Preparation | None = None,
    ) -> None:
        _require_choice("place", place, ("cross-attention", "self-attention"))
        _require_choice("timesteps", timesteps, ("mean", "all"))
        _require_choice("guidance", guidance, ("conditional", "unconditional"))
        _require_choice("verify", verify, ("sample", "all", "off"))
        if patches is not None and place != "self-attention":
            raise InputError("patches chooses where self-attention is read; cross-attention is read at every patch.")
        self.conditioning: Conditioning = (
            PipelineConditioning(pipeline, guidance) if hasattr(pipeline, "encode_prompt") else pipeline
        )
        self.unet: Any = self.conditioning.unet
        require_uncompiled(self.unet)
        self.place, self.timesteps, self.verify, self.offload = place, timesteps, verify, offload
        self.patches = None if patches is None else _cells(patches)
        self.given_preparation = preparation
        chosen = choose_layers(unet_attention(self.unet, place), layers, place=place)
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
        self.keys: Keys | None = None
        self.latent: tuple[int, int] | None = None
        self.steps: list[int] = []
        self.stores = {module: StepStore(self.timesteps == "mean", self.offload) for module in self.layers}
        self.checked_rows, self.max_error, self.worst = 0, 0.0, ""
        self.edits: tuple[str, ...] = ()
        self.dtype: torch.dtype | None = None
        self._row = 0
        self.cells: tuple[tuple[int, int], ...] = ()
        self._seen: dict[nn.Module, int] = {}
        self._pending: dict[nn.Module, Tensor] = {}

    def _end(self) -> None:
        """The call that made the passes came to its end."""
        if self.steps and not self._forward:
            self._state = "finished"

    def _attach(self, attached: ExitStack) -> None:
        attached.enter_context(watch_sdpa(self.layers, self._see))
        attached.enter_context(watch_forward([self.unet], before=self._forward_begins, after=self._forward_ends))
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
        if not self._mine() or module is not self.unet:  # a copy made inside the context has copies of the hooks
            return
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        # Kept pass by pass: by the time of result() an edit has usually ended.
        self.edits = tuple(dict.fromkeys((*self.edits, *edits_of(module.modules()))))
        sample, hidden = given["sample"], given["encoder_hidden_states"]
        self._row, self.keys = self.conditioning.read(hidden)
        if hidden.shape[1] != self.keys.count or sample.shape[0] != hidden.shape[0]:
            raise CaptureError(
                f"The U-Net was given latents of shape {tuple(sample.shape)} and text states of shape {tuple(hidden.shape)} where "
                f"{self.keys.count} keys were expected; one picture and one text at a time can be recorded."
            )
        latent = (int(sample.shape[-2]), int(sample.shape[-1]))
        if self.latent not in (None, latent):
            raise CaptureError(f"The latents changed from {self.latent} to {latent} (rows, cols) within one pass.")
        self.latent = latent
        if self.place == "self-attention":
            self.cells = require_inside(self.patches or _even_cells(latent), latent)
        self._step = _timestep(given["timestep"])
        self._seen = dict.fromkeys(self.layers, 0)
        self._pending = {}
        self._forward, self._state = True, "running"

    def _forward_ends(self, module: nn.Module, output: Any) -> None:
        if not self._mine() or module is not self.unet or not self._forward:
            return
        wrong = [f"{self.layers[one]} ({count} times)" for one, count in self._seen.items() if count != 1]
        if wrong:
            raise CaptureError(
                f"{len(wrong)} of {len(self._seen)} attention modules ran without being seen exactly once, the first {wrong[0]}: "
                "their attention does not go through torch.nn.functional.scaled_dot_product_attention, so it cannot be recorded."
            )
        # Only now, so that a pass that was broken off leaves nothing in the mean.
        for layer, maps in self._pending.items():
            self.stores[layer].add(maps)
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
        assert self.latent is not None  # for the type checker: set when the forward pass began
        queries, keys = call.query.shape[2], call.key.shape[2]
        level = level_of(queries, self.latent)
        rows, cols = grid_shape(self.latent, level)
        assert self.keys is not None  # for the type checker: set when the forward pass began
        expected = self.keys.count if self.place == "cross-attention" else queries
        if keys != expected or call.query.shape[1] != module.heads:
            raise CaptureError(
                f"{self.layers[module]} saw {keys} keys in {call.query.shape[1]} heads where {expected} in {module.heads} were "
                "expected: something else than the words or patches is among its keys, so they cannot be told apart."
            )
        chosen = list(range(queries))
        if self.place == "self-attention":
            chosen = [(row >> level) * cols + (col >> level) for row, col in self.cells]
        index = torch.tensor(chosen, device=call.query.device)
        weights = attention_rows(module, call, rows=index, heads=self.heads[module])
        self._check(module, call, weights, index)
        if self.place == "cross-attention":
            weights = torch.stack([weights[..., list(places)].sum(-1) for places in self.keys.positions], dim=1)
        self._pending[module] = rearrange(weights, "head token (row col) -> head token row col", row=rows, col=cols)

    def _check(self, module: nn.Module, call: AttentionCall, weights: Tensor, rows: Tensor) -> None:
        """Hold a sample of the rows, or all, against what the kernel gave out."""
        self.dtype = call.query.dtype
        if self.verify == "off":
            return
        count = len(rows)
        picked = list(range(count))
        if self.verify == "sample" and count > _SAMPLE:
            picked = sorted({round(i * (count - 1) / (_SAMPLE - 1)) for i in range(_SAMPLE)})
        index = torch.tensor(picked, device=rows.device)
        error = reproduction_error(call, weights[:, index], rows=rows[index], heads=self.heads[module])
        self.checked_rows += len(picked)
        if error > self.max_error:
            self.max_error, self.worst = error, self.layers[module]


def _of_batch(call: AttentionCall, row: int) -> AttentionCall:
    """The part of a call that belongs to one row of its batch."""
    one = slice(row, row + 1)
    mask = call.mask[one] if isinstance(call.mask, Tensor) and call.mask.shape[0] > 1 else call.mask
    return replace(
        call, query=call.query[one], key=call.key[one], value=call.value[one], output=call.output[one], mask=mask
    )


def _timestep(given: Any) -> int:
    """The scheduler's number of a pass; schedules that lie between its numbers are rounded."""
    numbers = {round(float(one)) for one in torch.as_tensor(given).flatten()}
    if len(numbers) != 1:
        raise CaptureError(
            f"The U-Net was given the timesteps {sorted(numbers)} in one pass; one at a time can be recorded."
        )
    return numbers.pop()


def _heads(name: str, module: Any, heads: Indices) -> tuple[int, ...]:
    try:
        return resolve_indices(heads, module.heads, what="head")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _cells(patches: Any) -> tuple[tuple[int, int], ...]:
    try:
        cells = tuple((operator.index(row), operator.index(col)) for row, col in patches)
    except (TypeError, ValueError):
        cells = ()
    if not cells or len(set(cells)) < len(cells) or min(min(one) for one in cells) < 0:
        raise InputError(f"patches must be different (row, col) latents, such as [(3, 4), (5, 0)]; found {patches!r}.")
    return cells


def _even_cells(latent: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    axes = []
    for length in latent:
        count = min(length, _EVEN)
        axes.append([(2 * i + 1) * length // (2 * count) for i in range(count)])
    return tuple((row, col) for row in axes[0] for col in axes[1])


def require_inside(cells: tuple[tuple[int, int], ...], latent: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The same cells, if latents of this (rows, cols) have them; ``InputError`` if not."""
    for cell in cells:
        if cell[0] >= latent[0] or cell[1] >= latent[1]:
            raise InputError(f"patches: {cell} does not exist in latents of {latent[0]} rows and {latent[1]} cols.")
    return cells


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}.")
