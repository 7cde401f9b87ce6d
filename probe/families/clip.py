"""CLIP's image encoder, its class token and its text direction (Radford et al., arXiv 2103.00020)."""

from probe.families.base import Family

CLIP = Family(
    name="clip",
    model_types=("clip",),
    models=("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"),
    attention=("CLIPAttention",),
    image_tokens="none",
    class_token=True,
    image_processors=("CLIPImageProcessor*", "LlavaImageProcessor*", "SiglipImageProcessor*"),
    kind="image encoder",
)
