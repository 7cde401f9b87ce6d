"""From the maps that a DiffusionRecorder collected to a record: tokens, geometry, certificate and source."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probe.attention import AttentionRecord, LayerAttention
from probe.capture.geometry import Preparation
from probe.capture.sdpa import KERNEL
from probe.capture.unets import grid_shape, level_of
from probe.capture.weights import tolerance_of
from probe.errors import CertificateError
from probe.layout import REST_PLACES, PatchGrid
from probe.provenance import Certificate, Source
from probe.text import shorten

if TYPE_CHECKING:
    from probe.capture.diffusion import DiffusionRecorder

__all__ = ["assemble_diffusion"]


def assemble_diffusion(recorder: DiffusionRecorder, image: Any) -> AttentionRecord:
    """The record of a recorder's finished pass; see ``DiffusionRecorder.result``."""
    keys, latent = recorder.keys, recorder.latent
    assert keys is not None  # for the type checker: every finished pass has both
    assert latent is not None
    preparation = recorder.given_preparation or recorder.conditioning.preparation(latent, image)
    crossed = recorder.place == "cross-attention"
    # Maps that are no numbers say more of the cause than the certificate that they fail.
    layers = tuple(_layer(recorder, module, name, preparation) for module, name in recorder.layers.items())
    cells = [f"({row}, {col})" for row, col in recorder.cells]
    count = len(recorder.steps)
    return AttentionRecord(
        layers=layers,
        quantity="attention",
        query_kind=keys.kind if crossed else "patch",
        tokens=keys.tokens if crossed else tuple(cells),
        token_ids=keys.token_ids if crossed else (-1,) * len(cells),
        spans=keys.spans if crossed else ((0, 0),) * len(cells),
        text=keys.text if crossed else "",
        image_size=preparation.image_size,
        softmax_over="tokens" if crossed else "patches",
        query_row=None,
        certificate=_certificate(recorder),
        source=_source(recorder, preparation),
        history=(f"mean over {count} timestep{'s' * (count > 1)}",) if recorder.timesteps == "mean" else (),
    )


def _layer(recorder: DiffusionRecorder, module: nn.Module, name: str, preparation: Preparation) -> LayerAttention:
    values = recorder.stores[module].finished()
    steps, heads, tokens, rows, cols = values.shape
    assert recorder.latent is not None  # for the type checker: every finished pass has it
    level = level_of(rows * cols, recorder.latent)
    # The latents of a whole picture, also where it is no whole number of patches: the last ones then reach beyond it.
    grid = PatchGrid.from_affine(
        preparation.image_size,
        shape=grid_shape(recorder.latent, level),
        patch_size=preparation.frame[0] // recorder.latent[0] << level,
        scale=preparation.scale,
        offset=preparation.offset,
    )
    words = (
        list(range(tokens))
        if recorder.place == "self-attention"
        else list(recorder.keys.words if recorder.keys else ())
    )
    # A text without words has no mean over them, and nothing to subtract.
    mean = values[:, :, words].mean(2) if words else values.new_zeros(steps, heads, rows, cols)
    return LayerAttention(
        name=name,
        view="image 0",
        grid=grid,
        values=values,
        token_mean=mean,
        rest=values.new_zeros(steps, heads, tokens, len(REST_PLACES)),
        heads=recorder.heads[module],
        timesteps=(-1,) if recorder.timesteps == "mean" else tuple(recorder.steps),
    )


def _certificate(recorder: DiffusionRecorder) -> Certificate:
    tolerance = tolerance_of(recorder.dtype, KERNEL)
    wrong = {recorder.layers[module]: store.count for module, store in recorder.stores.items()}
    wrong = {name: count for name, count in wrong.items() if count != len(recorder.steps)}
    if wrong:
        name, count = next(iter(wrong.items()))
        raise CertificateError(
            f"{len(wrong)} layers were not read in every pass: {name} has {count} of {len(recorder.steps)} timesteps."
        )
    if recorder.verify != "off" and not recorder.max_error <= tolerance:
        raise CertificateError(
            f"The recorded attention does not rebuild what the model computed: largest error {recorder.max_error:.1e} of the "
            f"output in {recorder.worst}, allowed {tolerance:.0e} for {recorder.dtype} under {KERNEL!r}. The attention processor "
            "does something that is not known here; call unet.set_attn_processor(AttnProcessor2_0())."
        )
    patches = sum(store.patches for store in recorder.stores.values())
    tokens = len(recorder.keys.tokens) if recorder.keys is not None else 0
    return Certificate(
        recorder.verify, recorder.checked_rows, recorder.max_error, tolerance, len(recorder.layers), tokens, patches
    )


def _source(recorder: DiffusionRecorder, preparation: Preparation) -> Source:
    import probe

    conditioning = recorder.conditioning
    names = ("diffusers", "transformers")
    return Source(
        family=conditioning.family,
        model=conditioning.model,
        revision=str(getattr(recorder.unet.config, "_commit_hash", None) or ""),
        tap="torch scaled_dot_product_attention",
        kernel=KERNEL,
        dtype=str(recorder.dtype).removeprefix("torch."),
        preparation=preparation.steps,
        prompt=shorten(conditioning.prompt, 2000),
        versions={
            "groundprobe": probe.__version__,
            "torch": torch.__version__,
            **{name: importlib.metadata.version(name) for name in names},
        },
        seed=conditioning.seed,
        ablation="; ".join(recorder.edits),
    )
