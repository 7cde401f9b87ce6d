"""What the tiny models of language models that see are made of."""

from __future__ import annotations

import copy
from typing import Any

import torch

from probe.families import family_of
from probe.models import Subject
from probe.tiny.words import tiny_tokenizer

__all__ = ["RANGE", "marked_tokenizer", "random_subject", "text_part", "vision_part"]

# At the usual range of 0.02 attention is uniform and swapped heads would pass unnoticed.
RANGE = 0.3


def marked_tokenizer(*marks: str, **named: str) -> Any:
    """The tiny tokenizer with more special tokens, and some of them by name."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*marks, *named.values()]}, replace_extra_special_tokens=False
    )
    for name, mark in named.items():
        setattr(tokenizer, name, mark)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(mark))
    return tokenizer


def text_part(tokenizer: Any, **options: Any) -> dict[str, Any]:
    """A language model of 3 layers x 4 heads over 2 key heads."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "initializer_range": RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | options


def vision_part(**options: Any) -> dict[str, Any]:
    """A vision tower of 2 layers x 2 heads on 16 x 16 pixels in patches of 4."""
    return {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "initializer_range": RANGE,
    } | options


def random_subject(kind: Any, config: Any, processor: Any, *, seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    model = kind._from_config(config, attn_implementation="sdpa").float().eval()
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    family = family_of(model)
    return Subject(model, processor, family, f"tiny {family.name}")
