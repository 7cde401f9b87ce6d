"""Which model made something: hashes of its weights and of all that decides what it is fed, so that another one is told apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from probe.errors import FileError
from probe.evaluation.examples import Example
from probe.models import Subject

__all__ = ["picture_digest", "subject_identity", "weights_digest"]

#: Where a file lay, which says nothing about what is in it.
PLACES = ("_name_or_path", "name_or_path")


def subject_identity(subject: Subject) -> dict[str, str]:
    """Name, family, hashes of weights, configuration and processor, number type, kernel and kind of device of a model."""
    model = subject.model
    config = model.config
    generation = getattr(model, "generation_config", None)
    return {
        "model": subject.name,
        "family": subject.family.name,
        "weights": weights_digest(model),
        "configuration": _digest([config.to_dict(), generation.to_dict() if generation is not None else {}]),
        "processor": _digest(_processor(subject.processor)),
        "dtype": str(model.dtype),
        "kernel": str(getattr(config, "_attn_implementation", "")),
        "device": torch.device(model.device).type,
    }


def weights_digest(model: Any) -> str:
    """A hash of every tensor of a model, by name, shape and number type."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def _processor(processor: Any) -> list[Any]:
    pictures = getattr(processor, "image_processor", None)
    tokenizer = getattr(processor, "tokenizer", None)
    rules = getattr(tokenizer, "backend_tokenizer", None)
    return [
        pictures.to_dict() if pictures is not None else {},
        rules.to_str() if rules is not None else {},
        getattr(tokenizer, "special_tokens_map", {}),
        getattr(processor, "chat_template", None),
    ]


def _digest(content: Any) -> str:
    text = json.dumps(_placeless(content), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _placeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _placeless(one) for key, one in content.items() if key not in PLACES}
    if isinstance(content, (list, tuple)):
        return [_placeless(one) for one in content]
    return content


def picture_digest(example: Example) -> str:
    """A hash of the example's picture: of its file, or of its pixels where it is in memory.

    Raises
    ------
    FileError
        If the file cannot be read, or is none.
    """
    image = example.image
    if isinstance(image, Path):
        if not image.is_file():  # opening a pipe would wait for ever
            raise FileError(f"{str(image)!r} cannot be read: it is not an ordinary file")
        try:
            with image.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise FileError(f"{str(image)!r} cannot be read: {error.strerror or error}") from error
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
