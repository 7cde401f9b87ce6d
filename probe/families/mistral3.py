"""Mistral 3 and Pixtral: grids of the picture's own size, a break token behind every row (arXiv 2410.07073)."""

from probe.families.base import Family

MISTRAL3 = Family(
    name="mistral3",
    model_types=("mistral3",),
    models=("Mistral3ForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="placeholder",
    class_token=False,
    image_processors=("PixtralImageProcessor*",),
    merge="spatial_merge_size",
)
