"""LLaVA-NeXT (1.6): a thumbnail, and tiles of any resolution put together (Liu et al., 2024)."""

from probe.families.base import Family

LLAVA_NEXT = Family(
    name="llava_next",
    model_types=("llava_next",),
    models=("LlavaNextForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="anyres",
    class_token=True,
    image_processors=("LlavaNextImageProcessor*",),
)
