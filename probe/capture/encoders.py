"""EncoderRecorder: where an image encoder looks, from its class token, from its patches or from the query that pools them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.assemble import make_source
from probe.capture.geometry import Preparation, checked_preparation, processed_picture
from probe.capture.hooks import require_uncompiled, watch_forward
from probe.capture.modules import class_and_registers, encoder_modules, image_encoder, patch_side
from probe.capture.multihead import MultiheadCall, multihead_error, multihead_rows, watch_multihead
from probe.capture.recordings import Recording
from probe.capture.reduce import RowStore
from probe.capture.reproduction import Reproduction
from probe.capture.taps import AttentionCall, watch_registry
from probe.capture.weights import attention_rows, index_on, rows_at_once
from probe.errors import CaptureError, InputError
from probe.families import family_of
from probe.layout import Indices, Layout, PatchGrid, View, resolve_indices
from probe.provenance import Certificate

__all__ = ["EncoderRecorder", "has_class_token"]


class EncoderRecorder(Recording):
    """Watches the image encoder of one model for one pass over one image; a context manager.

    >>> with EncoderRecorder(model, processor) as recorder:
    ...     model.get_image_features(**inputs)
    >>> record = recorder.result(image=image)

    An image encoder has no text to look from. What it has: the class token of CLIP and of the DINOs, the row that becomes the
    image's embedding; SigLIP's pooling head, in which a learned query gathers the patches in one last layer; and the patches
    themselves. What is looked at in register tokens counts to ``rest``, as "other views". Pictures of other sizes than the encoder
    was trained on, for which it interpolates its positions, have grids of their own.

    Parameters
    ----------
    model, processor : CLIP, SigLIP, DINOv2, DINOv3, ViT, or a model that has such an encoder inside; and its processor.
    layers, heads : which to record, by number; all by default.
    queries : "class token" (in SigLIP, which has none, the pooling query); or numbers of patches, row by row from 0.
    offload : True moves every row to host memory at once.
    verify : how many rows must rebuild the kernel's own output: a "sample" in every layer and head, "all", or "off".

    Raises
    ------
    CaptureError
        If the model has no encoder of a known family, or is compiled.
    InputError
        If a layer, head or option does not exist.
    """

    #: Over what a row sums to 1, and how it is seen.
    softmax_over: Literal["sequence", "patches"] = "sequence"
    tap = "transformers attention functions"

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        layers: Indices = None,
        heads: Indices = None,
        queries: Literal["class token"] | Sequence[int] = "class token",
        offload: bool = False,
        verify: Literal["sample", "all", "off"] = "sample",
    ) -> None:
        if verify not in ("sample", "all", "off"):
            raise InputError(f"verify must be one of 'sample', 'all', 'off'; found {verify!r}.")
        if isinstance(queries, str) and queries != "class token":
            raise InputError(
                f"queries={queries!r} cannot be asked of an image encoder, which reads no text; give 'class token' or numbers of "
                "patches."
            )
        require_uncompiled(model)
        self.model, self.processor, self.family = model, processor, family_of(model)
        self.queries, self.offload, self.verify = queries, offload, verify
        prefix, self.tower, _ = image_encoder(model)
        self.pooling = queries == "class token" and not has_class_token(self.tower)
        found = [_pooling_query(prefix, self.tower)] if self.pooling else encoder_modules(model)
        chosen = resolve_indices(layers, len(found), what="layer")
        self.layers = {module: name for name, module in (found[i] for i in chosen)}
        self.heads = resolve_indices(heads, self.tower.config.num_attention_heads, what="head")
        super().__init__()
        self._state: Literal["empty", "running", "finished"] = "empty"
        self.pixels: Tensor | None = None
        self.layout: Layout | None = None
        self.stores: dict[nn.Module, RowStore] = {}
        self.rebuilt = Reproduction(self.verify)
        self.kernel = ""
        self.dtype: torch.dtype | None = None
        self._seen: dict[nn.Module, int] = {}

    def _attach(self, attached: ExitStack) -> None:
        if self.pooling:
            attached.enter_context(watch_multihead(self.layers, self._see_pooling))
        else:
            attached.enter_context(watch_registry(self.layers, self._see))
        attached.enter_context(watch_forward([self.tower], before=self._pass_begins, after=self._pass_ends))

    def result(self, *, image: Any = None) -> AttentionRecord:
        """The record of the pass, after its certificate has been checked.

        Parameters
        ----------
        image : the picture that the processor was given (path, PIL image or array). With it, the grid lies in the original
            image's pixels, and the picture is checked against what the encoder saw.

        Raises
        ------
        CaptureError
            If nothing, or not everything, was recorded.
        CertificateError
            If what was recorded does not rebuild what the model computed.
        InputError
            If the image is not the one that the encoder saw.
        """
        if self._state != "finished" or self.pixels is None:
            raise CaptureError(
                "Nothing was recorded: the image encoder did not run to its end inside the context, on the same model and in the "
                "same thread."
            )
        certificate = self._certificate()
        seen = _as_processed(self.pixels, self.model.config)
        patch = patch_side(self.tower)
        preparation = checked_preparation(self.processor, image, seen=seen, family=self.family, patch=patch)
        grid = preparation.grid(patch)
        tokens, kind = self._tokens(grid)
        return AttentionRecord(
            layers=tuple(self._layer(module, name, grid) for module, name in self.layers.items()),
            quantity="attention",
            query_kind=kind,
            tokens=tokens,
            token_ids=(-1,) * len(tokens),
            spans=((0, 0),) * len(tokens),
            text="",
            image_size=preparation.image_size,
            softmax_over=self.softmax_over,
            query_row=None,
            certificate=certificate,
            source=make_source(
                self.model,
                self.family,
                tap="torch.nn.MultiheadAttention, asked again" if self.pooling else self.tap,
                kernel=self.kernel,
                dtype=self.dtype,
                preparation=preparation.steps,
            ),
        )

    # Called by hooks ----------------------------------------------------------------------------------------------------

    def _pass_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._mine() or module is not self.tower:  # a copy made inside the context has copies of the hooks
            return
        if self._state == "finished":
            raise CaptureError("This recorder already holds one pass; use one record() context for each image.")
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        pixels = processed_picture(given, patch_side(module))
        grid = Preparation.unknown((int(pixels.shape[-2]), int(pixels.shape[-1]))).grid(patch_side(module))
        classes, registers = class_and_registers(self.tower)
        count, first = grid.shape[0] * grid.shape[1], classes + registers
        if not isinstance(self.queries, str):
            self.queries = resolve_indices(tuple(self.queries), count, what="patch")
        view = View("image 0", grid, tuple(range(first, first + count)))
        other = tuple(range(classes, first))
        # A picture that comes as a row of patches has padding behind them.
        length = first + (count if given.get("spatial_shapes") is None else int(given["pixel_values"].shape[1]))
        padding = tuple(range(first + count, length))
        self.layout = Layout((view,), length, padding, bos=0 if classes else None, other=other)
        self.pixels = pixels.detach()
        self.stores, self._seen = {}, dict.fromkeys(self.layers, 0)
        self.rebuilt = Reproduction(self.verify)
        self._state = "running"

    def _pass_ends(self, module: nn.Module, output: Any) -> None:
        if not self._mine() or module is not self.tower:
            return
        wrong = [f"{self.layers[one]} ({count} times)" for one, count in self._seen.items() if count != 1]
        if wrong:
            raise CaptureError(
                f"{len(wrong)} of {len(self._seen)} attention modules ran without being seen exactly once, the first {wrong[0]}: "
                "their attention cannot be recorded."
            )
        self._state = "finished"

    def _see(self, module: nn.Module, call: AttentionCall) -> None:
        if not self._running():
            return
        self.kernel, self.dtype = call.kernel, call.query.dtype
        first, rows = self._begin_layer(module, call.key.shape[2])
        kept = len(self.layers) * len(self.heads) * len(rows) * call.key.shape[2]
        at_once = rows_at_once(call, len(self.heads), kept=kept)
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            index = index_on(some, call.query.device)
            weights = attention_rows(module, call, rows=index, heads=self.heads)
            self._keep(module, weights, [one - first for one in some])
            self.rebuilt.check(self.layers[module], call, weights, rows=index, heads=self.heads)

    def _see_pooling(self, module: nn.Module, call: MultiheadCall) -> None:
        if not self._running():
            return
        self.kernel, self.dtype = "torch.nn.MultiheadAttention", call.query.dtype
        self._begin_layer(module, call.key.shape[1])
        rows = torch.zeros(1, dtype=torch.long, device=call.query.device)
        weights = multihead_rows(module, call, rows=rows)
        self._keep(module, weights[list(self.heads)], [0])
        if self.verify != "off":
            self.rebuilt.note(self.layers[module], multihead_error(module, call, weights, rows=rows), 1)

    # Helpers ------------------------------------------------------------------------------------------------------------

    def _running(self) -> bool:
        return self._mine() and self._state == "running"

    def _begin_layer(self, module: nn.Module, keys: int) -> tuple[int, list[int]]:
        """Position of the first patch, and all query positions that are read."""
        assert self.layout is not None  # for the type checker: laid out when the pass began
        self._seen[module] += 1
        if keys != self.layout.prompt_length:
            raise CaptureError(
                f"{self.layers[module]} saw {keys} positions where the picture has {self.layout.prompt_length} (patches, class and "
                "register tokens), so columns cannot be matched to patches."
            )
        keep = None if isinstance(self.queries, str) else frozenset(self.queries).__contains__
        self.stores[module] = RowStore(self.layout, self.offload, keep)
        if isinstance(self.queries, str):
            return 0, [0]
        # The mean is over all patches, whichever are kept.
        return self.layout.views[0].positions[0], list(self.layout.views[0].positions)

    def _keep(self, module: nn.Module, weights: Tensor, tokens: list[int]) -> None:
        self.stores[module].add(weights, tokens)

    def _certificate(self) -> Certificate:
        assert self.layout is not None  # for the type checker: a finished pass has one
        return self.rebuilt.certificate(
            self.dtype,
            self.kernel,
            layers=len(self.layers),
            tokens=next(iter(self.stores.values())).count,
            patches=len(self.layout.views[0].positions),
            advice="The kernel does something that is not known here; run `probe check` on the model.",
        )

    def _tokens(self, grid: PatchGrid) -> tuple[tuple[str, ...], Any]:
        if self.pooling:
            return ("[pooling]",), "pooling query"
        if isinstance(self.queries, str):
            return ("[class]",), "class token"
        return tuple(str(divmod(one, grid.shape[1])) for one in self.queries), "patch"

    def _layer(self, module: nn.Module, name: str, grid: PatchGrid) -> LayerAttention:
        store = self.stores[module]
        values, mean, rest = store.finished(0)
        if not isinstance(self.queries, str):
            where = {token: place for place, token in enumerate(store.tokens)}
            order = [where[one] for one in self.queries]
            values, rest = values[:, order], rest[:, order]
        rows, cols = grid.shape
        return LayerAttention(
            name=name,
            view="image 0",
            grid=grid,
            values=rearrange(values, "head token (row col) -> 1 head token row col", row=rows, col=cols),
            token_mean=rearrange(mean, "head (row col) -> 1 head row col", row=rows, col=cols),
            rest=rearrange(rest, "head token place -> 1 head token place"),
            heads=self.heads,
        )


def has_class_token(tower: Any) -> bool:
    """True if the encoder puts a class token in front of the patches."""
    return class_and_registers(tower)[0] == 1


def _as_processed(pixels: Tensor, config: Any) -> Tensor:
    """The pixels as the processor made them: a DiffLMM as released normalises them once more on their way to CLIP."""
    if getattr(config, "normalisation", "intended") != "as-released":
        return pixels
    mean, std = (
        torch.tensor(one, device=pixels.device).view(1, 3, 1, 1) for one in (config.image_mean, config.image_std)
    )
    return ((pixels.float() * std + mean) * 2 - 1).to(pixels.dtype)


def _pooling_query(prefix: str, tower: Any) -> tuple[str, nn.Module]:
    """Name and module of the attention in which a learned query pools the patches."""
    module = getattr(getattr(tower, "head", None), "attention", None)
    if not isinstance(module, nn.MultiheadAttention):
        raise CaptureError(
            f"{type(tower).__name__} has neither a class token nor a pooling head, so nothing in it looks at the whole image; give "
            "queries=[...], numbers of patches."
        )
    return ".".join(filter(None, (prefix, "head.attention"))), module
