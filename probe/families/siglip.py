"""SigLIP: no class token; a learned query pools the patches (Zhai et al., arXiv 2303.15343)."""

from probe.families.base import Family

SIGLIP = Family(
    name="siglip",
    model_types=("siglip",),
    models=("SiglipModel", "SiglipVisionModel"),
    attention=("SiglipAttention",),
    image_tokens="none",
    class_token=False,
    image_processors=("SiglipImageProcessor*", "CLIPImageProcessor*"),
    kind="image encoder",
)
