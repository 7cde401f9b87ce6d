"""DINOv3's vision transformer: register tokens, and positions by rotation (Siméoni et al., arXiv 2508.10104)."""

from probe.families.base import Family

DINOV3 = Family(
    name="dinov3",
    model_types=("dinov3_vit",),
    models=("DINOv3ViTModel",),
    attention=("DINOv3ViTAttention",),
    image_tokens="none",
    class_token=True,
    image_processors=("BitImageProcessor*", "ViTImageProcessor*", "DINOv3ViTImageProcessor*", "CLIPImageProcessor*"),
    kind="image encoder",
)
