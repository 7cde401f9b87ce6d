"""Stable Diffusion 3 and 3.5: one attention over patches and words, patches first (Esser et al., arXiv 2403.03206)."""

from probe.families.base import Family

STABLE_DIFFUSION_3 = Family(
    name="stable_diffusion_3",
    model_types=(),
    models=("StableDiffusion3Pipeline",),
    attention=("Attention",),
    image_tokens="none",
    class_token=False,
    image_processors=("VaeImageProcessor*",),
    kind="diffusion",
    denoiser=("SD3Transformer2DModel",),
    text_encoders=(("text_encoder", "text_encoder_2"), ("text_encoder_3",)),
    text_first=False,
)
