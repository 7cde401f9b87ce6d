"""How a DiffLMM is put together: CLIP, a latent-diffusion U-Net with its VAE and schedule, and a language model."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from transformers import LlavaConfig, PreTrainedConfig

from probe.difflmm.presets import CLIP_L14_336, CLIP_MEAN, CLIP_STD, SD15_SCHEDULER, SD15_UNET, SD15_VAE, VICUNA_7B
from probe.errors import ModelError

__all__ = ["DiffLMMConfig", "DiffusionConfig", "block_shape", "latent_factor", "require_consistent", "require_draws"]


class DiffusionConfig(PreTrainedConfig):
    """The settings of the diffusion side; what is not a size is read again at every forward pass.

    >>> model.config.diffusion_config.seed = 3      # other noise from here on

    Attributes
    ----------
    unet, vae, scheduler : the configurations of diffusers; by default those of Stable Diffusion 1.5.
    image_size : height and width in pixels of the square picture that the VAE is given.
    block : the up block, from 0, whose output is used; the ones after it are cut off and never run.
    caption_hidden_size : width of the implicit caption: what the U-Net's cross-attention takes.
    timestep : of the schedule; 0 adds no noise at all.
    draws, first_draw : features are the mean over this many draws of noise, numbered from ``first_draw``.
    seed : of the noise. Noise depends on the seed and the draw's number alone, so it is the same for every image.
    posterior : "sample" draws the latent from the VAE's posterior, "mean" takes its mean. With ``timestep=0`` nothing is random.
    """

    model_type = "difflmm_diffusion"
    base_config_key = "diffusion_config"

    unet: dict[str, Any] | None = None
    vae: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    image_size: int = 384
    block: int = 1
    caption_hidden_size: int = 768
    timestep: int = 100
    draws: int = 1
    first_draw: int = 0
    seed: int = 0
    posterior: str = "sample"

    def __post_init__(self, **kwargs: Any) -> None:
        self.unet = dict(SD15_UNET) if self.unet is None else _plain(self.unet)
        self.vae = dict(SD15_VAE) if self.vae is None else _plain(self.vae)
        self.scheduler = dict(SD15_SCHEDULER) if self.scheduler is None else _plain(self.scheduler)
        super().__post_init__(**kwargs)


class DiffLMMConfig(LlavaConfig):
    """The configuration of a DiffLMM; as it stands, and as ``DiffLMMConfig.paper()``, of the paper's size.

    Attributes
    ----------
    text_config, vision_config : of the language model and of CLIP, as in LLaVA.
    diffusion_config : a ``DiffusionConfig``, or its dictionary.
    diffusion_features : width that the U-Net's features are brought to before CLIP's are put beside them.
    normalisation : "intended" gives the VAE pixels in [-1, 1] and CLIP pixels normalised once. "as-released" does what the released
        code does, and its weights were trained with: the VAE gets CLIP-normalised pixels, and CLIP's are normalised twice.
    image_mean, image_std : per channel, of pixels in [0, 1]: what CLIP was trained with.
    initializer_range : of new weights.
    origin : where the weights come from, in words, for converted ones.

    References
    ----------
    Cao, Gui, Wang, Emergent Visual Grounding in Large Multimodal Models Without Grounding Supervision, arXiv 2410.08209.
    """

    model_type = "difflmm"
    sub_configs: ClassVar[dict[str, Any]] = {**LlavaConfig.sub_configs, "diffusion_config": DiffusionConfig}

    diffusion_config: dict[str, Any] | PreTrainedConfig | None = None
    diffusion_features: int = 1024
    normalisation: str = "intended"
    image_mean: list[float] | tuple[float, ...] = CLIP_MEAN
    image_std: list[float] | tuple[float, ...] = CLIP_STD
    initializer_range: float = 0.02
    origin: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.diffusion_config, PreTrainedConfig):
            self.diffusion_config = DiffusionConfig(**(self.diffusion_config or {}))
        super().__post_init__(**kwargs)

    @classmethod
    def paper(cls, *, normalisation: Literal["intended", "as-released"] = "intended") -> DiffLMMConfig:
        """The paper's model: Stable Diffusion 1.5, CLIP ViT-L/14 at 336 pixels and Vicuna-1.5-7B with a token for images."""
        from transformers import CLIPVisionConfig, LlamaConfig

        words = VICUNA_7B["vocab_size"]
        return cls(
            text_config=LlamaConfig(**VICUNA_7B | {"vocab_size": words + 1}),
            vision_config=CLIPVisionConfig(**CLIP_L14_336),
            diffusion_config=DiffusionConfig(),
            image_token_index=words,
            normalisation=normalisation,
        )


def latent_factor(config: DiffusionConfig) -> int:
    """How many pixels a side one cell of the VAE's latent covers."""
    assert config.vae is not None  # for the type checker: set when the configuration was made
    return int(2 ** (len(config.vae["block_out_channels"]) - 1))


def block_shape(config: DiffusionConfig) -> tuple[int, int, int]:
    """(channel, row, col) of the features that the chosen up block gives out."""
    assert config.unet is not None  # for the type checker: set when the configuration was made
    widths = config.unet["block_out_channels"]
    halvings = len(widths) - 1
    # Every down block but the last halves the grid; every up block but the last doubles it again.
    side = config.image_size // latent_factor(config) // 2**halvings * 2 ** min(config.block + 1, halvings)
    return int(widths[halvings - config.block]), side, side


