"""Gemma 3: each picture attends both ways within itself; most layers slide a window (Gemma Team, arXiv 2503.19786)."""

from probe.families.base import Family

GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3",),
    models=("Gemma3ForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="placeholder",
    class_token=False,
    image_processors=("Gemma3ImageProcessor*",),
    merge="mm_tokens_per_image",
)
