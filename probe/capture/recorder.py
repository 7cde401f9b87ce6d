"""What watches a language model for the length of a context, then hands over what was seen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Several
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.assemble import assemble
from probe.capture.cross_attention import dropped_keys, sequence_of
from probe.capture.decoding import (
    end_tokens,
    generation_arguments,
    generation_settings,
    refuse_other_loops,
    require_followed,
)
from probe.capture.hooks import require_uncompiled, watch_forward, watch_generate
from probe.capture.modules import attention_modules
from probe.capture.pending import keeps_keys
from probe.capture.pictures import IMAGE_INPUTS, allocate, image_token_id, units_of
from probe.capture.recordings import Recording
from probe.capture.reduce import answer_tokens
from probe.capture.sequence import prompts_of, require_same_cache
from probe.capture.taps import AttentionCall, edits_of, require_known_kernel, watch_registry
from probe.capture.tracks import Track
from probe.errors import CaptureError, InputError
from probe.families import family_of
from probe.layout import Indices, resolve_indices

if TYPE_CHECKING:
    import torch

__all__ = ["Recorder"]


class Recorder(Recording):
    """Watches one model; made by ``record()``. Use it for one pass: one ``generate``, or one forward pass, of any batch.

    Attributes
    ----------
    tracks : what was recorded of each sequence, in the order of the batch.
    """

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
        self.query_row: Literal["predicting", "own"] = query_row or ("own" if queries == "prompt" else "predicting")
        found = attention_modules(model, self.family)
        what = "cross-attention layer" if self.family.image_tokens == "cross-attention" else "layer"
        self.layers = {
            module: name for name, module in (found[i] for i in resolve_indices(layers, len(found), what=what))
        }
        require_known_kernel(self.layers)
        count = model.config.get_text_config().num_attention_heads
        self.heads = resolve_indices(heads, count, what="head")
        self.answer_start = answer_start
        super().__init__()
        self._reset()

    def _reset(self) -> None:
        self._generating = False
        self._forward = False
        self._state: Literal["empty", "running", "finished"] = "empty"
        self.tracks: list[Track] = []
        self.kernel = ""
        self.edits: tuple[str, ...] = ()
        self.dtype: torch.dtype | None = None
        self._ends: frozenset[int] = frozenset()
        self._cache: Any = None
        self._keeps = False
        self._seen: dict[nn.Module, int] = {}
        self._calls = 0

    def _attach(self, attached: ExitStack) -> None:
        attached.enter_context(watch_registry(self.layers, self._see))
        attached.enter_context(watch_forward([self.model], before=self._forward_begins, after=self._forward_ends))
        attached.enter_context(watch_generate(self.model, self))
        attached.enter_context(refuse_other_loops(self.model, self._mine))

    def result(self, index: int | None = None, *, image: Any = None) -> AttentionRecord:
        """The record of one sequence of the pass, after its certificate has been checked.

        Parameters
        ----------
        index : which sequence of the batch, from 0; not needed where there is one.
        image : the picture that the processor was given (path, PIL image or array), or a list of them where this sequence has
            several. With it, the grids lie in the original image's pixels, and the picture is checked against what the model saw.
            Without it, coordinates are those of the processed pictures.

        Raises
        ------
        CaptureError
            If nothing, or not everything, was recorded.
        CertificateError
            If what was recorded does not rebuild what the model computed.
        InputError
            If there are several sequences and none is named, the answer is empty, the sequence has no image, or the image is not
            the one that the model saw.
        """
        self._require_finished()
        if index is None and len(self.tracks) > 1:
            raise InputError(
                f"{len(self.tracks)} sequences were recorded: give the number of one, result(0), or take all with results()."
            )
        (number,) = resolve_indices(index or 0, len(self.tracks), what="sequence")
        return assemble(self, self.tracks[number], image)

    def results(self, *, images: Several[Any] | None = None) -> list[AttentionRecord]:
        """The record of every sequence of the batch, in order, each as ``result`` gives it.

        Parameters
        ----------
        images : for each sequence its picture, or a list of its pictures.

        Raises
        ------
        ProbeError
            As ``result`` does; and if there are not as many images as sequences.
        """
        self._require_finished()
        shown = [None] * len(self.tracks) if images is None else list(images)
        if len(shown) != len(self.tracks):
            raise InputError(
                f"results() was given images of {len(shown)} sequences, but {len(self.tracks)} were recorded; give one picture, or "
                "one list of pictures, for each."
            )
        return [assemble(self, track, image) for track, image in zip(self.tracks, shown, strict=True)]

    def _require_finished(self) -> None:
        if self._state != "finished":
            raise CaptureError(
                "Nothing was recorded: call model.generate(...) inside the context, on the same model and in the same thread."
                if self._state == "empty"
                else "The pass that was being recorded did not come to its end, so there is no record of it."
            )

    # Called by hooks ----------------------------------------------------------------------------------------------------

    def generation_begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read what ``generate`` was given; refuse what cannot be followed."""
        if not self._mine():
            return
        self._require_first_pass()
        kwargs = generation_arguments(args, kwargs)
        asked = generation_settings(kwargs, self.model)
        prompts = prompts_of(kwargs.get("input_ids", kwargs.get("inputs")))
        each = asked("num_return_sequences") or 1
        require_followed(asked, self.model, sequences=len(prompts) * each)
        self._begin(prompts, kwargs, each=each)
        if len(self.tracks) > 1:
            self._ends = end_tokens(asked)
        self._generating = True

    def generation_ends(self, output: Any) -> None:
        """Keep the ids that ``generate`` gave out: the last of them is never fed back."""
        if not self._mine() or not self._generating:
            return
        self._generating = False
        if output is None:
            self.tracks.clear()  # they hold keys of the model
        else:
            answers = getattr(output, "sequences", output).tolist()
            if len(answers) != len(self.tracks):
                raise CaptureError(
                    f"generate gave out {len(answers)} sequences where {len(self.tracks)} were recorded."
                )
            for track, ids in zip(self.tracks, answers, strict=True):
                track.settle()
                track.give_out(ids, self._ends)
            self._state = "finished"

    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._mine() or module is not self.model:  # a copy made inside the context has copies of the hooks
            return
        if args:
            kwargs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        fed = prompts_of(kwargs.get("input_ids"))
        # Its name until transformers 5.23, and since then.
        cache = next((kwargs[name] for name in ("past_key_values", "cache") if kwargs.get(name) is not None), None)
        past = int(cache.get_seq_length()) if cache is not None else 0
        if not self._generating:
            self._require_first_pass()
            require_same_cache(past, 0)
            self._begin([one[: self.answer_start] for one in fed], kwargs)
        if len(fed) != len(self.tracks):
            raise CaptureError(f"The model was fed {len(fed)} sequences, but generate was given {len(self.tracks)}.")
        # Kept pass by pass: by the time of result() an ablation has usually ended.
        self.edits = tuple(dict.fromkeys((*self.edits, *edits_of(self.model.modules()))))
        for track, ids in zip(self.tracks, fed, strict=True):
            track.sequence.feed(ids, past=past)
            if track.plan is None:
                self._lay_out(track)
            track.end(self._ends)
        self._cache, self._keeps = cache, self._generating and keeps_keys(cache)
        self._seen = dict.fromkeys(self.layers, 0)
        self._length = len(fed[0])
        self._forward = True

    def _forward_ends(self, module: nn.Module, output: Any) -> None:
        if not self._mine() or module is not self.model:
            return
        self._forward = False
        self._cache = None
        self._calls += 1
        wrong = [f"{self.layers[one]} ({count} times)" for one, count in self._seen.items() if count != 1]
        if wrong:
            raise CaptureError(
                f"{len(wrong)} of {len(self._seen)} attention modules ran without being seen exactly once, the first {wrong[0]}: "
                "their attention does not go through transformers' attention functions, or runs compiled, so it cannot be recorded."
            )
        if not self._generating:
            self._state = "finished"

    def _see(self, module: nn.Module, call: AttentionCall) -> None:
        if not self._mine() or not self._forward:
            return
        self._seen[module] += 1
        if call.query.shape[0] != len(self.tracks):
            raise CaptureError(
                f"{self.layers[module]} saw {call.query.shape[0]} sequences where {len(self.tracks)} were fed: they were packed "
                "into one, or split, so rows cannot be matched to tokens."
            )
        shift = dropped_keys(
            self.layers[module], module, call, self._cache, fed=self._length, sequence=self.tracks[0].sequence
        )
        self.kernel, self.dtype = call.kernel, call.query.dtype
        checked = self.verify
        if checked == "sample" and self._calls >= 4 and self._calls % 8:
            checked = "off"  # rows are checked in the first calls and in every 8th
        for number, track in enumerate(self.tracks):
            track.take(module, call.of(number), shift=shift, picked=checked, keeps=self._keeps)

    # Helpers ------------------------------------------------------------------------------------------------------------

    def _require_first_pass(self) -> None:
        if self._state == "finished":
            raise CaptureError(
                "This recorder already holds one pass; use one record() context for each generate or forward."
            )

    def _begin(self, prompts: list[list[int]], kwargs: dict[str, Any], *, each: int = 1) -> None:
        """Start a track for every sequence: ``each`` for every prompt, in the order in which ``generate`` repeats them."""
        self._reset()
        self._state = "running"
        mask = kwargs.get("attention_mask")
        rows = mask.tolist() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        token = image_token_id(self.model)
        # generate may encode the picture itself and pass on the result, so it is read where the user gave it.
        given = {
            name: _detached(kwargs.get(name)) for name in (*IMAGE_INPUTS, "pixel_values_videos", "cross_attention_mask")
        }
        found = units_of(self.model, self.family, given)
        for own, (number, prompt) in zip(
            allocate(found, [one.count(token) for one in prompts]), enumerate(prompts), strict=True
        ):
            attends = None if rows is None else [int(one) for one in rows[number][: len(prompt)]]
            for _ in range(each):
                sequence = sequence_of(prompt, token, attends, own, model=self.model, family=self.family, given=given)
                track = Track(sequence, self.layers, self.heads, offload=self.offload, verify=self.verify)
                self.tracks.append(track)

    def _lay_out(self, track: Track) -> None:
        keep = None
        if not isinstance(self.queries, str) and all(one >= 0 for one in self.queries):
            keep = frozenset(self.queries)
        count = None if self._generating else len(track.sequence.ids) - len(track.sequence.prompt)
        track.lay_out(self.queries, self.query_row, keep=keep, count=count)


def _detached(given: Any) -> Any:
    return given.detach() if isinstance(given, Tensor) else given


def _require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; found {value!r}.")
