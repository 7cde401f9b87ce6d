"""Tiny random models that keep a picture's own shape, in broken rows of patches or on a canvas of tiles, one function a family."""

from __future__ import annotations

from typing import Any

import torch

from probe.models import Subject
from probe.tiny.parts import marked_tokenizer, random_subject, text_part, vision_part
from probe.tiny.processors import ExpandingProcessor
from probe.tiny.words import CHAT_TEMPLATE

__all__ = ["tiny_mistral3", "tiny_mllama", "tiny_pixtral"]


def tiny_mistral3() -> Subject:
    """Grids of the picture's own shape with a break behind every row, 2 x 2 patches of 4 pixels a token."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    return _broken_rows(Mistral3Config, Mistral3ForConditionalGeneration, merged=2, spatial_merge_size=2)


def tiny_pixtral() -> Subject:
    """The same as a LLaVA, which merges nothing: a patch of 4 pixels is a token."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    return _broken_rows(LlavaConfig, LlavaForConditionalGeneration, merged=1, vision_feature_select_strategy="full")


def _broken_rows(config_class: Any, kind: Any, *, merged: int, **options: Any) -> Subject:
    from transformers import MistralConfig, PixtralVisionConfig
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    tokenizer, side = marked_tokenizer("[IMG_BREAK]", "[IMG_END]"), 4 * merged
    images = PixtralImageProcessorPil(size={"longest_edge": 32 * merged}, patch_size={"height": 4, "width": 4})

    def expand(made: Any, number: int) -> str:
        height, width = (int(one) // side for one in made["image_sizes"][number])
        return "[IMG_BREAK]".join(["<image>" * width] * height) + "[IMG_END]"

    config = config_class(
        vision_config=PixtralVisionConfig(**vision_part(image_size=32 * merged, head_dim=12)),
        text_config=MistralConfig(**text_part(tokenizer, sliding_window=None)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        **options,
    )
    processor = ExpandingProcessor(images, tokenizer, expand, options={"patch_size": {"height": side, "width": side}})
    return random_subject(kind, config, processor)


def tiny_mllama() -> Subject:
    """Up to four tiles of 16 x 16 pixels in patches of 4; the second and the fourth of its four layers look at them."""
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaProcessor,
        MllamaTextConfig,
        MllamaVisionConfig,
    )
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tokenizer = marked_tokenizer()
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    images = MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4)
    processor = MllamaProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE)
    vision = vision_part(num_global_layers=1, intermediate_layers_indices=[0, 1], vision_output_dim=72)
    vision["attention_heads"] = vision.pop("num_attention_heads")
    text = text_part(tokenizer, num_hidden_layers=4, cross_attention_layers=[1, 3])
    del text["head_dim"]
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(**vision),
        text_config=MllamaTextConfig(**text),
        image_token_index=tokenizer.image_token_id,
    )
    subject = random_subject(MllamaForConditionalGeneration, config, processor)
    # The library begins with closed gates, behind which no picture changes anything.
    for name, one in subject.model.named_parameters():
        if "gate" in name.split(".")[-1]:
            torch.nn.init.constant_(one, 0.7)
    return subject
