"""The questions that ``check`` asks of a diffusion pipeline."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.denoisers import Denoiser, denoiser_of
from probe.capture.denoising import noise_and_record
from probe.capture.latent_painting import paint_latents
from probe.capture.places import Place, places_of
from probe.capture.plain_weights import as_recorded, processor_weights, softmax_weights
from probe.capture.prompts import prompt_keys
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
from probe.capture.records import record
from probe.errors import CaptureError

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["check_diffusion"]

_PROMPT = "a red circle"


def check_diffusion(subject: Subject, picture: Any) -> CheckReport:
    """A report on whether a diffusion pipeline is recorded truthfully; see ``probe.check``."""
    # transformers installs hooks of its own at a text encoder's first pass and leaves them, so a plain pass goes before.
    _generated(subject)
    before = _state(subject)
    try:
        # Unverified: a certificate that fails is one of the answers, and must not keep the others from being found.
        first = _read(subject, picture, None, verify="off")
    except CaptureError as error:
        refused = CheckResult("recording", False, str(error), "no error")
        return CheckReport(subject.name, subject.family.name, "unknown", dtype_name(subject), (refused,))
    plain = "parity with the plain processor" if subject.family.text_first is None else "parity with plain attention"
    questions: dict[str, Question] = {
        "state restored": lambda: restored(before, _state(subject)),
        "certificate": lambda: _certificate(subject, picture),
        plain: lambda: _parity(subject, picture),
        "bit-identical output": lambda: _identical(subject),
        "same seed, same maps": lambda: _repeated(subject, picture, first),
        "geometry": lambda: paint_latents(subject, picture),
    }
    results = tuple(ask(name, question) for name, question in questions.items())
    return CheckReport(subject.name, subject.family.name, first.source.kernel, dtype_name(subject), results)


def _denoiser(subject: Subject) -> Denoiser:
    return denoiser_of(getattr(subject.model, "unet", None) or subject.model.transformer)


def _places(subject: Subject) -> tuple[Place, ...]:
    return places_of(subject.model, subject.family)  # type: ignore[return-value]


def _read(subject: Subject, picture: Any, place: Place | None, **options: Any) -> AttentionRecord:
    # Patches to patches is read from a few: from all of them it would be every patch to every patch.
    patches = [(0, 0)] if place in ("self-attention", "image to image") else None
    found: AttentionRecord = noise_and_record(subject, picture, _PROMPT, place=place, patches=patches, **options).record
    return found


def _state(subject: Subject) -> dict[str, Any]:
    pipeline = subject.model
    parts = {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}
    return model_state(parts) | {"the pipeline's own attributes": sorted(vars(pipeline))}


def _certificate(subject: Subject, picture: Any) -> Answer:
    found = [_read(subject, picture, place, verify="all").certificate for place in _places(subject)]
    worst = max(found, key=lambda one: one.max_error)
    layers = sum(one.layers for one in found)
    shown = f"{worst.max_error:.1e} of the output over {sum(one.rows for one in found)} rows in {layers} layers"
    return all(one.passed for one in found), shown, f"{worst.tolerance:.0e}", worst.max_error


def _parity(subject: Subject, picture: Any) -> Answer:
    """Recorded weights against plain ones of the very same inputs."""
    denoiser, off = _denoiser(subject), 0.0
    keys = prompt_keys(subject.model, _PROMPT)
    plain = processor_weights if subject.family.text_first is None else softmax_weights
    for place in _places(subject):
        with plain(denoiser.attention(place)) as weights:
            found = _read(subject, picture, place, verify="off")
        for layer in found.layers:
            expected = as_recorded(weights[layer.name], place, keys, text_first=bool(subject.family.text_first))
            off = max(off, float((layer.values[0].flatten(-2) - expected.to(layer.values)).abs().max()))
    allowed = PARITY.get(denoiser.module.dtype, 1e-6)
    return off <= allowed, f"{off:.1e}", f"{allowed:.0e}", off


def _identical(subject: Subject) -> Answer:
    """Two steps of generation from the same noise, with its guidance, watched and not."""
    plain = _generated(subject)
    with record(subject):
        watched = _generated(subject)
    same = torch.equal(plain, watched)
    return same, "identical" if same else f"{float((plain - watched).abs().max()):.1e} apart", "identical"


def _generated(subject: Subject) -> Tensor:
    pipeline = subject.model
    shown = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**shown | {"disable": True})
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    # What PixArt would round to other sizes and clean with other packages is none of the question.
    plain = {"use_resolution_binning": False, "clean_caption": False}
    names = inspect.signature(type(pipeline).__call__).parameters
    options |= {name: value for name, value in plain.items() if name in names}
    try:
        found: Tensor = pipeline(_PROMPT, generator=torch.Generator("cpu").manual_seed(0), **options).images
    finally:
        pipeline.set_progress_bar_config(**shown)
    return found


def _repeated(subject: Subject, picture: Any, first: AttentionRecord) -> Answer:
    again = _read(subject, picture, None, verify="off")
    off = max(float((one.values - two.values).abs().max()) for one, two in zip(first.layers, again.layers, strict=True))
    same = all(torch.equal(one.values, two.values) for one, two in zip(first.layers, again.layers, strict=True))
    return same, "identical" if same else f"{off:.1e} apart", "identical"
