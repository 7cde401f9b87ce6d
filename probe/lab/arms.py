"""The twins before they are trained: one language model, and in front of it CLIP, CLIP and diffusion, or either of them alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers import LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from probe.difflmm import DiffLMMForConditionalGeneration
from probe.difflmm import make_processor as make_difflmm_processor
from probe.difflmm.parts import DiffusionParts, combine, load_diffusion
from probe.errors import InputError, ModelError
from probe.lab.llava import LONGEST_ANSWER, LlavaSettings, llama_config, make_processor
from probe.lab.storage import without_progress_bars
from probe.lab.towers import Towers, load_vision
from probe.lab.words import CHAT_TEMPLATE

__all__ = ["ARMS", "Arm", "TwinSettings", "build_twin", "towers_of"]

Arm = Literal["llava-clip", "difflmm", "diffusion", "clip"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@dataclass(frozen=True, kw_only=True)
class TwinSettings:
    """How big the twins are, and which features they see; the defaults are those of ``lab/llava-clip`` and ``lab/difflmm``."""

    width: int = 128
    inner: int = 256
    layers: int = 4
    heads: int = 8
    diffusion_features: int = 96
    """Width that the U-Net's features are brought to: that of CLIP's patches, so that neither has more room."""
    vision_layer: int = -2
    """CLIP's hidden states that are its patches: LLaVA's choice, since a contrastive loss never sees those of the last layer."""
    timestep: int = 100
    block: int = 0
    draws: int = 16
    """Draws of noise that training goes through: scene `i` has draw `i % draws`. Afterwards the model takes draw 0."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(f"width={self.width} is not a multiple of heads={self.heads}.")
        if self.draws < 1:
            raise InputError(f"draws must be 1 or more, not {self.draws}.")


def towers_of(arm: Arm) -> tuple[str, ...]:
    """The towers that an arm's model is made of. "diffusion" and "clip" have both, but are blind to one: see `build_twin`."""
    return ("clip",) if arm == "llava-clip" else ("clip", "diffusion")


def build_twin(arm: Arm, towers: Towers, *, settings: TwinSettings | None = None, seed: int = 0) -> tuple[Any, Any]:
    """The untrained model of an arm, in float32 and eval mode, and its processor; the same for the same seed.

    The language model is the same in every arm, to the last bit. But for "llava-clip" the U-Net reads the empty
    prompt, which does not depend on CLIP, so that both see the same features of it. "diffusion" is a DiffLMM in which the
    weights that CLIP's patches are multiplied by are zero, and stay so in training; "clip" is one in which what the U-Net's
    features become is. Its projector is the DiffLMM's in all else, learned positions included, which that of "llava-clip" has
    not: so "difflmm" against "clip" tells what diffusion adds, and "clip" against "llava-clip" what the projector does.

    Raises
    ------
    InputError
        An unknown arm.
    ModelError
        A tower is not there, or they do not fit each other.
    """
    if arm not in ARMS:
        raise InputError(f"There is no arm {arm!r}; there is {', '.join(ARMS)}.")
    settings = settings or TwinSettings()
    with without_progress_bars():
        clip = load_vision(towers.home("clip"))
        vision = clip.config
        plain = make_processor(LlavaSettings(image=vision.image_size, patch=vision.patch_size))
        language_model = _language_model(plain.tokenizer, settings, seed)
        if arm == "llava-clip":
            return _llava(language_model, clip, plain, settings, seed), plain
        model = _difflmm(language_model, clip, load_diffusion(towers.home("diffusion")), plain, settings, seed)
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        if arm == "diffusion":
            projector.linear_1.weight[:, settings.diffusion_features :] = 0
        elif arm == "clip":
            projector.linear_1.weight[:, : settings.diffusion_features] = 0
            # Nothing comes through, so the weights above get no gradient and stay zero too.
            for one in projector.conv.parameters():
                one.requires_grad_(False).zero_()
            projector.norm.requires_grad_(False)
    return model, make_difflmm_processor(plain.tokenizer, model.config, chat_template=CHAT_TEMPLATE)


def _language_model(words: Any, settings: TwinSettings, seed: int) -> LlamaForCausalLM:
    config = llama_config(words, settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.generation_config.max_new_tokens = LONGEST_ANSWER
    return model


def _llava(language_model: Any, clip: Any, processor: Any, settings: TwinSettings, seed: int) -> Any:
    """A `LlavaForConditionalGeneration` of these very modules, with a new projector."""
    config = LlavaConfig(
        text_config=language_model.config,
        vision_config=clip.config,
        image_token_id=processor.image_token_id,
        image_seq_length=(clip.config.image_size // clip.config.patch_size) ** 2,
        vision_feature_layer=settings.vision_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).float()
    model.model.vision_tower = clip.requires_grad_(False)
    model.model.language_model, model.lm_head = language_model.model, language_model.lm_head
    model.generation_config = language_model.generation_config
    return model.eval()


def _difflmm(
    language_model: Any, clip: Any, diffusion: DiffusionParts, processor: Any, settings: TwinSettings, seed: int
) -> DiffLMMForConditionalGeneration:
    """A DiffLMM of these very modules whose U-Net reads the empty prompt; its noise has the twin's seed."""
    if diffusion.empty_prompt is None:
        raise ModelError(
            "The diffusion model has no text encoder, which the empty prompt is read by; give its whole folder."
        )
    model = combine(
        language_model,
        clip,
        diffusion,
        image_token=processor.image_token_id,
        settings={
            "diffusion_features": settings.diffusion_features,
            "vision_feature_layer": settings.vision_layer,
            "tie_word_embeddings": True,
            "pad_token_id": processor.tokenizer.pad_token_id,
        },
        diffusion_settings={
            "image_size": clip.config.image_size,
            "block": settings.block,
            "timestep": settings.timestep,
            "seed": seed,
            "posterior": "mean",
        },
        seed=seed,
    )
    caption = model.model.diffusion_tower.caption.requires_grad_(False)
    with torch.no_grad():
        caption.linear_2.weight.zero_()
        caption.linear_2.bias.zero_()
        caption.position.copy_(diffusion.empty_prompt.expand_as(caption.position))
    return model
