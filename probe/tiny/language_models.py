"""Tiny random language models with image tokens, one function a family."""

from __future__ import annotations

from typing import Any

import torch

from probe.families import family_of
from probe.models import Subject
from probe.tiny.words import CHAT_TEMPLATE, tiny_tokenizer

__all__ = ["tiny_llava", "tiny_processor"]


def tiny_processor(*, preparation: str = "crop", size: int = 32, patch: int = 8) -> Any:
    """A LLaVA processor that crops ("crop"), pads ("pad") or squashes ("squash") to ``size`` pixels."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    square = {"height": size, "width": size}
    if preparation == "crop":
        images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)
    elif preparation == "pad":
        images = LlavaImageProcessorPil(size={"shortest_edge": size}, crop_size=square, do_pad=True)
    else:
        images = CLIPImageProcessorPil(size=square, do_center_crop=False)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tiny_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llava(
    *,
    preparation: str = "crop",
    text: str = "llama",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    size: int = 32,
    patch: int = 8,
    seed: int = 0,
    **text_options: Any,
) -> Subject:
    """A random LLaVA of 3 layers x 4 heads over 2 key heads, on 32 x 32 pixels in patches of 8; the rest are text options."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    processor = tiny_processor(preparation=preparation, size=size, patch=patch)
    tokenizer = processor.tokenizer
    # At the usual range of 0.02 attention is uniform and swapped heads would pass unnoticed.
    common = {"initializer_range": 0.3, "attn_implementation": attention}
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=patch,
        **common,
    )
    options = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    language = CONFIG_MAPPING[text](**options | common | text_options)
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).to(dtype).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Subject(model, processor, family_of(model), f"tiny {text} llava")
