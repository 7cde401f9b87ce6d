"""From a language model, CLIP and a Stable Diffusion folder to a DiffLMM that is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probe.difflmm.configuration import DiffLMMConfig, DiffusionConfig
from probe.difflmm.encoder import cut_unet, cut_vae
from probe.difflmm.model import DiffLMMForConditionalGeneration
from probe.errors import ModelError

__all__ = [
    "DiffusionParts",
    "add_image_token",
    "combine",
    "load_clip",
    "load_diffusion",
    "load_language_model",
    "loading",
    "make_new",
]


@dataclass(frozen=True, eq=False)
class DiffusionParts:
    """What a Stable Diffusion folder brings.

    Attributes
    ----------
    unet, vae : diffusers' modules, whole.
    scheduler : the configuration of the noise schedule.
    empty_prompt : (width,), the mean over the text encoder's states of the empty prompt; ``None`` without a text encoder.
    """

    unet: Any
    vae: Any
    scheduler: dict[str, Any]
    empty_prompt: Tensor | None


def load_language_model(name: str, *, dtype: str = "auto") -> tuple[Any, Any]:
    """A causal language model and its tokenizer, from a folder or a hub name.

    Raises
    ------
    ModelError
        If there is none.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with loading("The base language model", name):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def load_clip(name: str) -> Any:
    """CLIP's vision model in single precision, from a folder or a hub name.

    Raises
    ------
    ModelError
        If there is none.
    """
    from transformers import CLIPVisionModel

    with loading("CLIP", name):
        model, found = CLIPVisionModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        if found["missing_keys"]:
            raise ModelError(f"its checkpoint has no {sorted(found['missing_keys'])[0]!r}")
    return model


def load_diffusion(name: str) -> DiffusionParts:
    """U-Net, VAE and schedule in single precision, and what the empty prompt is to them, from a folder or a hub name.

    Raises
    ------
    ModelError
        If it is not laid out as diffusers saves Stable Diffusion: unet, vae, scheduler, text_encoder, tokenizer.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    # Without this the library takes pickles where there are no safetensors.
    options = {"torch_dtype": torch.float32, "use_safetensors": True}
    with loading("Stable Diffusion", name):
        unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **options)
        vae = AutoencoderKL.from_pretrained(name, subfolder="vae", **options)
        schedule = dict(DDIMScheduler.from_pretrained(name, subfolder="scheduler").config)
        there = not Path(name).is_dir() or (Path(name) / "text_encoder").is_dir()
        empty = _empty_prompt(name) if there else None
    return DiffusionParts(unet, vae, {key: value for key, value in schedule.items() if not key.startswith("_")}, empty)


@torch.no_grad()
def _empty_prompt(name: str) -> Tensor:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(name, subfolder="text_encoder", dtype=torch.float32).eval()
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    ids = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return encoder(ids).last_hidden_state[0].mean(dim=0)


def add_image_token(language_model: Any, tokenizer: Any) -> int:
    """The id of ``<image>``, which is added to tokenizer and model where they lack it; the model can never say it.

    A new token's rows are zero and it is suppressed in ``generate``: its embedding is never read, since patches stand there.
    """
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    token = int(tokenizer.convert_tokens_to_ids("<image>"))
    before = language_model.get_input_embeddings().weight.shape[0]
    if token >= before:
        language_model.resize_token_embeddings(token + 1, mean_resizing=False)
        for one in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            one.weight.data[before:] = 0
    language_model.generation_config.suppress_tokens = [token]
    return token


def combine(
    language_model: Any,
    clip: Any,
    diffusion: DiffusionParts,
    *,
    image_token: int,
    settings: dict[str, Any] | None = None,
    diffusion_settings: dict[str, Any] | None = None,
    seed: int = 0,
) -> DiffLMMForConditionalGeneration:
    """A DiffLMM of these very modules, on the CPU, with a new caption, projector and positions.

    >>> model = combine(*load_language_model(base)[:1], load_clip(clip), load_diffusion(sd), image_token=32000)

    Parameters
    ----------
    language_model : such as a ``LlamaForCausalLM``; its number type becomes the model's, but for the VAE.
    image_token : see ``add_image_token``.
    settings, diffusion_settings : of ``DiffLMMConfig`` and ``DiffusionConfig``, beside what the parts say themselves.
    seed : of the new weights.

    Raises
    ------
    ModelError
        If the parts do not fit each other.
    """
    vision = clip.config
    own = {
        "unet": diffusion.unet.config,
        "vae": diffusion.vae.config,
        "scheduler": diffusion.scheduler,
        "caption_hidden_size": _caption_width(diffusion.unet),
    }
    denoising = DiffusionConfig(**own | (diffusion_settings or {}))
    config = DiffLMMConfig(
        text_config=language_model.config,
        vision_config=vision,
        diffusion_config=denoising,
        image_token_index=image_token,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        **settings or {},
    )
    kind = language_model.dtype
    with torch.device("meta"):
        model = DiffLMMForConditionalGeneration(config)
    inner = model.model
    inner.vision_tower = clip.to(kind)
    inner.language_model, model.lm_head = language_model.base_model, language_model.get_output_embeddings()
    # Not through diffusers' own `to`, which warns of modules to be kept in single precision, of which there are none.
    inner.diffusion_tower.unet = nn.Module.to(cut_unet(diffusion.unet, denoising.block), kind)
    inner.diffusion_tower.vae = cut_vae(diffusion.vae)
    make_new(model, (inner.diffusion_tower.caption, inner.multi_modal_projector), kind, seed)
    inner.freeze()
    model.generation_config = language_model.generation_config
    return model.eval()


def make_new(model: Any, modules: tuple[Any, ...], kind: torch.dtype, seed: int) -> None:
    """Give modules that were made on the meta device random weights of a number type."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in modules:
            module.to_empty(device="cpu")
            for one in module.modules():
                # LayerNorm and the positions are found by their class, linear maps and convolutions by theirs.
                model._init_weights(one)
            module.to(kind)


def _caption_width(unet: Any) -> int:
    found = unet.config.cross_attention_dim
    return int(found[0] if isinstance(found, (list, tuple)) else found)


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Turn whatever a library raises while loading into one line that says which part could not be had."""
    try:
        yield
    except Exception as error:
        # Whatever lies in a folder is read by many parsers, each with errors of its own; all mean that it cannot be loaded.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".:")
        raise ModelError(
            f"{what} could not be loaded from {name!r} ({reason}); give a folder that save_pretrained wrote, or a hub name with a "
            "network to reach it."
        ) from error
