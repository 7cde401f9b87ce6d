"""QFormerRecorder: which patches the learned queries of a Q-Former gather; what the language model then says is none of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

from torch import nn

from probe.capture.encoders import EncoderRecorder
from probe.capture.hooks import watch_forward
from probe.capture.projections import watch_projections
from probe.capture.taps import AttentionCall
from probe.errors import CaptureError
from probe.families import matches
from probe.layout import Indices, PatchGrid, resolve_indices

__all__ = ["QFormerRecorder", "qformer_of"]


class QFormerRecorder(EncoderRecorder):
    """Watches the Q-Former of one model for one pass over one image; a context manager.

    >>> with QFormerRecorder(model, processor) as recorder:
    ...     model.generate(**inputs)
    >>> record = recorder.result(image=image)

    The tokens of the record are the learned queries. They stand for no word of the prompt or of the answer: the language model is
    given what they gathered, and no patch. In BLIP-2 they are the same whatever is asked; in InstructBLIP they have read the
    instruction before they look. Rows sum to 1 over the patches and the vision encoder's class token, which counts to ``rest``.

    Parameters
    ----------
    model, processor : BLIP-2 or InstructBLIP, and its processor.
    layers, heads : which to record, by number among the layers that look at the picture; all by default.
    offload, verify : see ``EncoderRecorder``.

    Raises
    ------
    CaptureError
        If the model has no Q-Former, or is compiled.
    InputError
        If a layer, head or option does not exist.
    """

    softmax_over = "patches"
    tap = "projections of the attention modules"

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        layers: Indices = None,
        heads: Indices = None,
        offload: bool = False,
        verify: Literal["sample", "all", "off"] = "sample",
    ) -> None:
        super().__init__(model, processor, offload=offload, verify=verify)
        self.qformer, found = qformer_of(model)
        self.layers = {
            module: name for name, module in (found[i] for i in resolve_indices(layers, len(found), what="layer"))
        }
        self.heads = resolve_indices(heads, self.qformer.config.num_attention_heads, what="head")
        self.count = int(model.config.num_query_tokens)

    def _attach(self, attached: ExitStack) -> None:
        attached.enter_context(watch_projections(self.layers, self._see))
        attached.enter_context(watch_forward([self.tower], before=self._pass_begins))
        attached.enter_context(watch_forward([self.qformer], after=self._gathered))

    def _gathered(self, module: nn.Module, output: Any) -> None:
        if module is self.qformer and self._running():
            self._pass_ends(self.tower, output)

    def _see(self, module: nn.Module, call: AttentionCall) -> None:
        if self._running() and call.query.shape[2] != self.count:
            raise CaptureError(
                f"{self.layers[module]} saw {call.query.shape[2]} queries where the model has {self.count} of them, so rows cannot "
                "be matched to query tokens."
            )
        super()._see(module, call)

    def _begin_layer(self, module: nn.Module, keys: int) -> tuple[int, list[int]]:
        super()._begin_layer(module, keys)
        return 0, list(range(self.count))

    def _tokens(self, grid: PatchGrid) -> tuple[tuple[str, ...], Any]:
        return tuple(f"[query {number}]" for number in range(self.count)), "query token"


def qformer_of(model: Any) -> tuple[Any, list[tuple[str, nn.Module]]]:
    """The Q-Former of a model; and name and module of each of its attention modules that looks at the picture, in order.

    Raises
    ------
    CaptureError
        If there is none, or it has not as many as its configuration states.
    """
    found = [one for one in model.modules() if matches(one, ("*QFormerModel",))]
    if len(found) != 1:
        raise CaptureError(f"{type(model).__name__} has {len(found)} Q-Formers; exactly one can be recorded.")
    [qformer] = found
    modules = [
        (name, one)
        for name, one in model.named_modules()
        if matches(one, ("*QFormerMultiHeadAttention",)) and "crossattention" in name.split(".")
    ]
    config = qformer.config
    stated = -(-config.num_hidden_layers // config.cross_attention_frequency)
    if len(modules) != stated:
        raise CaptureError(
            f"{type(qformer).__name__} states {stated} layers that look at the picture but {len(modules)} were found: it is not "
            "built as its family is."
        )
    return qformer, modules
