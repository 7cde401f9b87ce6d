"""Tiny random models of the families that tile, merge or resize a picture to a grid of its own, one function a family."""

from __future__ import annotations

from typing import Any

import torch

from probe.models import Subject
from probe.tiny.parts import RANGE, marked_tokenizer, random_subject, text_part, vision_part
from probe.tiny.processors import ExpandingProcessor
from probe.tiny.words import CHAT_TEMPLATE

__all__ = [
    "tiny_gemma3",
    "tiny_idefics3",
    "tiny_internvl",
    "tiny_llava_next",
    "tiny_llava_onevision",
    "tiny_paligemma",
    "tiny_qwen2_5_vl",
    "tiny_qwen2_vl",
    "tiny_qwen3_vl",
    "tiny_smolvlm",
]

_PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]


def tiny_llava_next() -> Subject:
    """A thumbnail of 16 x 16 pixels, and up to four tiles of that size."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = marked_tokenizer()
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=_PINPOINTS
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision_part()),
        text_config=LlamaConfig(**text_part(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return random_subject(LlavaNextForConditionalGeneration, config, processor)


def tiny_llava_onevision(*, most: int = 2) -> Subject:
    """The same with no more cells than ``most`` tiles have: 4 x 4 each, so that the features of larger pictures are shrunk."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    tokenizer = marked_tokenizer("<video>")
    images = LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=_PINPOINTS)
    limit = f"anyres_max_{most}"
    # The library's own processor counts the tokens; it cannot be made without a video processor, which needs torchvision.
    counting = object.__new__(LlavaOnevisionProcessor)
    vars(counting).update(image_processor=images, num_image_tokens=16, image_token="<image>", vision_aspect_ratio=limit)
    counting.vision_feature_select_strategy = "full"

    def expand(made: Any, number: int) -> str:
        together = [int(count) for count in made["batch_num_images"] for _ in range(int(count))]
        if together[number] > 1:
            return "<image>" * (counting.num_image_tokens + 1)  # a newline behind each of several
        tile = made["pixel_values"].shape[-2:]
        return "<image>" * counting._get_number_of_features(*made["image_sizes"][number].tolist(), *tile)

    processor = ExpandingProcessor(images, tokenizer, expand)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision_part(vision_use_head=False)),
        text_config=Qwen2Config(**text_part(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=limit,
    )
    return random_subject(LlavaOnevisionForConditionalGeneration, config, processor)


def tiny_qwen2_vl() -> Subject:
    """Grids of the picture's own shape, 2 x 2 patches of 4 pixels a token."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    return _qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, vision, rope={"mrope_section": [1, 1, 2]})


def tiny_qwen2_5_vl() -> Subject:
    """The same with windows in its vision tower."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return _qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, vision, rope={"mrope_section": [1, 1, 2]})


def tiny_qwen3_vl() -> Subject:
    """The same with features of an early layer added to the language model's first layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    rope = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return _qwen(Qwen3VLConfig, Qwen3VLForConditionalGeneration, vision, rope=rope)


def _qwen(config_class: Any, kind: Any, vision: dict[str, Any], *, rope: dict[str, Any]) -> Subject:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = marked_tokenizer("<|vision_start|>", "<|vision_end|>", "<video>")
    ids = {
        mark: tokenizer.convert_tokens_to_ids(mark)
        for mark in ("<|vision_start|>", "<|vision_end|>", "<video>", "<image>")
    }
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 2400}
    )

    def expand(made: Any, number: int) -> str:
        count = int(made["image_grid_thw"][number].prod()) // 4
        return "<|vision_start|>" + "<image>" * count + "<|vision_end|>"

    common = {
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": RANGE,
    }
    text = text_part(tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **rope})
    config = config_class(
        text_config=text,
        vision_config=common | vision,
        image_token_id=ids["<image>"],
        video_token_id=ids["<video>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return random_subject(kind, config, ExpandingProcessor(images, tokenizer, expand, typed=True))


def tiny_internvl() -> Subject:
    """Up to six tiles of 16 x 16 pixels and a thumbnail, 2 x 2 patches of 2 pixels a token."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = marked_tokenizer("<img>", "</img>")
    images = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, min_patches=1, max_patches=6)

    def expand(made: Any, number: int) -> str:
        return "<img>" + "<image>" * 16 * int(made["num_patches"][number]) + "</img>"

    vision = vision_part(image_size=[16, 16], patch_size=[2, 2], hidden_act="gelu")
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision),
        text_config=Qwen2Config(**text_part(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    processor = ExpandingProcessor(
        images, tokenizer, expand, unused=("num_patches",), options={"crop_to_patches": True}
    )
    return random_subject(InternVLForConditionalGeneration, config, processor)


def tiny_paligemma() -> Subject:
    """A picture of 32 x 32 pixels squashed into 4 x 4 patches, before the beginning of the text."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipVisionConfig,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = marked_tokenizer()
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            **vision_part(image_size=32, patch_size=8, vision_use_head=False, projection_dim=32)
        ),
        text_config=GemmaConfig(**text_part(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return random_subject(PaliGemmaForConditionalGeneration, config, processor)


def tiny_gemma3() -> Subject:
    """A picture of 32 x 32 pixels, 2 x 2 patches of 4 pixels a token; two of three layers slide a window of 24 positions."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = marked_tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>")
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    template = CHAT_TEMPLATE.replace("<image>", "<start_of_image>")
    processor = Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=16)
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    text = text_part(tokenizer, sliding_window=24, layer_types=kinds, query_pre_attn_scalar=8)
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**vision_part(image_size=32, vision_use_head=False)),
        text_config=Gemma3TextConfig(**text),
        mm_tokens_per_image=16,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
    )
    subject = random_subject(Gemma3ForConditionalGeneration, config, processor)
    # The library begins with a projection of zeros, for which all pictures are the same.
    torch.nn.init.normal_(subject.model.model.multi_modal_projector.mm_input_projection_weight, std=RANGE)
    return subject


def tiny_idefics3() -> Subject:
    """Up to 3 x 3 tiles of 16 x 16 pixels and the whole picture, 2 x 2 patches of 2 pixels a token."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return _tiled(Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil)


def tiny_smolvlm() -> Subject:
    """The same under another name; its own processor cannot be made without a video processor, which needs torchvision."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    return _tiled(SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil)


def _tiled(config_class: Any, kind: Any, images_class: Any) -> Subject:
    from transformers import Idefics3Processor, LlamaConfig

    places = [f"<row_{row + 1}_col_{col + 1}>" for row in range(3) for col in range(3)]
    tokenizer = marked_tokenizer("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
    images = images_class(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=16, chat_template=CHAT_TEMPLATE)
    config = config_class(
        vision_config=vision_part(patch_size=2),
        text_config=LlamaConfig(**text_part(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return random_subject(kind, config, processor)
