"""record(): watch a model for the length of a context, then hand over what was seen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Several
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.assemble import assemble
from probe.capture.hooks import require_uncompiled, watch_forward, watch_generate
from probe.capture.modules import attention_modules
from probe.capture.places import choose_place
from probe.capture.recordings import Recording
from probe.capture.reduce import Queries, RowStore, answer_tokens
from probe.capture.sequence import Sequence, batch_of_one, image_token_id, require_one_sequence
from probe.capture.taps import AttentionCall, edits_of, watch_registry
from probe.capture.weights import attention_rows, reproduction_error
from probe.errors import CaptureError, InputError
from probe.families import family_of
from probe.layout import Indices, Layout, resolve_indices

__all__ = ["Recorder", "record"]

# At most this many rows of one layer are recomputed at a time, so that no (token x token) map is ever held.
_ROWS_AT_ONCE = 64


def record(
    model: Any,
    processor: Any = None,
    *,
    place: str | None = None,
    layers: Any = None,
    heads: Indices = None,
    offload: bool = False,
    verify: Literal["sample", "all", "off"] = "sample",
    attention: str | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> Recording:
    """A context manager that records where a model looks while it runs.

    >>> with probe.record(model, processor) as recorder:
    ...     model.generate(**inputs)
    >>> record = recorder.result(image=image)
    >>> with probe.record(pipeline) as recorder:
    ...     pipeline("a red circle", num_inference_steps=50)
    >>> with probe.record(module, attention="blocks.*.attn", layout=layout) as recorder:
    ...     module(pixels)

    The model's own kernels run, its output is bit-identical, and nothing is left on it afterwards.

    Parameters
    ----------
    model, processor : a live transformers model and its processor, a live diffusion pipeline, or one ``Subject``.
    place : whose attention is read. "language model": text tokens to image patches. "image encoder": CLIP's class token, or the
        query with which SigLIP pools, to the patches. "cross-attention": patches of a diffusion U-Net to the words, or in a DiffLMM
        to its implicit caption. "self-attention": patches of a U-Net to each other. "image to text", "text to image", "image to
        image": in joint attention, see ``DiffusionRecorder``. By default the first that the model has.
    layers, heads : which to record, by number; all by default. Layers of a U-Net also by the beginning of their names.
    offload : True moves every row to host memory at once.
    verify : how many rows must rebuild the kernel's own output: a "sample" in every layer and head, "all", or "off".
    attention, layout : of any other PyTorch module, which of its modules are attention (a pattern of their names or classes), and
        where patches are among their keys; see ``ModuleRecorder``.
    options : what only some places take. "language model": ``queries``, "answer" (generated tokens, the default), "prompt" (the
        prompt's text tokens) or numbers of answer tokens to keep, from 0; ``query_row``, "predicting" (reads token t at position
        t - 1, which predicts it; the default for an answer) or "own" (the default for a prompt). "image encoder": ``queries``,
        see ``EncoderRecorder``. U-Nets: ``timesteps``, ``guidance`` and ``patches``, see ``DiffusionRecorder``.

    Raises
    ------
    ModelError
        If the family is unknown.
    CaptureError
        If the model is compiled, or its attention modules are not as many as its configuration states.
    InputError
        If a place, layer, head or option does not exist.
    """
    if attention is not None or layout is not None:
        from probe.capture.own import own_recorder

        options |= {"layers": layers, "heads": heads, "offload": offload, "verify": verify}
        return own_recorder(model, attention, layout, place=place, **options)
    if hasattr(model, "processor") and hasattr(model, "family"):
        model, processor = model.model, model.processor
    family = family_of(model)
    chosen = choose_place(model, family, place, options)
    if processor is None and family.kind != "diffusion":
        raise InputError(
            "record() needs the model's processor too: record(model, processor), or one Subject from load_model()."
        )
    options |= {"layers": layers, "heads": heads, "offload": offload, "verify": verify}
    if chosen == "language model":
        return Recorder(model, processor, **options)
    if chosen == "image encoder":
        from probe.capture.encoders import EncoderRecorder

        return EncoderRecorder(model, processor, **options)
    from probe.capture.captions import CaptionConditioning
    from probe.capture.diffusion import DiffusionRecorder

    source = model if family.kind == "diffusion" else CaptionConditioning(model, processor)
    return DiffusionRecorder(source, place=chosen, **options)  # type: ignore[arg-type]


class Recorder(Recording):
    """Watches one model; made by ``record()``. Use it for one pass: one ``generate``, or one forward pass."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        layers: Indices = None,
        heads: Indices = None,
        queries: Literal["answer", "prompt"] | Several[int] = "answer",
        query_row: Literal["predicting", "own"] | None = None,
        offload: bool = False,
        verify: Literal["sample", "all", "off"] = "sample",
        answer_start: int | None = None,
    ) -> None:
        _require_choice("verify", verify, ("sample", "all", "off"))
        _require_choice("query_row", query_row, (None, "predicting", "own"))
        if isinstance(queries, str):
            _require_choice("queries", queries, ("answer", "prompt"))
        require_uncompiled(model)
        self.model, self.processor, self.family = model, processor, family_of(model)
        self.queries = queries if isinstance(queries, str) else answer_tokens(queries)
        self.offload, self.verify = offload, verify
        self.query_row = query_row or ("own" if queries == "prompt" else "predicting")
        found = attention_modules(model, self.family)
        self.layers = {
            module: name for name, module in (found[i] for i in resolve_indices(layers, len(found), what="layer"))
        }
        count = model.config.get_text_config().num_attention_heads
        self.heads = resolve_indices(heads, count, what="head")
        self.answer_start = answer_start
        super().__init__()
        self._reset()

    def _reset(self) -> None:
        self._generating = False
        self._forward = False
        self._state: Literal["empty", "running", "finished"] = "empty"
        self.sequence: Sequence | None = None
        self.layout: Layout | None = None
        self.stores: dict[nn.Module, RowStore] = {}
        self.output_ids: list[int] | None = None
        self.checked_rows, self.max_error, self.worst = 0, 0.0, ""
        self.kernel = ""
        self.edits: tuple[str, ...] = ()
        self.dtype: torch.dtype | None = None
        self._plan: Queries | None = None
        self._seen: dict[nn.Module, int] = {}
        self._calls = 0

    def _attach(self, attached: ExitStack) -> None:
        attached.enter_context(watch_registry(self.layers, self._see))
        attached.enter_context(watch_forward([self.model], before=self._forward_begins, after=self._forward_ends))
        attached.enter_context(watch_generate(self.model, self))

    def result(self, *, image: Any = None) -> AttentionRecord:
        """The record of the pass, after its certificate has been checked.

        Parameters
        ----------
        image : the picture that the processor was given (path, PIL image or array). With it, the grid lies in the original
            image's pixels, and the picture is checked against what the model saw. Without it, coordinates are those of the
            processed picture.

        Raises
        ------
        CaptureError
            If nothing, or not everything, was recorded.
        CertificateError
            If what was recorded does not rebuild what the model computed.
        InputError
            If the answer is empty or the image is not the one that the model saw.
        """
        if self._state != "finished":
            raise CaptureError(
                "Nothing was recorded: call model.generate(...) inside the context, on the same model and in the same thread."
                if self._state == "empty"
                else "The pass that was being recorded did not come to its end, so there is no record of it."
            )
        return assemble(self, image)

    # Called by hooks ----------------------------------------------------------------------------------------------------

    def generation_begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read what ``generate`` was given; refuse what cannot be followed."""
        if not self._mine():
            return
        self._require_first_pass()
        kwargs = dict(zip(("inputs", "generation_config"), args, strict=False)) | kwargs
        require_one_sequence(kwargs, kwargs.get("generation_config") or self.model.generation_config)
        self._begin(batch_of_one(kwargs.get("input_ids", kwargs.get("inputs"))), kwargs)
        self._generating = True

    def generation_ends(self, output: Any) -> None:
        """Keep the ids that ``generate`` gave out: the last of them is never fed back."""
        if not self._mine() or not self._generating:
            return
        self._generating = False
        if output is not None:
            self.output_ids = [int(one) for one in getattr(output, "sequences", output)[0]]
            self._state = "finished"

    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._mine() or module is not self.model:  # a copy made inside the context has copies of the hooks
            return
        if args:
            kwargs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        fed = batch_of_one(kwargs.get("input_ids"))
        if not self._generating:
            self._require_first_pass()
            self._begin(fed[: self.answer_start], kwargs)
        assert self.sequence is not None  # for the type checker: _begin has set it
        # Kept pass by pass: by the time of result() an ablation has usually ended.
        self.edits = tuple(dict.fromkeys((*self.edits, *edits_of(self.model.modules()))))
        # Its name until transformers 5.23, and since then.
        cache = next((kwargs[name] for name in ("past_key_values", "cache") if kwargs.get(name) is not None), None)
        self.sequence.feed(fed, past=int(cache.get_seq_length()) if cache is not None else 0)
        if self.layout is None:
            self._lay_out()
        self._seen = dict.fromkeys(self.layers, 0)
        self._length = len(fed)
        self._forward = True

    def _forward_ends(self, module: nn.Module, output: Any) -> None:
        if not self._mine() or module is not self.model:
            return
        self._forward = False
        self._calls += 1
        wrong = [f"{self.layers[one]} ({count} times)" for one, count in self._seen.items() if count != 1]
        if wrong:
            raise CaptureError(
                f"{len(wrong)} of {len(self._seen)} attention modules ran without being seen exactly once, the first {wrong[0]}: "
                "their attention does not go through transformers' attention functions, so it cannot be recorded."
            )
        if not self._generating:
            self._state = "finished"

    def _see(self, module: nn.Module, call: AttentionCall) -> None:
        if not self._mine() or not self._forward:
            return
        self._seen[module] += 1
        plan, sequence = self._plan, self.sequence
        assert plan is not None  # for the type checker: set when the pass began
        assert sequence is not None
        queries, total = call.query.shape[2], len(sequence.ids)
        if queries != self._length or call.key.shape[2] < total:
            raise CaptureError(
                f"{self.layers[module]} saw {queries} queries and {call.key.shape[2]} keys where {self._length} and {total} were "
                "fed: its cache drops or moves positions (a sliding window), so columns cannot be matched to patches."
            )
        self.kernel, self.dtype = call.kernel, call.query.dtype
        first = total - queries
        wanted = [(row, token) for row in range(queries) if (token := plan.token_at(first + row)) is not None]
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            self._take(module, call, wanted[start : start + _ROWS_AT_ONCE])

    def _take(self, module: nn.Module, call: AttentionCall, wanted: list[tuple[int, int]]) -> None:
        device, heads = call.query.device, self.heads
        # Wanted rows follow each other but in a prompt, where the image's are left out; a range needs no copy to the device.
        first, last = wanted[0][0], wanted[-1][0]
        rows = torch.arange(first, last + 1, device=device)
        if len(wanted) <= last - first:
            rows = torch.tensor([row for row, _ in wanted], device=device)
        weights = attention_rows(module, call, rows=rows, heads=heads)
        if module not in self.stores:
            assert self.layout is not None  # for the type checker: laid out before the first call
            keep = self._plan.keep if self._plan is not None else None
            self.stores[module] = RowStore(self.layout, self.offload, None if keep is None else keep.__contains__)
        self.stores[module].add(weights, [token for _, token in wanted])
        picked = self._sampled(len(wanted))
        if picked:
            index = torch.tensor(picked, device=device)
            error = reproduction_error(call, weights[:, index], rows=rows[index], heads=heads)
            self.checked_rows += len(picked)
            if error > self.max_error:
                self.max_error, self.worst = error, self.layers[module]

    def _sampled(self, count: int) -> list[int]:
        """Which of these rows are checked: all, none, or up to four spread over the call, in the first calls and every 8th."""
        if self.verify == "off" or (self.verify == "sample" and self._calls >= 4 and self._calls % 8):
            return []
        if self.verify == "all" or count <= 4:
            return list(range(count))
        return sorted({round(i * (count - 1) / 3) for i in range(4)})

    # Helpers ------------------------------------------------------------------------------------------------------------

    def _require_first_pass(self) -> None:
        if self._state == "finished":
            raise CaptureError(
                "This recorder already holds one pass; use one record() context for each generate or forward."
            )

    def _begin(self, prompt: list[int], kwargs: dict[str, Any]) -> None:
        self._reset()
        self._state = "running"
        mask = kwargs.get("attention_mask")
        attends = None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            attends = [int(one) for one in mask[0][: len(prompt)]]
        # generate may encode the picture itself and pass on the result, so it is read where the user gave it.
        pixels: Tensor | None = kwargs.get("pixel_values")
        self.sequence = Sequence(
            prompt, image_token_id(self.model), attends, None if pixels is None else pixels.detach()
        )

    def _lay_out(self) -> None:
        assert self.sequence is not None  # for the type checker: the pass has begun
        start = len(self.sequence.prompt)
        self.layout = self.sequence.layout(self.model, self.family, start=start)
        keep = None
        if self.queries == "prompt":
            image, padding = self.sequence.image_token, set(self.layout.padding)
            # The first real token follows nothing, or padding, which predict nothing.
            lag = 1 if self.query_row == "predicting" else 0
            prompt = tuple(
                i
                for i, one in enumerate(self.sequence.prompt)
                if one != image and i not in padding and i >= lag and i - lag not in padding
            )
            self._plan = Queries("prompt", self.query_row, start, prompt)
            return
        if not isinstance(self.queries, str) and all(one >= 0 for one in self.queries):
            keep = frozenset(self.queries)
        count = None if self._generating else len(self.sequence.ids) - start
        self._plan = Queries("answer", self.query_row, start, keep=keep, count=count)


def _require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}.")
