"""Tiny random image encoders, one function a family."""

from __future__ import annotations

from typing import Any

import torch

from probe.families import family_of
from probe.models import Subject
from probe.tiny.language_models import tiny_processor
from probe.tiny.words import framing_tokenizer

__all__ = ["random_model", "tiny_clip", "tiny_dino", "tiny_siglip", "tiny_siglip2"]


def tiny_clip(
    *,
    preparation: str = "crop",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    size: int = 32,
) -> Subject:
    """A random CLIP of 3 vision layers x 4 heads on 32 x 32 pixels in patches of 8, and 2 text layers that take 24 tokens."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    processor = tiny_processor(preparation=preparation, size=size)
    vision, text = _encoder_parts(framing_tokenizer(), size)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=20)
    model = random_model(CLIPModel, config, attention=attention, seed=seed).to(dtype)
    pair = CLIPProcessor(image_processor=processor.image_processor, tokenizer=framing_tokenizer())
    return Subject(model, pair, family_of(model), "tiny clip")


def tiny_siglip(
    *, dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 0, size: int = 32
) -> Subject:
    """A random SigLIP of the same size, whose pooling head has 4 heads; it squashes images to a square."""
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": size, "width": size})
    vision, text = _encoder_parts(framing_tokenizer(), size)
    model = random_model(
        SiglipModel, SiglipConfig(vision_config=vision, text_config=text), attention=attention, seed=seed
    )
    pair = SiglipProcessor(image_processor=images, tokenizer=framing_tokenizer())
    return Subject(model.to(dtype), pair, family_of(model), "tiny siglip")


def tiny_siglip2(
    *, dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 0, most: int = 24
) -> Subject:
    """A random SigLIP 2 of the same size, for pictures of any shape in at most ``most`` patches of 8 x 8 pixels."""
    from transformers import Siglip2Config, Siglip2Model, Siglip2Processor
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=most)
    vision, text = _encoder_parts(framing_tokenizer(), 32)
    del vision["image_size"]
    config = Siglip2Config(vision_config=vision | {"num_patches": 16}, text_config=text)
    model = random_model(Siglip2Model, config, attention=attention, seed=seed)
    pair = Siglip2Processor(image_processor=images, tokenizer=framing_tokenizer())
    return Subject(model.to(dtype), pair, family_of(model), "tiny siglip2")


def tiny_dino(
    kind: str = "dinov2",
    *,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    size: int = 32,
    squash: bool = False,
) -> Subject:
    """A random encoder without text, 3 layers x 4 heads, patches of 8: "dinov2", "dinov2_with_registers", "dinov3_vit", "vit".

    Parameters
    ----------
    size : side of the picture that the processor makes; the model itself is made for 32 x 32 and interpolates its positions.
    squash : True squashes the picture, as ViT's processor does; False crops its middle, as DINOv2's does.
    """
    import transformers
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    square = {"height": size, "width": size}
    images = (
        ViTImageProcessorPil(size=square)
        if squash or kind == "vit"
        else BitImageProcessorPil(size={"shortest_edge": size + 8}, crop_size=square)
    )
    names = {
        "dinov2": "Dinov2",
        "dinov2_with_registers": "Dinov2WithRegisters",
        "dinov3_vit": "DINOv3ViT",
        "vit": "ViT",
    }
    options: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "image_size": 32}
    if kind != "dinov2" and kind != "vit":
        options["num_register_tokens"] = 3
    config = getattr(transformers, f"{names[kind]}Config")(**options, patch_size=8, intermediate_size=48, mlp_ratio=2)
    model = random_model(getattr(transformers, f"{names[kind]}Model"), config, attention=attention, seed=seed)
    return Subject(model.to(dtype), images, family_of(model), f"tiny {kind}")


def _encoder_parts(tokenizer: Any, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vision and text configuration of a tiny encoder."""
    common = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision = {**common, "num_hidden_layers": 3, "image_size": size, "patch_size": 8}
    text = {**common, "num_hidden_layers": 2, "max_position_embeddings": 24, "vocab_size": len(tokenizer)}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return vision, {**text, **{name: getattr(tokenizer, name) for name in names}}


def random_model(kind: Any, config: Any, *, attention: str | None, seed: int) -> Any:
    """A model in which no weight is small, no bias zero and no gain one: what is left out of a sum shows."""
    torch.manual_seed(seed)
    model = kind._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.ndim:
                torch.nn.init.normal_(one, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    return model
