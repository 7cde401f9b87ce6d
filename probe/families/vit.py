"""The vision transformer, as it was trained to classify (Dosovitskiy et al., arXiv 2010.11929); the first DINO has its form."""

from probe.families.base import Family

VIT = Family(
    name="vit",
    model_types=("vit",),
    models=("ViTModel", "ViTForImageClassification"),
    attention=("ViTAttention", "ViTSelfAttention"),
    image_tokens="none",
    class_token=True,
    image_processors=("BitImageProcessor*", "ViTImageProcessor*", "DINOv3ViTImageProcessor*", "CLIPImageProcessor*"),
    kind="image encoder",
)
