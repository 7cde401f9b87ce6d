"""A real picture seen by a diffusion model: encoded, noised at a timestep, and denoised by one pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.denoisers import Denoiser, denoiser_of
from probe.capture.diffusion import Cells, DiffusionRecorder, require_inside
from probe.capture.geometry import Preparation
from probe.capture.noising import encode_text, noise_at, training_timesteps
from probe.capture.places import Place
from probe.capture.prompts import prompt_keys
from probe.errors import CaptureError, InputError
from probe.images import image_size, read_image
from probe.layout import Indices, resolve_indices
from probe.models import Subject
from probe.text import shorten

__all__ = [
    "Denoised",
    "chosen_timesteps",
    "draw_noise",
    "encode_picture",
    "execution_device",
    "latent_preparation",
    "noise_and_record",
]


@dataclass(frozen=True, eq=False)
class Denoised:
    """What a diffusion model looked at while it denoised one picture.

    Attributes
    ----------
    record : the attention, averaged over the draws of noise.
    variance : its sample variance over the draws, map by map; ``None`` where there was one draw.
    """

    record: AttentionRecord
    variance: AttentionRecord | None


def noise_and_record(
    subject: Subject,
    picture: Any,
    text: str,
    *,
    timesteps: Sequence[int] | int = (100,),
    seed: int = 0,
    draws: int = 1,
    place: Place | None = None,
    layers: Indices | str | Sequence[str] = None,
    heads: Indices = None,
    reduce: Literal["all", "mean"] = "all",
    patches: Cells | None = None,
    verify: Literal["sample", "all", "off"] = "sample",
    offload: bool = False,
) -> Denoised:
    """The attention of a diffusion model that denoises a real picture, told what it shows: a ``Denoised``.

    >>> found = noise_and_record(probe.load_model("lab/diffusion"), "photo.jpg", "a red circle", timesteps=(100, 200))
    >>> found.record["red circle"].heatmap()

    The picture is squashed to the size that the model was trained on and encoded (the mean of the autoencoder's posterior); noise
    is added for each timestep as it was in training; the model runs once a timestep and draw, with this text and without guidance.
    (A Flux that was distilled from guidance is told its pipeline's default scale.)

    Parameters
    ----------
    subject : a diffusion pipeline, from ``load_model``.
    picture : path, PIL image or (height, width, 3) uint8 array.
    text : what the picture shows; the prompt.
    timesteps : numbers of the training schedule: from 0 (no noise to speak of) to 999; in flow matching (Stable Diffusion 3, Flux)
        from 1 to 1000, where t means t / 1000 noise and the rest picture.
    seed : with the number of the draw it determines the noise, and nothing else does: the same on any machine, for any timestep.
    draws : how often noise is drawn; the record is the mean over the draws.
    place, layers, heads, patches, verify, offload : see ``DiffusionRecorder``.
    reduce : "all" keeps every timestep apart, "mean" averages over them.

    Raises
    ------
    InputError
        If a timestep is outside the schedule, the picture is smaller than one latent, the text is too long for the text encoder, or
        an option does not exist: all before anything is computed.
    CaptureError, CertificateError
        As ``DiffusionRecorder`` does.
    """
    if not isinstance(subject, Subject) or subject.family.kind != "diffusion":
        raise InputError(
            f"noise_and_record() needs the Subject of a diffusion pipeline, found {shorten(repr(subject), 70)}; make one with "
            'load_model("lab/diffusion"), for instance.'
        )
    pipeline = subject.model
    denoiser = denoiser_of(getattr(pipeline, "unet", None) or pipeline.transformer)
    chosen = chosen_timesteps(pipeline, timesteps)
    _require_counts(seed, draws)
    if reduce not in ("all", "mean"):
        raise InputError(f"reduce must be 'all' or 'mean'; found {reduce!r}.")
    prompt_keys(pipeline, text)
    image = read_image(picture)
    preparation = latent_preparation(pipeline, denoiser, image_size(image))

    def recorder() -> DiffusionRecorder:
        return DiffusionRecorder(
            pipeline,
            place=place,
            layers=layers,
            heads=heads,
            timesteps=reduce,
            patches=patches,
            verify=verify,
            offload=offload,
            preparation=preparation,
        )

    # What cannot be recorded is refused before the picture is encoded.
    factor = int(pipeline.vae_scale_factor) * denoiser.side
    cells = (preparation.frame[0] // factor, preparation.frame[1] // factor)
    require_inside(recorder().patches or (), cells, denoiser.cell)
    with torch.inference_mode():
        latents = encode_picture(pipeline, image, preparation.frame)
        records = (
            _one_draw(pipeline, denoiser, recorder(), latents, text, timesteps=chosen, seed=seed, draw=draw)
            for draw in range(draws)
        )
        return _averaged(records, draws)


def draw_noise(shape: Sequence[int], *, seed: int, draw: int) -> Tensor:
    """Standard normal float32 noise on the CPU that depends on ``seed`` and ``draw`` alone."""
    # Neighbouring seeds and draws must not share noise, as seed + draw would.
    mixed = np.random.SeedSequence((seed, draw)).generate_state(1, np.uint64)[0]
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(int(mixed)), dtype=torch.float32)


def chosen_timesteps(pipeline: Any, wanted: Sequence[int] | int) -> tuple[int, ...]:
    """The timesteps asked for, if the pipeline's model was trained at them; ``InputError`` if not."""
    known = training_timesteps(pipeline)
    listed: list[Any] = list(wanted) if isinstance(wanted, (list, tuple, range)) else [wanted]
    if any(isinstance(one, int) and one < known[0] for one in listed):
        raise InputError(
            f"timesteps={tuple(listed)!r} must be numbers of the schedule, {known[0]} to {known[-1]}; they are not negative"
            f"{', and at 0 there is no noise' if known[0] else ''}."
        )
    if known[0] and any(isinstance(one, int) and one > known[-1] for one in listed):
        raise InputError(f"timesteps={tuple(listed)!r} must be numbers of the schedule, {known[0]} to {known[-1]}.")
    return resolve_indices(listed, known[-1] + 1, what="timestep")


def _require_counts(seed: Any, draws: Any) -> None:
    for name, value, least in (("seed", seed, 0), ("draws", draws, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a whole number of {least} or more, found {value!r}.")


def latent_preparation(pipeline: Any, denoiser: Denoiser, size: tuple[int, int]) -> Preparation:
    """The picture squashed to the model's own size, whatever its shape was."""
    factor = int(pipeline.vae_scale_factor)
    if min(size) < factor:
        raise InputError(
            f"The image has {size[0]} x {size[1]} pixels (height x width), less than the {factor} x {factor} of one latent; give a "
            "larger one."
        )
    rows, cols = denoiser.size(pipeline)
    frame = (rows * factor, cols * factor)
    scale = (frame[0] / size[0], frame[1] / size[1])
    return Preparation(f"squash to {frame[0]} x {frame[1]}", size, frame, scale, (0.0, 0.0))


def encode_picture(pipeline: Any, image: Any, frame: tuple[int, int]) -> Tensor:
    """(1, channel, row, col) latents of a picture: the mean of the autoencoder's posterior, scaled as the denoiser expects it."""
    processor, vae = pipeline.image_processor, pipeline.vae
    pixels = processor.preprocess(image, height=frame[0], width=frame[1])
    if tuple(pixels.shape) != (1, 3, *frame):
        raise CaptureError(
            f"The pipeline's {type(processor).__name__} makes pictures of shape {tuple(pixels.shape)} where {(1, 3, *frame)} was "
            "asked for (its resizing may be switched off), so patches could not be placed."
        )
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae = copy.deepcopy(vae).float()  # SDXL's gives NaN in half precision; the user's own stays as it is
    latents = vae.encode(pixels.to(execution_device(pipeline), vae.dtype)).latent_dist.mode()
    mean, spread = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and spread is not None:
        mean, spread = (
            torch.tensor(one, dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1) for one in (mean, spread)
        )
        latents = (latents - mean) / spread
    # Stable Diffusion 3 and Flux move their latents besides.
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def execution_device(pipeline: Any) -> torch.device:
    """Where a pipeline computes."""
    # Where offloading keeps the modules in host memory, this one says where they run.
    return getattr(pipeline, "_execution_device", pipeline.device)


def _one_draw(
    pipeline: Any,
    denoiser: Denoiser,
    recorder: DiffusionRecorder,
    latents: Tensor,
    text: str,
    *,
    timesteps: tuple[int, ...],
    seed: int,
    draw: int,
) -> AttentionRecord:
    """The record of one draw of noise at each timestep."""
    noise = draw_noise(latents.shape, seed=seed, draw=draw).to(latents)
    with recorder:
        states = encode_text(pipeline, text, device=execution_device(pipeline))
        for number in timesteps:
            noised = noise_at(pipeline, latents, noise, number).to(denoiser.module.dtype)
            denoiser.run(pipeline, states, noised, number)
    record = recorder.result()
    return replace(record, source=replace(record.source, seed=seed))


def _averaged(records: Iterator[AttentionRecord], draws: int) -> Denoised:
    """Mean and sample variance over records that are alike, held one at a time (Welford's recurrence, in double precision)."""
    first = next(records)
    if draws == 1:
        return Denoised(first, None)
    parts = ("values", "token_mean", "rest")
    # Copies, also of what is in double precision already: they are added to in place.
    mean = [[getattr(layer, part).to(torch.float64, copy=True) for part in parts] for layer in first.layers]
    square = [[torch.zeros_like(one) for one in layer] for layer in mean]
    rows, worst = first.certificate.rows, first.certificate.max_error
    for count, record in enumerate(records, start=2):
        rows, worst = rows + record.certificate.rows, max(worst, record.certificate.max_error)
        for layer, means, squares in zip(record.layers, mean, square, strict=True):
            for part, average, total in zip(parts, means, squares, strict=True):
                new = getattr(layer, part).double()
                off = new - average
                average += off / count
                total += off * (new - average)
    certificate = replace(first.certificate, rows=rows, max_error=worst)

    def again(numbers: list[list[Tensor]], what: str) -> AttentionRecord:
        layers = tuple(
            _with(layer, dict(zip(parts, found, strict=True)))
            for layer, found in zip(first.layers, numbers, strict=True)
        )
        history = (*first.history, f"{what} over {draws} draws of noise")
        return replace(first, layers=layers, certificate=certificate, history=history)

    variance = [[one / (draws - 1) for one in layer] for layer in square]
    return Denoised(again(mean, "mean"), again(variance, "variance"))


def _with(layer: LayerAttention, parts: dict[str, Tensor]) -> LayerAttention:
    return replace(layer, **{name: one.to(layer.values.dtype) for name, one in parts.items()})  # type: ignore[arg-type]