def require_consistent(config: DiffLMMConfig) -> None:
    """Nothing, if the parts fit each other.

    Raises
    ------
    ModelError
        If they do not: said before anything is built.
    """
    diffusion: Any = config.diffusion_config
    _require_choices(config)
    _require_unet(diffusion)
    _require_grid(config)
    require_draws(diffusion)


def require_draws(config: DiffusionConfig) -> None:
    """Nothing, if timestep, draws and seed can be used: they may have been changed since the model was made.

    Raises
    ------
    ModelError
        If one is out of range.
    """
    assert config.scheduler is not None  # for the type checker: set when the configuration was made
    steps = int(config.scheduler.get("num_train_timesteps", 1000))
    if not (isinstance(config.timestep, int) and 0 <= config.timestep < steps):
        raise ModelError(
            f"timestep={config.timestep!r} lies outside the schedule of {steps} steps; give 0 to {steps - 1}, the paper's is 100."
        )
    for name, low in (("draws", 1), ("first_draw", 0), ("seed", 0)):
        value = getattr(config, name)
        if not isinstance(value, int) or value < low:
            raise ModelError(f"{name} must be a whole number, {low} or more; found {value!r}.")
    if config.posterior not in ("sample", "mean"):
        raise ModelError(f"posterior must be 'sample' or 'mean', found {config.posterior!r}.")


def _require_choices(config: DiffLMMConfig) -> None:
    if config.normalisation not in ("intended", "as-released"):
        raise ModelError(f"normalisation must be 'intended' or 'as-released', found {config.normalisation!r}.")
    if config.vision_feature_select_strategy != "default" or not isinstance(config.vision_feature_layer, int):
        raise ModelError(
            "A DiffLMM takes CLIP's patches of one layer without the class token: vision_feature_select_strategy='default' and one "
            f"number as vision_feature_layer; found {config.vision_feature_select_strategy!r} and {config.vision_feature_layer!r}."
        )
    kind = getattr(config.vision_config, "model_type", None)
    if kind != "clip_vision_model":
        raise ModelError(f"A DiffLMM looks through CLIP (clip_vision_model); its vision_config is of {kind!r}.")


def _require_unet(config: DiffusionConfig) -> None:
    assert config.unet is not None  # for the type checker: set when the configuration was made
    assert config.vae is not None
    blocks = len(config.unet["block_out_channels"])
    if not (isinstance(config.block, int) and 0 <= config.block < blocks):
        raise ModelError(f"block={config.block!r} does not exist: the U-Net has {blocks} up blocks, 0 to {blocks - 1}.")
    asked = [name for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim") if config.unet.get(name)]
    if asked:
        raise ModelError(
            f"The U-Net wants more than a picture, a timestep and a caption ({', '.join(asked)} is set, as in SDXL); a DiffLMM has "
            "nothing to give it. Use one of Stable Diffusion 1.x or 2.x."
        )
    given, wanted = config.vae.get("latent_channels", 4), config.unet.get("in_channels", 4)
    if given != wanted:
        raise ModelError(
            f"The U-Net takes {wanted} channels but the VAE's latent has {given}; they are not of one model."
        )
    widths = config.unet.get("cross_attention_dim", 1280)
    widths = set(widths) if isinstance(widths, (list, tuple)) else {widths}
    if widths != {config.caption_hidden_size}:
        raise ModelError(
            f"The U-Net's cross-attention takes width {', '.join(map(str, sorted(widths)))} but the implicit caption has "
            f"caption_hidden_size={config.caption_hidden_size}; give the U-Net's width."
        )


def _require_grid(config: DiffLMMConfig) -> None:
    diffusion: Any = config.diffusion_config
    halvings = len(diffusion.unet["block_out_channels"]) - 1
    smallest = latent_factor(diffusion) * 2**halvings
    # On any other size the library forces the sizes of the up blocks, which goes wrong in the last one that is left.
    if diffusion.image_size < smallest or diffusion.image_size % smallest:
        raise ModelError(
            f"image_size={diffusion.image_size} of the diffusion picture must be a multiple of {smallest}: the VAE's latent factor "
            f"{latent_factor(diffusion)} times the U-Net's {2**halvings}."
        )
    clip: Any = config.vision_config
    patches = (clip.image_size // clip.patch_size) ** 2
    _, rows, cols = block_shape(diffusion)
    if rows * cols != patches:
        side = math.isqrt(patches)
        raise ModelError(
            f"Up block {diffusion.block} gives a grid of {rows} x {cols} but CLIP has {side} x {side} patches ({clip.image_size} "
            f"pixels in patches of {clip.patch_size}); choose another block or image_size of the diffusion picture."
        )
    if config.image_seq_length != patches:
        raise ModelError(
            f"image_seq_length={config.image_seq_length} but CLIP has {patches} patches; give that number."
        )


def _plain(config: Any) -> dict[str, Any]:
    """A configuration of diffusers as a dictionary that JSON can hold, without what the library notes for itself."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dict(config).items()
        if not name.startswith("_")
    }
