"""ConceptAttention: which of several concepts each patch resembles, by what attention gives out for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.denoisers import Denoiser, denoiser_of
from probe.capture.denoising import (
    chosen_timesteps,
    draw_noise,
    encode_picture,
    execution_device,
    latent_preparation,
)
from probe.capture.diffusion_records import pipeline_source
from probe.capture.hooks import watch_forward
from probe.capture.noising import encode_text, noise_at
from probe.capture.prompts import prompt_keys
from probe.capture.sdpa import edit_sdpa, torch_kernel
from probe.capture.taps import AttentionCall
from probe.capture.unets import choose_layers
from probe.capture.weights import TOLERANCES
from probe.errors import CaptureError, CertificateError, InputError
from probe.images import image_size, read_image
from probe.layout import REST_PLACES, Indices
from probe.models import Subject
from probe.provenance import Certificate
from probe.text import shorten

__all__ = ["concept_maps"]


def concept_maps(
    subject: Subject,
    picture: Any,
    text: str,
    concepts: Sequence[str],
    *,
    timesteps: Sequence[int] | int = (500,),
    layers: Indices | str | Sequence[str] = "transformer_blocks",
    seed: int = 0,
) -> AttentionRecord:
    """Which of these concepts each patch of a picture resembles, in each joint attention layer: an ``AttentionRecord``.

    >>> record = probe.concept_maps(subject, "photo.jpg", "a cat on the grass", ["cat", "grass", "sky"])
    >>> record["grass"].heatmap()

    This is no attention weight: ``quantity`` is "concept similarity". The concepts run through the model's own text stream beside
    the prompt, look at the patches and at each other, and nothing looks at them, so that patches and prompt are what they would be
    without them: that they are is measured on what the model gives out, and is the record's certificate. In each layer the value of
    concept c at patch x is ``softmax over c of (o_x . o_c)``, with o what the attention gives out for x and c before its output
    projection, all heads together. A concept is the mean of T5's states of its words.

    Parameters
    ----------
    subject : a pipeline with joint attention (Stable Diffusion 3, Flux), from ``load_model``.
    picture : path, PIL image or (height, width, 3) uint8 array; it is noised as ``noise_and_record`` does.
    text : what the picture shows; the prompt.
    concepts : two or more, each different; the softmax is over these, so add what else is in the picture.
    timesteps : numbers of the training schedule, 1 to 1000.
    layers : by number or by the beginning of their names; by default those that hold patches and words in two streams, as in the
        paper.
    seed : what the noise follows from.

    Raises
    ------
    InputError
        If there are fewer than two concepts, one has no word, or a timestep or layer does not exist.
    CaptureError
        If the pipeline has no joint attention.
    CertificateError
        If the concepts changed what the model gives out.

    References
    ----------
    Helbling et al., ConceptAttention: Diffusion Transformers Learn Highly Interpretable Features, arXiv 2502.04320, section 4.
    """
    if not isinstance(subject, Subject) or subject.family.text_first is None:
        raise CaptureError(
            f"concept_maps() needs the Subject of a pipeline with joint attention (Stable Diffusion 3, Flux), found "
            f"{shorten(repr(subject), 70)}."
        )
    pipeline = subject.model
    names = _concepts(concepts)
    chosen = chosen_timesteps(pipeline, timesteps)
    denoiser = denoiser_of(pipeline.transformer)
    found = choose_layers(denoiser.attention("image to text"), layers, place="image to text")
    image = read_image(picture)
    preparation = latent_preparation(pipeline, denoiser, image_size(image))
    grid = preparation.grid(denoiser.side * int(pipeline.vae_scale_factor))
    patches = grid.shape[0] * grid.shape[1]
    stream = _Stream(denoiser, prompt_keys(pipeline, text).count, len(names), patches, {one for _, one in found})
    keys = [prompt_keys(pipeline, one) for one in names]
    with torch.inference_mode():
        device = execution_device(pipeline)
        latents = encode_picture(pipeline, image, preparation.frame)
        noise = draw_noise(latents.shape, seed=seed, draw=0).to(latents)
        states = encode_text(pipeline, text, device=device)
        each = [_state(encode_text(pipeline, one, device=device)[0], key) for one, key in zip(names, keys, strict=True)]
        passes = [
            _pass(pipeline, denoiser, stream, states, each, noise_at(pipeline, latents, noise, number), number)
            for number in chosen
        ]
    spans, joined = _spans(names)
    return AttentionRecord(
        layers=tuple(_layer(name, stream.maps[module], grid, chosen) for name, module in found),
        quantity="concept similarity",
        query_kind="concept",
        tokens=names,
        token_ids=(-1,) * len(names),
        spans=spans,
        text=joined,
        image_size=preparation.image_size,
        softmax_over="tokens",
        query_row=None,
        certificate=_certificate(denoiser, passes, layers=len(found), concepts=len(names), patches=patches),
        source=pipeline_source(
            subject.family.name, subject.name, denoiser.module, preparation=preparation.steps, prompt=text, seed=seed
        ),
    )


def _pass(
    pipeline: Any,
    denoiser: Denoiser,
    stream: _Stream,
    states: tuple[Any, ...],
    concepts: list[Tensor],
    latents: Tensor,
    timestep: int,
) -> float:
    """Two passes, without and with the concepts: by how much what is given out differs, relative to its largest."""
    latents = latents.to(denoiser.module.dtype)
    plain = _output(denoiser, pipeline, states, latents, timestep)
    every = [module for _, module in denoiser.attention("image to text")]
    with edit_sdpa(every, stream, name="concepts beside the prompt"):
        longer = _with(states, torch.stack(concepts, dim=1), denoiser)
        beside = _output(denoiser, pipeline, longer, latents, timestep)
    # A NaN compares false with everything, and is never right.
    return float(torch.nan_to_num((beside - plain).abs().max() / plain.abs().max(), nan=torch.inf))


def _certificate(denoiser: Denoiser, passes: list[float], *, layers: int, concepts: int, patches: int) -> Certificate:
    """That the concepts changed nothing; ``CertificateError`` if they did."""
    tolerance = 10 * TOLERANCES.get(denoiser.module.dtype, 0.0)  # a whole pass, whose layers add up
    if not max(passes) <= tolerance:
        raise CertificateError(
            f"With the concepts beside its prompt the model gives out something else: {max(passes):.1e} of its output, allowed "
            f"{tolerance:.0e}; something other than attention lets its words see each other, which is not known here."
        )
    return Certificate("all", patches * len(passes), max(passes), tolerance, layers, concepts, patches)


@dataclass
class _Stream:
    """Lets concepts look at patches and each other while nothing looks at them; keeps what resembles them.

    An editor of ``edit_sdpa``: what the kernel gave out for patches and prompt is put back to what it gives without concepts.
    """

    denoiser: Denoiser
    prompt: int
    concepts: int
    patches: int
    layers: set[nn.Module]
    maps: dict[nn.Module, list[Tensor]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, call: AttentionCall) -> Tensor:
        total = self.prompt + self.concepts + self.patches
        if call.query.shape[2] != total or call.key.shape[2] != total or call.mask is not None:
            raise CaptureError(
                f"A joint attention layer saw {call.query.shape[2]} queries and {call.key.shape[2]} keys where {total} were given, "
                "or a mask; its concepts cannot be told from the rest."
            )
        text_first = bool(self.denoiser.family.text_first)
        words = 0 if text_first else self.patches
        image = torch.arange(self.patches) + (self.prompt + self.concepts if text_first else 0)
        asked = torch.arange(self.concepts) + words + self.prompt
        others = torch.tensor([one for one in range(total) if not asked[0] <= one <= asked[-1]])
        seen = torch.cat([asked, image]).sort().values
        output = call.output.clone()
        for rows, keys in ((others, others), (asked, seen)):
            rows, keys = rows.to(output.device), keys.to(output.device)
            query, key, value = (
                one.index_select(2, index) for one, index in ((call.query, rows), (call.key, keys), (call.value, keys))
            )
            output[:, rows] = torch_kernel(query, key, value, scale=call.options.get("scaling")).transpose(1, 2)
        if module in self.layers:
            compute = torch.float64 if output.dtype == torch.float64 else torch.float32
            flat = output[0].flatten(1).to(compute)  # all heads together
            resemblance = flat[asked.to(output.device)] @ flat[image.to(output.device)].T
            self.maps.setdefault(module, []).append(torch.softmax(resemblance, dim=0).cpu())
        return output


def _concepts(concepts: Any) -> tuple[str, ...]:
    listed = (concepts,) if isinstance(concepts, str) else tuple(concepts)
    if len(listed) < 2 or len(set(listed)) < len(listed) or not all(isinstance(one, str) for one in listed):
        raise InputError(
            f"concepts must be two or more different texts, such as ['cat', 'grass'], found {listed!r}; with one alone a softmax "
            "over concepts is 1 everywhere."
        )
    return listed


def _state(states: Tensor, keys: Any) -> Tensor:
    """(1, channel) state of one concept: the mean over its words in the last text encoder, T5."""
    first = keys.count - keys.groups[-1]
    places = [keys.positions[one][0] for one in keys.words if keys.positions[one][0] >= first]
    if not places:
        raise CaptureError(
            "This pipeline has no T5, whose states of a concept's words are needed; load it with its text_encoder_3."
        )
    return states[:, places].mean(1)


def _with(states: tuple[Any, ...], added: Tensor, denoiser: Denoiser) -> tuple[Any, ...]:
    """What ``encode_prompt`` gave out with the concepts after the prompt's words."""
    longer = list(states)
    longer[0] = torch.cat([states[0], added.to(states[0])], dim=1)
    if denoiser.family.name == "flux":
        # Positions of text: all the same in Flux.
        longer[2] = torch.cat([states[2], torch.zeros_like(states[2][:1]).expand(added.shape[1], -1)])
    return tuple(longer)


def _output(denoiser: Denoiser, pipeline: Any, states: tuple[Any, ...], latents: Tensor, timestep: int) -> Tensor:
    """What the denoiser gives out."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output.sample)

    with watch_forward([denoiser.module], after=keep):
        denoiser.run(pipeline, states, latents, timestep)
    return kept[0].float() if kept[0].dtype != torch.float64 else kept[0]


def _spans(names: tuple[str, ...]) -> tuple[tuple[tuple[int, int], ...], str]:
    """Where each concept stands in all of them, joined by commas."""
    spans, begin = [], 0
    for one in names:
        spans.append((begin, begin + len(one)))
        begin += len(one) + 2
    return tuple(spans), ", ".join(names)


def _layer(name: str, maps: list[Tensor], grid: Any, timesteps: tuple[int, ...]) -> LayerAttention:
    rows, cols = grid.shape
    values = rearrange(torch.stack(maps), "step token (row col) -> step 1 token row col", row=rows, col=cols)
    return LayerAttention(
        name=name,
        view="image 0",
        grid=grid,
        values=values,
        token_mean=values.mean(2),
        rest=values.new_zeros(*values.shape[:3], len(REST_PLACES)),
        heads=(-1,),
        timesteps=timesteps,
    )
