"""A synthetic release at small size: base language model, CLIP, Stable Diffusion, LoRA adapter and loose tensors, as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.difflmm.tiny_difflmm import RANGE, tiny_config, tiny_parts

__all__ = ["loose_tensors", "write_release"]

PREFIX = "base_model.model.model.mm_projector."
LENGTH = 9  # positions of the text encoder


def loose_tensors() -> dict[str, torch.Tensor]:
    """Random tensors under the released names, without their prefix."""
    shapes = {
        "clip_projector.0.weight": (12, 20),
        "clip_projector.0.bias": (12,),
        "clip_projector.2.weight": (12, 12),
        "clip_projector.2.bias": (12,),
        "clip_pe": (64, 12),
        "sd_norm_layer.weight": (16,),
        "sd_norm_layer.bias": (16,),
        "sd_proj_layer.0.weight": (8, 16, 1, 1),
        "sd_proj_layer.0.bias": (8,),
        "linear.0.weight": (32, 28),
        "linear.0.bias": (32,),
        "linear.2.weight": (32, 32),
        "linear.2.bias": (32,),
        "vt_pe": (64, 32),
    }
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}


def write_release(root: Path) -> dict[str, Path]:
    """The folders "base", "clip", "diffusion" and "adapter"."""
    torch.manual_seed(0)
    places = {name: root / name for name in ("base", "clip", "diffusion", "adapter")}
    base = _write_base(places["base"])
    CLIPVisionModel(tiny_config().vision_config).save_pretrained(places["clip"])
    _write_diffusion(places["diffusion"])
    _write_adapter(places["adapter"], base, places)
    return places


def _write_base(place: Path) -> Any:
    """A Llama with a tokenizer that knows no ``<image>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", "USER", ":", "ASSISTANT", "Describe", "the", "image", "a", "red", "ball"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(place)
    text = tiny_config(text={"vocab_size": len(words), "pad_token_id": 0}).text_config
    model = LlamaForCausalLM(text).eval()
    model.save_pretrained(place)
    return model


def _write_diffusion(place: Path) -> None:
    parts = tiny_parts()
    unet, vae = UNet2DConditionModel.from_config(parts["unet"]), AutoencoderKL.from_config(parts["vae"])
    for model in (unet, vae):
        for one in model.parameters():
            if one.ndim > 1:
                torch.nn.init.normal_(one, std=RANGE)
    unet.save_pretrained(place / "unet")
    vae.save_pretrained(place / "vae")
    DDIMScheduler.from_config(parts["scheduler"]).save_pretrained(place / "scheduler")
    vocabulary = {word: number for number, word in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)
    tokenizer.save_pretrained(place / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=3, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, initializer_range=RANGE, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(text).save_pretrained(place / "text_encoder")


def _write_adapter(place: Path, base: Any, places: dict[str, Path]) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.05, init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    get_peft_model(base, settings).save_pretrained(place)
    torch.save({PREFIX + name: one for name, one in loose_tensors().items()}, place / "non_lora_trainables.bin")
    training = {
        "mm_vision_tower": str(places["diffusion"]),
        "mm_vision_sd_clip": str(places["clip"]),
        "mm_projector_type": "SDCLIPBlock",
        "mm_vision_sd_timestep": 100,
        "mm_vision_sd_ensemble_size": 1,
        "mm_vision_select_layer": 1,
        "mm_vision_resolution": 64,
        "mm_vision_sd_concat_clip": True,
        "mm_vision_sd_implicit_caption": True,
    }
    (place / "config.json").write_text(json.dumps(training), encoding="utf-8")


def as_safetensors(path: Path) -> None:
    """Nothing; the loose tensors as safetensors instead."""
    save_file(torch.load(path, weights_only=True), path.with_suffix(".safetensors"))
    path.unlink()
