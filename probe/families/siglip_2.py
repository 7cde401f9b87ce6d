"""SigLIP 2 of any resolution and shape: patches in one row, padded to a number of them (Tschannen et al., arXiv 2502.14786).

Its checkpoints of a fixed size are SigLIPs.
"""

from probe.families.base import Family

SIGLIP_2 = Family(
    name="siglip2",
    model_types=("siglip2",),
    models=("Siglip2Model", "Siglip2VisionModel"),
    attention=("Siglip2Attention",),
    image_tokens="none",
    class_token=False,
    image_processors=("Siglip2ImageProcessor*",),
    kind="image encoder",
)
