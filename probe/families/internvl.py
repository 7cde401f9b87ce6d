"""InternVL: tiles chosen by the picture's shape, and a thumbnail behind them (Chen et al., arXiv 2312.14238)."""

from probe.families.base import Family

INTERNVL = Family(
    name="internvl",
    model_types=("internvl",),
    models=("InternVLForConditionalGeneration",),
    attention=("*Attention",),
    image_tokens="tiles",
    class_token=True,
    image_processors=("GotOcr2ImageProcessor*",),
    merge="downsample_ratio",
)
