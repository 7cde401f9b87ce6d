"""The questions that ``check`` asks of an image encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.decomposition import decompose
from probe.capture.encoders import EncoderRecorder
from probe.capture.geometry import encoder_inputs
from probe.capture.hooks import watch_forward
from probe.capture.modules import class_and_registers, image_encoder
from probe.capture.painting import paint_patches
from probe.capture.questions import (
    PARITY,
    Answer,
    CheckReport,
    CheckResult,
    Question,
    ask,
    dtype_name,
    model_state,
    restored,
)
from probe.errors import CaptureError

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["check_encoder"]

_TEXTS = ("a photo of a dog", "a red circle")


def check_encoder(subject: Subject, picture: Any) -> CheckReport:
    """A report on whether an image encoder is recorded truthfully; see ``probe.check``."""
    inputs = encoder_inputs(subject.processor, picture, subject.model)
    _encode(subject, inputs)  # whatever the library leaves at a model's first pass is there before
    before = model_state({"model": subject.model})
    try:
        # Unverified: a certificate that fails is one of the answers, and must not keep the others from being found.
        first = _record(subject, picture, inputs, queries="class token", verify="off")
    except CaptureError as error:
        refused = CheckResult("recording", False, str(error), "no error")
        return CheckReport(subject.name, subject.family.name, "unknown", dtype_name(subject), (refused,))
    questions: dict[str, Question] = {
        "state restored": lambda: restored(before, model_state({"model": subject.model})),
        "certificate": lambda: _certificate(subject, picture, inputs),
        "eager parity": lambda: _eager_parity(subject, picture, inputs),
        "bit-identical output": lambda: _identical(subject, inputs),
        "geometry": lambda: paint_patches(subject, picture),
    }
    if hasattr(subject.model, "visual_projection") and hasattr(subject.model, "text_projection"):
        questions["sum of contributions"] = lambda: _sum(subject, picture)
    results = tuple(ask(name, question) for name, question in questions.items())
    return CheckReport(subject.name, subject.family.name, first.source.kernel, dtype_name(subject), results)


def _encode(subject: Subject, inputs: dict[str, Any], **options: Any) -> Any:
    with torch.inference_mode():
        return image_encoder(subject.model)[1](**inputs, **options)


def _record(subject: Subject, picture: Any, inputs: dict[str, Any], **options: Any) -> AttentionRecord:
    with EncoderRecorder(subject.model, subject.processor, **options) as recorder:
        _encode(subject, inputs)
    return recorder.result(image=picture)


def _all_queries(subject: Subject, picture: Any, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The class token (or the pooling query), and every patch."""
    grid = _record(subject, picture, inputs, queries=[0], layers=[0], verify="off").layers[0].grid
    return "class token", list(range(grid.shape[0] * grid.shape[1]))


def _certificate(subject: Subject, picture: Any, inputs: dict[str, Any]) -> Answer:
    found = [
        _record(subject, picture, inputs, queries=queries, verify="all").certificate
        for queries in _all_queries(subject, picture, inputs)
    ]
    worst = max(found, key=lambda one: one.max_error)
    shown = (
        f"{worst.max_error:.1e} of the output over {sum(one.rows for one in found)} rows in {found[-1].layers} layers"
    )
    return all(one.passed for one in found), shown, f"{worst.tolerance:.0e}", worst.max_error


def _eager_parity(subject: Subject, picture: Any, inputs: dict[str, Any]) -> Answer:
    """Recorded weights against the encoder's eager attentions of the very same pass, so that only the recorder can differ."""
    _, tower, _ = image_encoder(subject.model)
    first = sum(class_and_registers(tower))
    used = tower.config._attn_implementation
    off = 0.0
    try:
        tower.set_attn_implementation("eager")
        for queries in _all_queries(subject, picture, inputs):
            with EncoderRecorder(subject.model, subject.processor, queries=queries, verify="off") as recorder:
                reference = _reference(subject, inputs, pooling=recorder.pooling)
            rows = [0] if isinstance(queries, str) else slice(first, first + len(queries))
            count = recorder.result().layers[0].grid.shape
            columns = slice(first, first + count[0] * count[1])
            for layer, weights in zip(recorder.result(image=picture).layers, reference, strict=True):
                patches = weights[0][:, rows][..., columns]
                off = max(off, float((layer.values[0].flatten(-2) - patches.to(layer.values)).abs().max()))
    finally:
        tower.set_attn_implementation(used)
    allowed = PARITY.get(subject.model.dtype, 1e-6)
    return off <= allowed, f"{off:.1e}", f"{allowed:.0e}", off


def _reference(subject: Subject, inputs: dict[str, Any], *, pooling: bool) -> list[Tensor]:
    """(1, head, query, key) weights of each layer, from the library's eager attention or, for the pooling query, by hand."""
    if not pooling:
        attentions = _encode(subject, inputs, output_attentions=True).attentions
        if not attentions or attentions[0] is None:
            raise CaptureError(
                "The library's eager attention gave no weights for this model, so there is no reference."
            )
        return list(attentions)
    found: list[Tensor] = []

    def compute(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parts = zip(args[:2], module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=False)
        query, key = (
            nn.functional.linear(one, weight, bias).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for one, weight, bias in parts
        )
        mask = kwargs.get("attn_mask")
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        found.append(torch.softmax(scores if mask is None else scores + mask, dim=-1))

    with watch_forward([image_encoder(subject.model)[1].head.attention], before=compute):
        _encode(subject, inputs)
    return found


def _identical(subject: Subject, inputs: dict[str, Any]) -> Answer:
    plain = _encode(subject, inputs)
    with EncoderRecorder(subject.model, subject.processor):
        watched = _encode(subject, inputs)
    pairs = [
        (plain[name], watched[name]) for name in ("last_hidden_state", "pooler_output") if plain.get(name) is not None
    ]
    off = max(float((one - other).abs().max()) for one, other in pairs)
    same = all(torch.equal(one, other) for one, other in pairs)
    return same, "identical" if same else f"{off:.1e} apart", "identical"


def _sum(subject: Subject, picture: Any) -> Answer:
    """Whether the parts of the similarity add up to the model's own."""
    found = decompose(subject, picture, _TEXTS)
    shown = f"{found.error:.1e} from the model's own similarity in {len(_TEXTS)} texts"
    return found.error <= found.tolerance, shown, f"{found.tolerance:.0e}"
