"""``lab/clip``: a real CLIP of half a million parameters that learned which caption belongs to which scene.

>>> from probe.lab.storage import folder
>>> from transformers import CLIPModel
>>> model = CLIPModel.from_pretrained(folder("lab/clip"), dtype="float32")   # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import InputError
from probe.lab.storage import halved, readable, without_progress_bars

__all__ = ["ClipSettings", "build_clip", "make_clip_processor", "save_clip"]

LONGEST_TEXT = 40  # tokens with start and end; the longest captions have 36


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How big the model is; the defaults are those of ``lab/clip``, its image encoder as that of ``lab/llava``."""

    image: int = 64
    """Height and width in pixels of what the vision model sees."""
    patch: int = 8
    """Height and width of a patch in pixels."""
    vision_width: int = 96
    vision_inner: int = 192
    vision_layers: int = 4
    vision_heads: int = 4
    text_width: int = 96
    text_inner: int = 192
    text_layers: int = 2
    text_heads: int = 4
    shared_width: int = 96
    """Length of the vectors in which pictures and texts are compared."""

    def __post_init__(self) -> None:
        for whole, part in (("image", "patch"), ("vision_width", "vision_heads"), ("text_width", "text_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(f"{whole}={getattr(self, whole)} is not a multiple of {part}={getattr(self, part)}.")


def make_clip_processor(settings: ClipSettings | None = None) -> Any:
    """A `CLIPProcessor`: pictures as ``lab/llava`` takes them, texts framed by a start and an end token."""
    from transformers import CLIPProcessor

    from probe.lab.llava import picture_processor
    from probe.lab.words import framing_tokenizer

    settings = settings or ClipSettings()
    return CLIPProcessor(
        image_processor=picture_processor(settings.image), tokenizer=framing_tokenizer(longest=LONGEST_TEXT)
    )


def build_clip(processor: Any, *, settings: ClipSettings | None = None, seed: int = 0) -> Any:
    """A `CLIPModel` with random weights for `processor`, in float32; the same for the same seed."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    settings = settings or ClipSettings()
    words = processor.tokenizer
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=settings.text_width,
        intermediate_size=settings.text_inner,
        num_hidden_layers=settings.text_layers,
        num_attention_heads=settings.text_heads,
        max_position_embeddings=words.model_max_length,
        projection_dim=settings.shared_width,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=settings.vision_width,
        intermediate_size=settings.vision_inner,
        num_hidden_layers=settings.vision_layers,
        num_attention_heads=settings.vision_heads,
        image_size=settings.image,
        patch_size=settings.patch,
        projection_dim=settings.shared_width,
    )
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.shared_width)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    return model.float()


def save_clip(out: str | Path, model: Any, processor: Any) -> None:
    """Nothing; writes model and processor to `out`, with the weights in half precision.

    The configuration still says float32, so that the model loads and runs in it unless asked otherwise.
    """
    with without_progress_bars():
        model.save_pretrained(out, state_dict=halved(model))
    readable(out)
    processor.save_pretrained(out)
