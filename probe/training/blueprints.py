"""What a plan's model is made of, from configurations alone: enough to check everything before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.difflmm import DiffLMMConfig, DiffusionConfig
from probe.difflmm.parts import loading
from probe.difflmm.presets import CLIP_L14_336, CLIP_MEAN, CLIP_STD, SD15_SCHEDULER, SD15_UNET, SD15_VAE, VICUNA_7B
from probe.difflmm.processing import CHAT_TEMPLATE, make_processor
from probe.errors import ModelError
from probe.lab.storage import MODELS, folder
from probe.training.conversations import IMAGE_TOKEN
from probe.training.plans import Kind, TrainingPlan

__all__ = ["Blueprint", "draw_up", "located"]

STABLE_DIFFUSION = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A model before it has weights.

    Attributes
    ----------
    config : of the whole model.
    processor : tokenizer and image processor; ``None`` where the tokenizer is not on this machine and may not be fetched.
    """

    config: Any
    processor: Any

    def on_meta(self) -> Any:
        """The model without memory for its weights."""
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(self.config)


def located(name: str) -> str:
    """The folder of a model that ships with the package; any other name as it is."""
    return str(folder(name)) if name in MODELS or name.startswith("lab/") else name


def draw_up(kind: Kind, plan: TrainingPlan, *, offline: bool) -> Blueprint:
    """The configuration and the processor of the model that a plan asks for.

    Parameters
    ----------
    offline : take nothing from the network. What the paper's parts are is known; other parts must be on this machine.

    Raises
    ------
    ModelError
        If a part cannot be had or does not fit.
    """
    if plan.model:
        return _of_a_whole(kind, plan.model, offline=offline)
    assert plan.language_model is not None  # for the type checker: the plan was checked
    assert plan.clip is not None
    words = _tokenizer(plan.language_model, offline=offline)
    text = _text_config(plan.language_model, words, offline=offline)
    vision = _vision_config(plan.clip, offline=offline)
    token = text.vocab_size - 1 if words is None else int(words.convert_tokens_to_ids(IMAGE_TOKEN))
    mean, std = _colours(plan.clip, offline=offline)
    if kind == "difflmm":
        assert plan.diffusion is not None
        config = _difflmm_config(plan.diffusion, text, vision, token, (mean, std), offline=offline)
        template = None if words is None else _template(words)
        return Blueprint(config, None if words is None else make_processor(words, config, chat_template=template or ""))
    config = llava_config(text, vision, token)
    return Blueprint(config, None if words is None else _llava_processor(words, vision, mean, std))


def llava_config(text: Any, vision: Any, token: int) -> Any:
    """LLaVA-1.5's configuration over a language model and a CLIP."""
    from transformers import LlavaConfig

    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def _of_a_whole(kind: Kind, name: str, *, offline: bool) -> Blueprint:
    from transformers import AutoConfig, AutoProcessor

    with loading("The model", name):
        config = AutoConfig.from_pretrained(located(name), local_files_only=offline, trust_remote_code=False)
    if config.model_type != kind:
        raise ModelError(
            f"model={name!r} is a {config.model_type}, not a {kind}; give a {kind}, or train {config.model_type}."
        )
    with loading("The processor", name):
        processor = AutoProcessor.from_pretrained(located(name), local_files_only=offline, trust_remote_code=False)
    return Blueprint(config, processor)


def _tokenizer(name: str, *, offline: bool) -> Any:
    """The language model's tokenizer, with a token for images and one to pad with; ``None`` if it is not to be had offline."""
    from transformers import AutoTokenizer

    try:
        with loading("The tokenizer", name):
            words = AutoTokenizer.from_pretrained(located(name), local_files_only=offline, trust_remote_code=False)
    except ModelError:
        if offline and not Path(name).is_dir():
            return None
        raise
    words.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if words.pad_token is None:
        words.pad_token = words.unk_token or words.eos_token
    return words


def _text_config(name: str, words: Any, *, offline: bool) -> Any:
    """The language model's configuration, with room for the image's token."""
    from transformers import AutoConfig, LlamaConfig

    if offline and name == "lmsys/vicuna-7b-v1.5":
        config = LlamaConfig(**VICUNA_7B)
    else:
        with loading("The language model", name):
            config = AutoConfig.from_pretrained(located(name), local_files_only=offline, trust_remote_code=False)
    token = config.vocab_size if words is None else int(words.convert_tokens_to_ids(IMAGE_TOKEN))
    config.vocab_size = max(config.vocab_size, token + 1)
    return config


def _vision_config(name: str, *, offline: bool) -> Any:
    from transformers import CLIPVisionConfig

    if offline and name == "openai/clip-vit-large-patch14-336":
        return CLIPVisionConfig(**CLIP_L14_336)
    with loading("CLIP", name):
        return CLIPVisionConfig.from_pretrained(located(name), local_files_only=offline)


def _difflmm_config(
    name: str, text: Any, vision: Any, token: int, colours: tuple[Any, Any], *, offline: bool
) -> DiffLMMConfig:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    if offline and name in STABLE_DIFFUSION:
        unet, vae, scheduler = SD15_UNET, SD15_VAE, SD15_SCHEDULER
    else:
        with loading("Stable Diffusion", name):
            unet, vae, scheduler = (
                kind.load_config(located(name), subfolder=part, local_files_only=offline)
                for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (DDIMScheduler, "scheduler"))
            )
    width = unet.get("cross_attention_dim", 1280)
    return DiffLMMConfig(
        text_config=text,
        vision_config=vision,
        diffusion_config=DiffusionConfig(
            unet=unet,
            vae=vae,
            scheduler=scheduler,
            caption_hidden_size=width[0] if isinstance(width, (list, tuple)) else width,
            image_size=_picture_size(unet, vae, vision),
        ),
        image_token_index=token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        image_mean=colours[0],
        image_std=colours[1],
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def _picture_size(unet: Any, vae: Any, vision: Any) -> int:
    """The size of picture at which up block 1 has as many cells a side as CLIP has patches: 384 for the paper's parts."""
    halvings = len(unet["block_out_channels"]) - 1
    cell = 2 ** (len(vae["block_out_channels"]) - 1) * 2**halvings // 2 ** min(2, halvings)
    return int(vision.image_size // vision.patch_size * cell)


def _colours(name: str, *, offline: bool) -> tuple[Any, Any]:
    """The mean and standard deviation that CLIP's pictures are normalised with: its own, or OpenAI's where it says nothing."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    try:
        found = CLIPImageProcessorPil.from_pretrained(located(name), local_files_only=offline)
    except OSError:
        return CLIP_MEAN, CLIP_STD
    return tuple(found.image_mean), tuple(found.image_std)


def _llava_processor(words: Any, vision: Any, mean: Any, std: Any) -> Any:
    """LLaVA-1.5's processor: pictures padded to a square with CLIP's mean colour, as it was trained."""
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = {"height": vision.image_size, "width": vision.image_size}
    pictures = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": vision.image_size},
        crop_size=side,
        image_mean=list(mean),
        image_std=list(std),
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=words,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops again
        chat_template=_template(words),
    )


def _template(words: Any) -> str:
    """LLaVA-1.5's conversation, with this tokenizer's end token behind an answer."""
    return CHAT_TEMPLATE.replace("</s>", words.eos_token or "</s>")
