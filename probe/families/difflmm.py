"""DiffLMM: a LLaVA whose visual tokens come from a diffusion U-Net beside CLIP (Cao et al., arXiv 2410.08209)."""

from probe.families.base import Family

DIFFLMM = Family(
    name="difflmm",
    model_types=("difflmm",),
    models=("DiffLMMForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="placeholder",
    class_token=True,
    image_processors=("DiffLMMImageProcessor*",),
)
