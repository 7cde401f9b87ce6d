"""What a batch of conversations is fed as, for the tiny model of any family."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from probe.families import FAMILIES
from probe.models import Subject

__all__ = ["IN_SEQUENCE", "LANGUAGE", "batch_of", "views"]

#: Families of language models; DiffLMM has tests of its own.
LANGUAGE = [family.name for family in FAMILIES if family.kind == "language model" and family.name != "difflmm"]
#: Those whose images are among the keys of every layer, DiffLMM included.
IN_SEQUENCE = [
    family.name for family in FAMILIES if family.kind == "language model" and family.image_tokens != "cross-attention"
]
_NESTED = ("idefics3", "smolvlm", "gemma3", "mllama")


def batch_of(
    subject: Subject, conversations: list[tuple[list[Image.Image], str]], *, padding: str = "left"
) -> dict[str, Any]:
    """Inputs for several (pictures, prompt), padded on that side."""
    processor, texts, pictures = subject.processor, [], []
    processor.tokenizer.padding_side = padding
    for images, prompt in conversations:
        if getattr(processor, "chat_template", None):
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
            texts.append(
                processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            )
        else:
            mark = processor.image_token * len(images)
            texts.append(subject.family.prompt.format(image=mark, prompt=prompt))
        pictures.append(images)
    several = any(len(images) > 1 for images in pictures)
    nested = subject.family.name in _NESTED or (several and subject.family.name in ("paligemma", "llava_onevision"))
    flat = [image for images in pictures for image in images]
    inputs = dict(processor(images=pictures if nested else flat, text=texts, return_tensors="pt", padding=True))
    inputs.pop("labels", None)
    inputs["pixel_values"] = inputs["pixel_values"].to(subject.model.dtype)
    return inputs


def views(record: Any) -> dict[str, torch.Tensor]:
    """(layer, head, token, row, col) values of each view."""
    names = list(dict.fromkeys(layer.view for layer in record.layers))
    return {name: record.select(view=name).stack()[:, 0] for name in names}
