"""A tiny random model of each family, with a real processor, made in seconds and without a network."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from PIL import Image

from probe.families import family_of
from probe.models import Subject

__all__ = ["picture", "tiny_clip", "tiny_llava", "tiny_processor", "tiny_siglip"]

# In the style of LLaVA-1.5: the answer follows "ASSISTANT:" after a blank.
_CHAT = (
    "{% for message in messages %}{% if message.role == 'user' %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %} {% else %}"
    "ASSISTANT: {{ message.content[0].text }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_WORDS = (
    "USER: ASSISTANT: Describe the image. a man with a red ball and two dogs on the grass, near a café 🐶 in the park"
)


@functools.cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


@functools.cache
def _framing_tokenizer() -> Any:
    """The same for text encoders: a start and an end token around every text, padding behind it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(_tokenizer())
    marks = [(one, tokenizer.convert_tokens_to_ids(one)) for one in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    tokenizer.padding_side = "right"
    return tokenizer


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
        tokenizer=_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT,
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
    vision, text = _encoder_parts(_framing_tokenizer(), size)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=20)
    model = _random(CLIPModel, config, attention=attention, seed=seed).to(dtype)
    pair = CLIPProcessor(image_processor=processor.image_processor, tokenizer=_framing_tokenizer())
    return Subject(model, pair, family_of(model), "tiny clip")


def tiny_siglip(
    *, dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 0, size: int = 32
) -> Subject:
    """A random SigLIP of the same size, whose pooling head has 4 heads; it squashes images to a square."""
    from transformers import SiglipConfig, SiglipModel, SiglipProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": size, "width": size})
    vision, text = _encoder_parts(_framing_tokenizer(), size)
    model = _random(SiglipModel, SiglipConfig(vision_config=vision, text_config=text), attention=attention, seed=seed)
    pair = SiglipProcessor(image_processor=images, tokenizer=_framing_tokenizer())
    return Subject(model.to(dtype), pair, family_of(model), "tiny siglip")


def _encoder_parts(tokenizer: Any, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vision and text configuration of a tiny encoder."""
    common = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    vision = {**common, "num_hidden_layers": 3, "image_size": size, "patch_size": 8}
    text = {**common, "num_hidden_layers": 2, "max_position_embeddings": 24, "vocab_size": len(tokenizer)}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return vision, {**text, **{name: getattr(tokenizer, name) for name in names}}


def _random(kind: Any, config: Any, *, attention: str, seed: int) -> Any:
    """A model in which no weight is small, no bias zero and no gain one: what is left out of a sum shows."""
    torch.manual_seed(seed)
    model = kind._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.ndim:
                torch.nn.init.normal_(one, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    return model


def picture(height: int = 40, width: int = 56, *, seed: int = 0) -> Image.Image:
    """A random RGB picture of that size."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
