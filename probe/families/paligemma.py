"""PaliGemma: picture and prompt attend both ways, the answer to all before it (Beyer et al., arXiv 2407.07726)."""

from probe.families.base import Family

PALIGEMMA = Family(
    name="paligemma",
    model_types=("paligemma",),
    models=("PaliGemmaForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="placeholder",
    class_token=False,
    image_processors=("SiglipImageProcessor*",),
    prompt="{image}{prompt}",
    # The answer is the suffix, which attends causally; the prefix is 0.
    answer_type=1,
)
