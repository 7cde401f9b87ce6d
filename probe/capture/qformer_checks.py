"""The questions that ``check`` asks of a Q-Former."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.hooks import watch_forward
from probe.capture.painting import paint_patches
from probe.capture.qformer import QFormerRecorder
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

__all__ = ["check_qformer"]


def check_qformer(subject: Subject, picture: Any) -> CheckReport:
    """A report on whether a Q-Former is recorded truthfully; see ``probe.check``."""
    inputs = _inputs(subject, picture)
    _answer(subject, inputs)  # whatever the library leaves at a model's first pass is there before
    before = model_state({"model": subject.model})
    try:
        # Unverified: a certificate that fails is one of the answers, and must not keep the others from being found.
        first = _record(subject, picture, inputs, verify="off")
    except CaptureError as error:
        refused = CheckResult("recording", False, str(error), "no error")
        return CheckReport(subject.name, subject.family.name, "unknown", dtype_name(subject), (refused,))
    questions: dict[str, Question] = {
        "state restored": lambda: restored(before, model_state({"model": subject.model})),
        "certificate": lambda: _certificate(subject, picture, inputs),
        "eager parity": lambda: _eager_parity(subject, inputs),
        "bit-identical output": lambda: _identical(subject, inputs),
        "geometry": lambda: paint_patches(subject, picture),
    }
    results = tuple(ask(name, question) for name, question in questions.items())
    return CheckReport(subject.name, subject.family.name, first.source.kernel, dtype_name(subject), results)


def _inputs(subject: Subject, picture: Any) -> dict[str, Any]:
    made = subject.processor(images=picture, text="Describe the image.", return_tensors="pt").to(subject.model.device)
    made["pixel_values"] = made["pixel_values"].to(subject.model.dtype)
    return dict(made)


def _answer(subject: Subject, inputs: dict[str, Any]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = subject.model(**inputs).logits
    return logits


def _record(subject: Subject, picture: Any, inputs: dict[str, Any], **options: Any) -> AttentionRecord:
    with QFormerRecorder(subject.model, subject.processor, **options) as recorder:
        _answer(subject, inputs)
    return recorder.result(image=picture)


def _certificate(subject: Subject, picture: Any, inputs: dict[str, Any]) -> Answer:
    found = _record(subject, picture, inputs, verify="all").certificate
    shown = f"{found.max_error:.1e} of the output over {found.rows} rows in {found.layers} layers"
    return found.passed, shown, f"{found.tolerance:.0e}", found.max_error


def _eager_parity(subject: Subject, inputs: dict[str, Any]) -> Answer:
    """Recorded weights against those that the library's eager attention gives out in the very same pass."""
    recorder = QFormerRecorder(subject.model, subject.processor, verify="off")
    found: dict[nn.Module, Any] = {}
    used = recorder.qformer.config._attn_implementation
    try:
        recorder.qformer.set_attn_implementation("eager")
        with recorder, watch_forward(recorder.layers, after=lambda module, output: found.update({module: output[1]})):
            _answer(subject, inputs)
    finally:
        recorder.qformer.set_attn_implementation(used)
    if any(one is None for one in found.values()):
        raise CaptureError("The library's eager attention gave no weights for this model, so there is no reference.")
    off = 0.0
    for module, layer in zip(recorder.layers, recorder.result().layers, strict=True):
        # The class token is the first key.
        patches = found[module][0][..., 1:]
        off = max(off, float((layer.values[0].flatten(-2) - patches.to(layer.values)).abs().max()))
    allowed = PARITY.get(subject.model.dtype, 1e-6)
    return off <= allowed, f"{off:.1e}", f"{allowed:.0e}", off


def _identical(subject: Subject, inputs: dict[str, Any]) -> Answer:
    plain = _answer(subject, inputs)
    with QFormerRecorder(subject.model, subject.processor):
        watched = _answer(subject, inputs)
    same = torch.equal(plain, watched)
    return same, "identical" if same else f"{float((plain - watched).abs().max()):.1e} apart", "identical"
