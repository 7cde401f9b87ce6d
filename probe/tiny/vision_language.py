"""Tiny random models of the families that tile, merge or resize a picture to a grid of its own, one function a family."""

from __future__ import annotations

import copy
from typing import Any

import torch

from probe.families import family_of
from probe.models import Subject
from probe.tiny.processors import ExpandingProcessor
from probe.tiny.words import CHAT_TEMPLATE, tiny_tokenizer

__all__ = [
    "tiny_gemma3",
    "tiny_idefics3",
    "tiny_internvl",
    "tiny_llava_next",
    "tiny_llava_onevision",
    "tiny_mistral3",
    "tiny_paligemma",
    "tiny_qwen2_5_vl",
    "tiny_qwen2_vl",
    "tiny_qwen3_vl",
    "tiny_smolvlm",
]

# At the usual range of 0.02 attention is uniform and swapped heads would pass unnoticed.
_RANGE = 0.3
_PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]


def _tokenizer(*marks: str, **named: str) -> Any:
    """The tiny tokenizer with more special tokens, and some of them by name."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*marks, *named.values()]}, replace_extra_special_tokens=False
    )
    for name, mark in named.items():
        setattr(tokenizer, name, mark)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(mark))
    return tokenizer


def _text(tokenizer: Any, **options: Any) -> dict[str, Any]:
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
        "initializer_range": _RANGE,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | options


def _vision(**options: Any) -> dict[str, Any]:
    """A vision tower of 2 layers x 2 heads on 16 x 16 pixels in patches of 4."""
    return {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "initializer_range": _RANGE,
    } | options


def _subject(kind: Any, config: Any, processor: Any, *, seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    model = kind._from_config(config, attn_implementation="sdpa").float().eval()
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    family = family_of(model)
    return Subject(model, processor, family, f"tiny {family.name}")


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

    tokenizer = _tokenizer()
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
        vision_config=CLIPVisionConfig(**_vision()),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return _subject(LlavaNextForConditionalGeneration, config, processor)


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

    tokenizer = _tokenizer("<video>")
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
        vision_config=SiglipVisionConfig(**_vision(vision_use_head=False)),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=limit,
    )
    return _subject(LlavaOnevisionForConditionalGeneration, config, processor)


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

    tokenizer = _tokenizer("<|vision_start|>", "<|vision_end|>", "<video>")
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
        "initializer_range": _RANGE,
    }
    text = _text(tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **rope})
    config = config_class(
        text_config=text,
        vision_config=common | vision,
        image_token_id=ids["<image>"],
        video_token_id=ids["<video>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return _subject(kind, config, ExpandingProcessor(images, tokenizer, expand, typed=True))


def tiny_internvl() -> Subject:
    """Up to six tiles of 16 x 16 pixels and a thumbnail, 2 x 2 patches of 2 pixels a token."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokenizer = _tokenizer("<img>", "</img>")
    images = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, min_patches=1, max_patches=6)

    def expand(made: Any, number: int) -> str:
        return "<img>" + "<image>" * 16 * int(made["num_patches"][number]) + "</img>"

    vision = _vision(image_size=[16, 16], patch_size=[2, 2], hidden_act="gelu")
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    processor = ExpandingProcessor(
        images, tokenizer, expand, unused=("num_patches",), options={"crop_to_patches": True}
    )
    return _subject(InternVLForConditionalGeneration, config, processor)


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

    tokenizer = _tokenizer()
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            **_vision(image_size=32, patch_size=8, vision_use_head=False, projection_dim=32)
        ),
        text_config=GemmaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return _subject(PaliGemmaForConditionalGeneration, config, processor)


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

    tokenizer = _tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>")
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    template = CHAT_TEMPLATE.replace("<image>", "<start_of_image>")
    processor = Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=16)
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    text = _text(tokenizer, sliding_window=24, layer_types=kinds, query_pre_attn_scalar=8)
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**_vision(image_size=32, vision_use_head=False)),
        text_config=Gemma3TextConfig(**text),
        mm_tokens_per_image=16,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
    )
    subject = _subject(Gemma3ForConditionalGeneration, config, processor)
    # The library begins with a projection of zeros, for which all pictures are the same.
    torch.nn.init.normal_(subject.model.model.multi_modal_projector.mm_input_projection_weight, std=_RANGE)
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
    tokenizer = _tokenizer("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
    images = images_class(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=16, chat_template=CHAT_TEMPLATE)
    config = config_class(
        vision_config=_vision(patch_size=2),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _subject(kind, config, processor)


def tiny_mistral3() -> Subject:
    """Grids of the picture's own shape with a break behind every row, 2 x 2 patches of 4 pixels a token."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    tokenizer = _tokenizer("[IMG_BREAK]", "[IMG_END]")
    images = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 4, "width": 4})

    def expand(made: Any, number: int) -> str:
        height, width = (int(one) // 8 for one in made["image_sizes"][number])
        return "[IMG_BREAK]".join(["<image>" * width] * height) + "[IMG_END]"

    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**_vision(image_size=64, head_dim=12)),
        text_config=MistralConfig(**_text(tokenizer, sliding_window=None)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = ExpandingProcessor(images, tokenizer, expand, options={"patch_size": {"height": 8, "width": 8}})
    return _subject(Mistral3ForConditionalGeneration, config, processor)
