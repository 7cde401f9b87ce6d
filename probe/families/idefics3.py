"""Idefics3 and SmolVLM: tiles and the whole picture behind them, each a square of merged patches (arXiv 2408.12637, 2504.05299)."""

from probe.families.base import Family

IDEFICS3 = Family(
    name="idefics3",
    model_types=("idefics3",),
    models=("Idefics3ForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="tiles",
    class_token=False,
    image_processors=("Idefics3ImageProcessor*",),
    merge="scale_factor",
)

SMOLVLM = Family(
    name="smolvlm",
    model_types=("smolvlm",),
    models=("SmolVLMForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="tiles",
    class_token=False,
    image_processors=("SmolVLMImageProcessor*",),
    merge="scale_factor",
)
