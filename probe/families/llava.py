"""LLaVA-1.5 and its like: CLIP patches through a projector, one placeholder token a patch (Liu et al., arXiv 2310.03744)."""

from probe.families.base import Family

LLAVA = Family(
    name="llava",
    model_types=("llava",),
    models=("LlavaForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="placeholder",
    class_token=True,
    image_processors=("CLIPImageProcessor*", "LlavaImageProcessor*", "SiglipImageProcessor*"),
)
