"""PixArt-Alpha and -Sigma: a transformer whose patches attend to T5 words (Chen et al., arXiv 2310.00426)."""

from probe.families.base import Family

PIXART = Family(
    name="pixart",
    model_types=(),
    models=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    attention=("Attention",),
    image_tokens="none",
    class_token=False,
    image_processors=("PixArtImageProcessor*", "VaeImageProcessor*"),
    kind="diffusion",
    denoiser=("PixArtTransformer2DModel",),
    text_encoders=(("text_encoder",),),
)
