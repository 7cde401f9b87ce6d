"""The questions that ``check`` asks of a diffusion pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.attention import AttentionRecord
from probe.capture.denoising import noise_and_record
from probe.capture.hooks import watch_forward
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
from probe.capture.recorder import record
from probe.capture.unets import Place, unet_attention
from probe.errors import CaptureError

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["check_diffusion"]

_PROMPT = "a red circle"
_PLACES: tuple[Place, ...] = ("cross-attention", "self-attention")


def check_diffusion(subject: Subject, picture: Any) -> CheckReport:
    """A report on whether a diffusion pipeline is recorded truthfully; see ``probe.check``."""
    # transformers installs hooks of its own at a text encoder's first pass and leaves them, so a plain pass goes before.
    _generated(subject)
    before = _state(subject)
    try:
        # Unverified: a certificate that fails is one of the answers, and must not keep the others from being found.
        first = _read(subject, picture, "cross-attention", verify="off")
    except CaptureError as error:
        refused = CheckResult("recording", False, str(error), "no error")
        return CheckReport(subject.name, subject.family.name, "unknown", dtype_name(subject), (refused,))
    questions: dict[str, Question] = {
        "state restored": lambda: restored(before, _state(subject)),
        "certificate": lambda: _certificate(subject, picture),
        "parity with the plain processor": lambda: _parity(subject, picture),
        "bit-identical output": lambda: _identical(subject),
        "same seed, same maps": lambda: _repeated(subject, picture, first),
    }
    results = tuple(ask(name, question) for name, question in questions.items())
    return CheckReport(subject.name, subject.family.name, first.source.kernel, dtype_name(subject), results)


def _read(subject: Subject, picture: Any, place: Place, **options: Any) -> AttentionRecord:
    # Self-attention is read from a few patches: all of them would be every patch to every patch.
    patches = [(0, 0)] if place == "self-attention" else None
    found: AttentionRecord = noise_and_record(subject, picture, _PROMPT, place=place, patches=patches, **options).record
    return found


def _state(subject: Subject) -> dict[str, Any]:
    pipeline = subject.model
    parts = {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}
    return model_state(parts) | {"the pipeline's own attributes": sorted(vars(pipeline))}


def _certificate(subject: Subject, picture: Any) -> Answer:
    found = [_read(subject, picture, place, verify="all").certificate for place in _PLACES]
    worst = max(found, key=lambda one: one.max_error)
    layers = sum(one.layers for one in found)
    shown = f"{worst.max_error:.1e} of the output over {sum(one.rows for one in found)} rows in {layers} layers"
    return all(one.passed for one in found), shown, f"{worst.tolerance:.0e}", worst.max_error


def _parity(subject: Subject, picture: Any) -> Answer:
    """Recorded weights against those of diffusers' plain processor, which computes every one, on the very same inputs."""
    off = 0.0
    for place in _PLACES:
        with _plain_weights(subject.model.unet, place) as weights:
            found = _read(subject, picture, place, verify="off")
        for layer in found.layers:
            expected = _expected(weights[layer.name], found, place)
            off = max(off, float((layer.values[0].flatten(-2) - expected.to(layer.values)).abs().max()))
    allowed = PARITY.get(subject.model.unet.dtype, 1e-6)
    return off <= allowed, f"{off:.1e}", f"{allowed:.0e}", off


def _expected(weights: Tensor, found: AttentionRecord, place: Place) -> Tensor:
    """(head, token, patch) values of a record, from the (head, query, key) weights of one pass."""
    if place == "self-attention":
        return weights[:, :1]
    words = weights.transpose(1, 2)
    if found.tokens[-1] != "[padding]":
        return words
    kept = len(found.tokens) - 1
    return torch.cat([words[:, :kept], words[:, kept:].sum(1, keepdim=True)], dim=1)


@contextmanager
def _plain_weights(unet: Any, place: Place) -> Iterator[dict[str, Tensor]]:
    """(head, query, key) weights of each attention module by name, each computed a second time by the plain processor."""
    from diffusers.models.attention_processor import AttnProcessor

    found: dict[str, Tensor] = {}
    names = {module: name for name, module in unet_attention(unet, place)}

    def compute(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scores = module.get_attention_scores

        def keep(query: Tensor, key: Tensor, mask: Any = None) -> Tensor:
            weights: Tensor = scores(query, key, mask)
            found[names[module]] = weights.unflatten(0, (-1, module.heads))[-1]
            return weights

        module.get_attention_scores = keep
        try:
            AttnProcessor()(module, *args, **kwargs)
        finally:
            del module.get_attention_scores

    with watch_forward(names, before=compute):
        yield found


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
    try:
        found: Tensor = pipeline(
            _PROMPT, num_inference_steps=2, generator=torch.Generator("cpu").manual_seed(0), output_type="latent"
        ).images
    finally:
        pipeline.set_progress_bar_config(**shown)
    return found


def _repeated(subject: Subject, picture: Any, first: AttentionRecord) -> Answer:
    again = _read(subject, picture, "cross-attention", verify="off")
    off = max(float((one.values - two.values).abs().max()) for one, two in zip(first.layers, again.layers, strict=True))
    same = all(torch.equal(one.values, two.values) for one, two in zip(first.layers, again.layers, strict=True))
    return same, "identical" if same else f"{off:.1e} apart", "identical"
