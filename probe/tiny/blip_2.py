"""Tiny random BLIP-2 and InstructBLIP, and the vision encoder that they share."""

from __future__ import annotations

import copy
from typing import Any

from probe.families import family_of
from probe.models import Subject
from probe.tiny.encoders import random_model
from probe.tiny.words import tiny_tokenizer

__all__ = ["tiny_blip_2", "tiny_blip_2_vision", "tiny_instructblip"]

_PART = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def tiny_blip_2_vision() -> Subject:
    """A random vision encoder of 2 layers x 4 heads on 32 x 32 pixels in patches of 8."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    model = random_model(Blip2VisionModel, Blip2VisionConfig(**_vision()), attention="sdpa", seed=0)
    return Subject(model, _images(), family_of(model), "tiny blip_2_vision")


def tiny_blip_2() -> Subject:
    """A random BLIP-2: 6 queries, of whose 4 layers x 4 heads two look at the picture, before an OPT of 2 layers."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, OPTConfig

    processor = Blip2Processor(_images(), _tokenizer(), num_query_tokens=6)
    tokenizer = processor.tokenizer
    text = OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        **_words(tokenizer),
    )
    return _subject(Blip2Config, Blip2ForConditionalGeneration, text, processor)


def tiny_instructblip() -> Subject:
    """The same before a Llama, with queries that read the instruction first."""
    from transformers import (
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        LlamaConfig,
    )

    processor = InstructBlipProcessor(_images(), _tokenizer(), _tokenizer(), num_query_tokens=6)
    text = LlamaConfig(**_PART, num_hidden_layers=2, **_words(processor.tokenizer))
    return _subject(InstructBlipConfig, InstructBlipForConditionalGeneration, text, processor)


def _subject(config_class: Any, kind: Any, text: Any, processor: Any) -> Subject:
    tokenizer = processor.tokenizer
    reads = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = config_class(
        vision_config=_vision(),
        qformer_config={**_PART, **reads, "num_hidden_layers": 4, "encoder_hidden_size": 32},
        text_config=text.to_dict(),
        num_query_tokens=6,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    # The Q-Former of older releases has a softmax of its own, and no name of a kernel can be asked for.
    model = random_model(kind, config, attention=None, seed=0)
    family = family_of(model)
    return Subject(model, processor, family, f"tiny {family.name}")


def _vision() -> dict[str, Any]:
    return {**_PART, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}


def _images() -> Any:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil(size={"height": 32, "width": 32})


def _tokenizer() -> Any:
    """The tiny tokenizer without a name for its image token: the processors of this family bring their own."""
    from transformers import PreTrainedTokenizerFast

    words = copy.deepcopy(tiny_tokenizer().backend_tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def _words(tokenizer: Any) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}
