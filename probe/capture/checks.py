"""check(): is this model recorded truthfully, and left as it was?"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from probe.attention import AttentionRecord
from probe.capture.encoder_checks import check_encoder
from probe.capture.painting import paint_patches
from probe.capture.passes import generate_and_record, generate_ids, inputs_for, inputs_with_answer, read_and_record
from probe.capture.pictures import image_token_id
from probe.capture.places import places_of
from probe.capture.qformer_checks import check_qformer
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
    smooth_picture,
    without_warnings,
)
from probe.capture.recorder import Recorder
from probe.capture.records import record
from probe.capture.view_painting import paint_views
from probe.capture.views import views_of
from probe.errors import CaptureError
from probe.images import read_image

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["CheckReport", "CheckResult", "check"]

#: The same as PARITY between cached generation and one pass over the whole text, which round differently on their way; some layers
#: (RMSNorm) compute in float32 whatever the model's number type.
CACHE_PARITY = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}

#: How far apart, relative to the largest, the logits of two kernels may be that compute the same.
OTHER_MODEL = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}

_PROMPT = "Describe the image."


def check(subject: Subject, *, image: Any = None, max_new_tokens: int = 8) -> CheckReport:
    """A report on whether the recorder tells the truth about this model and leaves it alone.

    Asks: does the certificate hold for every row; do weights equal those of the library's eager attention in the same pass; is
    the output bit-identical with and without recording; is the model's state the same afterwards; does painting one patch of the
    image move the visual token that the grid names. Of a language model also: does generation with a cache give the weights of one
    pass over the text. Of CLIP: do the parts of its similarity add up. Of a diffusion pipeline also: does the same seed give the
    same maps.

    The eager reference switches the model to eager attention for one pass and back; recording never does.

    Parameters
    ----------
    image : any picture; by default a smooth random one of 300 x 400 pixels (height x width).

    Raises
    ------
    ProbeError
        If the model cannot be run at all; a question that fails is reported, not raised.
    """
    picture = read_image(smooth_picture() if image is None else image)
    if subject.family.kind == "image encoder":
        return check_encoder(subject, picture)
    if subject.family.kind == "q-former":
        return check_qformer(subject, picture)
    if subject.family.kind == "diffusion":
        from probe.capture.diffusion_checks import check_diffusion

        return check_diffusion(subject, picture)
    # transformers installs hooks of its own at a model's first pass and leaves them, so a plain pass goes before.
    generate_ids(subject, picture, _PROMPT, max_new_tokens=max_new_tokens)
    # Before the first recording: whatever it leaves is still there after the second.
    before = model_state({"model": subject.model})
    try:
        # Unverified: a certificate that fails is one of the answers, and must not keep the others from being found.
        generated = generate_and_record(subject, picture, _PROMPT, max_new_tokens=max_new_tokens, verify="off")
    except CaptureError as error:
        refused = CheckResult("recording", False, str(error), "no error")
        kernel = str(subject.model.get_decoder().config._attn_implementation)
        return CheckReport(subject.name, subject.family.name, kernel, dtype_name(subject), (refused,))
    # A model may say the placeholder of a patch, which cannot be read again as text.
    ids = list(takewhile(lambda one: one != image_token_id(subject.model), generated.token_ids))
    if not ids:
        raise CaptureError(
            f"The model answers with the image placeholder alone, which cannot be checked: {generated.tokens}."
        )

    questions: dict[str, Question] = {
        "state restored": lambda: restored(before, model_state({"model": subject.model})),
        "certificate": lambda: _certificate(subject, picture, max_new_tokens),
        "eager parity": lambda: _eager_parity(subject, picture, ids),
        "bit-identical output": lambda: _identical(subject, picture, ids),
        "geometry": lambda: _geometry(subject, picture),
        "generate equals one pass": lambda: _cache_parity(subject, picture, generated, ids),
    }
    if "cross-attention" in places_of(subject.model, subject.family):
        questions["certificates of its U-Net"] = lambda: _unet_certificates(subject, picture, ids)
    results = tuple(ask(name, question) for name, question in questions.items())
    return CheckReport(subject.name, subject.family.name, generated.source.kernel, dtype_name(subject), results)


def _geometry(subject: Subject, picture: Any) -> Answer:
    """Painting: of one square of patches also to half a pixel, of every other layout each view of it."""
    return paint_patches(subject, picture) if _plain_square(subject) else paint_views(subject, picture)


def _plain_square(subject: Subject) -> bool:
    """True if a picture becomes one square of patches, a token each, by steps that are understood one by one."""
    inputs, _ = inputs_for(subject, smooth_picture(), _PROMPT)
    plain = subject.family.image_tokens == "placeholder" and not subject.family.merge
    return plain and "image_sizes" not in inputs


def _certificate(subject: Subject, picture: Any, max_new_tokens: int) -> Answer:
    certificate = generate_and_record(
        subject, picture, _PROMPT, max_new_tokens=max_new_tokens, verify="all"
    ).certificate
    found = f"{certificate.max_error:.1e} of the output over {certificate.rows} rows in {certificate.layers} layers"
    return certificate.passed, found, f"{certificate.tolerance:.0e}", certificate.max_error


def _eager_parity(subject: Subject, picture: Any, ids: list[int]) -> Answer:
    """Recorded weights against the eager attentions of the very same pass, so that only the recorder can differ."""
    model = subject.model
    inputs, start = inputs_with_answer(subject, picture, _PROMPT, ids)
    used = model.get_decoder().config._attn_implementation
    with torch.inference_mode():
        plain = model(**inputs, use_cache=False).logits
    try:
        model.set_attn_implementation({"text_config": "eager"})
        watched = Recorder(model, subject.processor, answer_start=start, verify="off")
        with torch.inference_mode(), without_warnings(), watched as recorder:
            output = model(**inputs, use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation({"text_config": used})
    if not output.attentions or output.attentions[0] is None:
        raise CaptureError("The library's eager attention gave no weights for this model, so there is no reference.")
    (track,) = recorder.tracks
    views = views_of(
        track.sequence.units, track.sequence.image_keys,
        model=model, processor=subject.processor, family=subject.family, images=picture,
    ).views  # fmt: skip
    # Of layers that have no image among their keys there are attentions too.
    found = [output.attentions[module.layer_idx] for module in recorder.layers]
    pairs = [(reference, view) for reference in found for view in views]
    off = 0.0
    for layer, (reference, view) in zip(recorder.result(image=picture).layers, pairs, strict=True):
        rows = reference[0, :, start - 1 : start - 1 + len(ids)]
        patches = rows[..., list(view.positions)]
        off = max(off, float((layer.values[0].flatten(-2) - patches.to(layer.values)).abs().max()))
    allowed = PARITY.get(model.dtype, 1e-6)
    apart = float((output.logits - plain).abs().max() / plain.abs().max())
    # What is compared is eager attention with itself, so this is no fault of the recorder, but of those who switch to read.
    other = (
        f"; eager is another model here: its logits are {apart:.1e} apart"
        if apart > OTHER_MODEL.get(model.dtype, 1e-3)
        else ""
    )
    return off <= allowed, f"{off:.1e}{other}", f"{allowed:.0e}", off


def _identical(subject: Subject, picture: Any, ids: list[int]) -> Answer:
    inputs, _ = inputs_with_answer(subject, picture, _PROMPT, ids)
    with torch.inference_mode():
        plain = subject.model(**inputs, use_cache=False).logits
        with Recorder(subject.model, subject.processor):
            watched = subject.model(**inputs, use_cache=False).logits
    same = torch.equal(plain, watched)
    return same, "identical" if same else f"{float((plain - watched).abs().max()):.1e} apart", "identical"


def _cache_parity(subject: Subject, picture: Any, generated: AttentionRecord, ids: list[int]) -> Answer:
    whole = read_and_record(subject, picture, _PROMPT, answer=ids, verify="off").layers
    parts = generated.select(tokens=range(len(ids))).layers
    off = max(float((one.values - two.values).abs().max()) for one, two in zip(whole, parts, strict=True))
    allowed = CACHE_PARITY.get(subject.model.dtype, 1e-4)
    return off <= allowed, f"{off:.1e}", f"{allowed:.0e}", off


def _unet_certificates(subject: Subject, picture: Any, ids: list[int]) -> Answer:
    """Both kinds of attention of the U-Net from whose features the visual tokens are made."""
    inputs, _ = inputs_with_answer(subject, picture, _PROMPT, ids)
    found = []
    asked: dict[str, dict[str, Any]] = {"cross-attention": {}, "self-attention": {"patches": [(0, 0)]}}
    for place, options in asked.items():
        with torch.inference_mode(), record(subject, place=place, verify="all", **options) as recorder:
            subject.model(**inputs, use_cache=False)
        found.append(recorder.result(image=picture).certificate)
    worst = max(found, key=lambda one: one.max_error)
    shown = f"{worst.max_error:.1e} of the output over {sum(one.rows for one in found)} rows"
    return all(one.passed for one in found), shown, f"{worst.tolerance:.0e}"
