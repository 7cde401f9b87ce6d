"""Llama 3.2 Vision: text looks at tiles of a picture in cross-attention layers of its own (Llama Team, arXiv 2407.21783)."""

from probe.families.base import Family

MLLAMA = Family(
    name="mllama",
    model_types=("mllama",),
    models=("MllamaForConditionalGeneration",),
    # The self-attention of its language model has no image among its keys.
    attention=("MllamaTextCrossAttention",),
    image_tokens="cross-attention",
    class_token=True,
    image_processors=("MllamaImageProcessor*",),
)
