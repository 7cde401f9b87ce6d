"""Pixtral 12B as a LLaVA: grids of the picture's own size, a break token behind every row, nothing merged (arXiv 2410.07073)."""

from probe.families.base import Family

PIXTRAL = Family(
    name="pixtral",
    model_types=("llava",),
    models=("LlavaForConditionalGeneration",),
    # Checkpoints of other vision towers have the same class, and are LLaVAs.
    vision_types=("pixtral",),
    attention=("*Attention",),
    image_tokens="placeholder",
    class_token=False,
    image_processors=("PixtralImageProcessor*",),
)
