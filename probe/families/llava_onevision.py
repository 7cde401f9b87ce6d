"""LLaVA-OneVision: as LLaVA-NeXT, with no more cells than a number of tiles has (Li et al., arXiv 2408.03326)."""

from probe.families.base import Family

LLAVA_ONEVISION = Family(
    name="llava_onevision",
    model_types=("llava_onevision",),
    models=("LlavaOnevisionForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="anyres",
    class_token=False,
    image_processors=("LlavaOnevisionImageProcessor*",),
)
