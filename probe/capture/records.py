"""record(): the recorder of whatever model it is given."""

from __future__ import annotations

from typing import Any, Literal

from probe.capture.places import choose_place
from probe.capture.recorder import Recorder
from probe.capture.recordings import Recording
from probe.errors import InputError
from probe.families import family_of
from probe.families.wrappers import unwrapped
from probe.layout import Indices, Layout

__all__ = ["record"]


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
    >>> record = recorder.result(image=image)              # of a batch: recorder.result(1, image=second), or recorder.results()
    >>> with probe.record(pipeline) as recorder:
    ...     pipeline("a red circle", num_inference_steps=50)
    >>> with probe.record(module, attention="blocks.*.attn", layout=layout) as recorder:
    ...     module(pixels)

    The model's own kernels run, its output is bit-identical, and nothing is left on it afterwards.

    Parameters
    ----------
    model, processor : a live transformers model and its processor, a live diffusion pipeline, or one ``Subject``.
    place : whose attention is read. "language model": text tokens to image patches. "image encoder": CLIP's class token, or the
        query with which SigLIP pools, to the patches. "q-former": learned queries to the patches. "cross-attention": patches of a
        diffusion U-Net to the words, or in a DiffLMM to its implicit caption. "self-attention": patches of a U-Net to each other.
        "image to text", "text to image", "image to image": in joint attention, see ``DiffusionRecorder``. By default the first that
        the model has.
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
    model = unwrapped(model)
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
    if chosen == "q-former":
        from probe.capture.qformer import QFormerRecorder

        return QFormerRecorder(model, processor, **options)
    from probe.capture.captions import CaptionConditioning
    from probe.capture.diffusion import DiffusionRecorder

    source = model if family.kind == "diffusion" else CaptionConditioning(model, processor)
    return DiffusionRecorder(source, place=chosen, **options)  # type: ignore[arg-type]
