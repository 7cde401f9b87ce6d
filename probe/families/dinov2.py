"""DINOv2, with and without register tokens, learned without text (Oquab et al., arXiv 2304.07193; Darcet et al., 2309.16588)."""

from probe.families.base import Family

DINOV2 = Family(
    name="dinov2",
    model_types=("dinov2", "dinov2_with_registers"),
    models=("Dinov2Model", "Dinov2WithRegistersModel", "Dinov2*ForImageClassification"),
    attention=(
        "Dinov2Attention",
        "Dinov2SelfAttention",
        "Dinov2WithRegistersAttention",
        "Dinov2WithRegistersSelfAttention",
    ),
    image_tokens="none",
    class_token=True,
    image_processors=("BitImageProcessor*", "ViTImageProcessor*", "DINOv3ViTImageProcessor*", "CLIPImageProcessor*"),
    kind="image encoder",
)
