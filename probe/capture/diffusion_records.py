"""From the maps that a DiffusionRecorder collected to a record: tokens, geometry, certificate and source."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probe.attention import AttentionRecord, LayerAttention, QueryKind
from probe.capture.geometry import Preparation
from probe.capture.readings import IMAGE, Reading
from probe.capture.sdpa import KERNEL
from probe.errors import CertificateError
from probe.layout import REST_PLACES, PatchGrid
from probe.provenance import Certificate, Source
from probe.text import shorten

if TYPE_CHECKING:
    from probe.capture.diffusion import DiffusionRecorder

__all__ = ["assemble_diffusion", "pipeline_source"]


def assemble_diffusion(recorder: DiffusionRecorder, image: Any) -> AttentionRecord:
    """The record of a recorder's finished pass; see ``DiffusionRecorder.result``."""
    reading, cells = recorder.reading, recorder.cells
    assert reading is not None  # for the type checker: every finished pass has both
    assert cells is not None
    preparation = recorder.given_preparation or recorder.conditioning.preparation(cells, image)
    # Maps that are no numbers say more of the cause than the certificate that they fail.
    layers = tuple(_layer(recorder, reading, module, name, preparation) for module, name in recorder.layers.items())
    count = len(recorder.steps)
    keys = reading.keys
    tokens = [(keys.tokens[i], keys.token_ids[i], keys.spans[i]) for i in reading.tokens]
    if reading.place == "image to text":
        tokens.append((IMAGE, -1, (0, 0)))
    tokens += [(f"({row}, {col})", -1, (0, 0)) for row, col in reading.cells]
    return AttentionRecord(
        layers=layers,
        quantity="attention",
        query_kind=_query_kind(reading),
        tokens=tuple(token for token, _, _ in tokens),
        token_ids=tuple(number for _, number, _ in tokens),
        spans=tuple(span for _, _, span in tokens),
        text="" if reading.cells else keys.text,
        image_size=preparation.image_size,
        softmax_over="sequence" if reading.joint else "tokens" if reading.of_words else "patches",
        query_row=None,
        certificate=_certificate(recorder),
        source=_source(recorder, preparation),
        history=(f"mean over {count} timestep{'s' * (count > 1)}",) if recorder.timesteps == "mean" else (),
    )


def _query_kind(reading: Reading) -> QueryKind:
    """Who asks: in joint attention a map of patches that read a word is not one of a word that reads patches."""
    if reading.place == "image to text":
        return "patch reading text"
    if reading.place == "text to image":
        return "text reading patches"
    return reading.keys.kind if reading.of_words else "patch"


def _layer(
    recorder: DiffusionRecorder, reading: Reading, module: nn.Module, name: str, preparation: Preparation
) -> LayerAttention:
    values = recorder.stores[module].finished()
    steps, heads, tokens, rows, cols = values.shape
    assert recorder.cells is not None  # for the type checker: every finished pass has it
    level, shape = recorder.denoiser.grid(rows * cols, recorder.cells)
    # The latents of a whole picture, also where it is no whole number of patches: the last ones then reach beyond it.
    grid = PatchGrid.from_affine(
        preparation.image_size,
        shape=shape,
        patch_size=preparation.frame[0] // recorder.cells[0] << level,
        scale=preparation.scale,
        offset=preparation.offset,
    )
    words = [place for place, token in enumerate(reading.tokens) if token in reading.keys.words]
    if reading.cells:
        words = list(range(tokens))
    # A text without words has no mean over them, and nothing to subtract.
    mean = values[:, :, words].mean(2) if words else values.new_zeros(steps, heads, rows, cols)
    elsewhere = recorder.rests[module]
    return LayerAttention(
        name=name,
        view="image 0",
        grid=grid,
        values=values,
        token_mean=mean,
        rest=elsewhere.finished()[..., 0, :]
        if elsewhere.count
        else values.new_zeros(steps, heads, tokens, len(REST_PLACES)),
        heads=recorder.heads[module],
        timesteps=(-1,) if recorder.timesteps == "mean" else tuple(recorder.steps),
    )


def _certificate(recorder: DiffusionRecorder) -> Certificate:
    wrong = {recorder.layers[module]: store.count for module, store in recorder.stores.items()}
    wrong = {name: count for name, count in wrong.items() if count != len(recorder.steps)}
    if wrong:
        name, count = next(iter(wrong.items()))
        raise CertificateError(
            f"{len(wrong)} layers were not read in every pass: {name} has {count} of {len(recorder.steps)} timesteps."
        )
    return recorder.rebuilt.certificate(
        recorder.dtype,
        KERNEL,
        layers=len(recorder.layers),
        tokens=len(recorder.reading.keys.tokens) if recorder.reading is not None else 0,
        patches=sum(store.patches for store in recorder.stores.values()),
        advice="The attention processor does something that is not known here; give the model the library's own back "
        "(set_attn_processor).",
    )


def _source(recorder: DiffusionRecorder, preparation: Preparation) -> Source:
    conditioning = recorder.conditioning
    return pipeline_source(
        conditioning.family,
        conditioning.model,
        recorder.denoiser.module,
        dtype=recorder.dtype,
        preparation=preparation.steps,
        prompt=conditioning.prompt,
        seed=conditioning.seed,
        ablation="; ".join(recorder.edits),
    )


def pipeline_source(
    family: str,
    model: str,
    denoiser: Any,
    *,
    preparation: str,
    prompt: str,
    seed: int | None,
    dtype: torch.dtype | None = None,
    ablation: str = "",
) -> Source:
    """Where a record of this denoiser comes from."""
    import probe

    return Source(
        family=family,
        model=model,
        revision=str(getattr(denoiser.config, "_commit_hash", None) or ""),
        tap="torch scaled_dot_product_attention",
        kernel=KERNEL,
        dtype=str(dtype or denoiser.dtype).removeprefix("torch."),
        preparation=preparation,
        prompt=shorten(prompt, 2000),
        versions={
            "groundprobe": probe.__version__,
            "torch": torch.__version__,
            **{name: importlib.metadata.version(name) for name in ("diffusers", "transformers")},
        },
        seed=seed,
        ablation=ablation,
    )
