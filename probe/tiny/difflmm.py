"""A tiny random DiffLMM with a real processor: every part is there, at a size that runs in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from probe.difflmm import DiffLMMConfig, DiffLMMForConditionalGeneration, DiffusionConfig, make_processor
from probe.tiny.language_models import tiny_processor

__all__ = ["RANGE", "tiny_config", "tiny_difflmm", "tiny_parts"]

# At the usual range of 0.02 attention is uniform and swapped heads would pass unnoticed.
RANGE = 0.3


def tiny_parts() -> dict[str, dict[str, Any]]:
    """Configurations of a U-Net of three blocks and a VAE of factor 8, shaped like Stable Diffusion's."""
    return {
        "unet": {
            "sample_size": 8,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "block_out_channels": [8, 16, 24],
            "layers_per_block": 1,
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        },
        "vae": {
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [4, 4, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": 4,
            "sample_size": 64,
            "scaling_factor": 0.18215,
        },
        "scheduler": {
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
        },
    }


def tiny_config(*, diffusion: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **options: Any) -> Any:
    """A configuration of 8 x 8 visual tokens; ``diffusion``, ``text`` and the rest replace its settings."""
    tokenizer = tiny_processor().tokenizer
    language = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "initializer_range": RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIPVisionConfig(
        hidden_size=20,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=7,
        initializer_range=RANGE,
    )
    settings = tiny_parts() | {"image_size": 64, "caption_hidden_size": 12}
    return DiffLMMConfig(
        vision_config=vision,
        text_config=LlamaConfig(**language | (text or {})),
        diffusion_config=DiffusionConfig(**settings | (diffusion or {})),
        diffusion_features=10,
        image_seq_length=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=RANGE,
        **options,
    )


def tiny_difflmm(
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attention: str = "sdpa",
    diffusion: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """A random DiffLMM in evaluation mode and its processor."""
    template = tiny_processor().chat_template
    config = tiny_config(diffusion=diffusion, text=text, **options)
    torch.manual_seed(seed)
    model = DiffLMMForConditionalGeneration._from_config(config, attn_implementation=attention).to(dtype).eval()
    processor = make_processor(tiny_processor().tokenizer, config, chat_template=template)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor
