"""Flux.1: one attention over words and patches, words first, also in its single-stream blocks (Black Forest Labs, 2024)."""

from probe.families.base import Family

FLUX = Family(
    name="flux",
    model_types=(),
    models=("FluxPipeline",),
    attention=("FluxAttention",),
    image_tokens="none",
    class_token=False,
    image_processors=("VaeImageProcessor*",),
    kind="diffusion",
    denoiser=("FluxTransformer2DModel",),
    text_encoders=(("text_encoder_2",),),
    text_first=True,
)
