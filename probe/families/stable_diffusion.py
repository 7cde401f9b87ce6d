"""Stable Diffusion 1.x, 2.x and SDXL: a U-Net whose patches attend to the words (Rombach et al., arXiv 2112.10752)."""

from probe.families.base import Family

STABLE_DIFFUSION = Family(
    name="stable_diffusion",
    model_types=(),
    models=("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    attention=("Attention",),
    image_tokens="none",
    class_token=False,
    image_processors=("VaeImageProcessor*",),
    kind="diffusion",
    denoiser=("UNet2DConditionModel",),
    text_encoders=(("text_encoder", "text_encoder_2"),),
)
