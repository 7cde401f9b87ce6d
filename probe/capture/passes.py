"""One pass of a subject over one picture: generating an answer, or reading a given one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from probe.attention import AttentionRecord
from probe.capture.recorder import Recorder
from probe.capture.records import record
from probe.errors import InputError, ModelError, ProbeError
from probe.loading import chat_text
from probe.text import shorten

if TYPE_CHECKING:
    from PIL.Image import Image

    from probe.models import Subject

__all__ = ["generate_and_record", "generate_ids", "inputs_for", "inputs_with_answer", "read_and_record"]


def generate_and_record(
    subject: Subject, picture: Image, prompt: str, *, max_new_tokens: int, **options: Any
) -> AttentionRecord:
    """The record of a greedy answer to this prompt; ``options`` are those of ``record``."""
    inputs, _ = inputs_for(subject, picture, prompt)
    with torch.inference_mode(), _fed(subject), record(subject, **options) as recorder:
        subject.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return recorder.result(image=picture)


def read_and_record(
    subject: Subject, picture: Image, prompt: str, *, answer: str | Sequence[int], **options: Any
) -> AttentionRecord:
    """The record of a given answer to this prompt, read in one pass; ``options`` are those of ``record``."""
    inputs, start = inputs_with_answer(subject, picture, prompt, answer)
    recorder = Recorder(subject.model, subject.processor, **options, answer_start=start)
    with torch.inference_mode(), _fed(subject), recorder:
        subject.model(**inputs, use_cache=False)
    return recorder.result(image=picture)


@contextmanager
def _fed(subject: Subject) -> Iterator[None]:
    """Says of a model and a processor that do not belong together what the model says, such as the size of picture it takes."""
    try:
        yield
    except ProbeError:
        raise
    except ValueError as error:
        reason = shorten(" ".join(str(error).split()), 200)
        raise ModelError(
            f"{subject.name!r} cannot take what its processor made ({reason}); are both of the same checkpoint?"
        ) from error


def inputs_with_answer(
    subject: Subject, picture: Image, prompt: str, answer: str | Sequence[int]
) -> tuple[dict[str, Any], int]:
    """What the model is fed for a whole conversation, and the position of the answer's first token.

    Raises
    ------
    InputError
        If the answer is empty.
    """
    inputs, text = inputs_for(subject, picture, prompt)
    ids = _answer_ids(subject, text, answer) if isinstance(answer, str) else [int(one) for one in answer]
    if not ids:
        raise InputError(
            "The answer to be read is empty; give a text, or leave answer out to let the model generate one."
        )
    given = inputs["input_ids"]
    tail = torch.tensor([ids], dtype=given.dtype, device=given.device)
    inputs["input_ids"] = torch.cat([given, tail], dim=1)
    mask = inputs.get("attention_mask")
    if mask is not None:
        inputs["attention_mask"] = torch.cat([mask, torch.ones_like(tail, dtype=mask.dtype)], dim=1)
    # What follows the prompt looks at the pictures as its last token does.
    tiles = inputs.get("cross_attention_mask")
    if tiles is not None:
        inputs["cross_attention_mask"] = torch.cat([tiles, tiles[:, -1:].expand(-1, len(ids), -1, -1)], dim=1)
    for name, kind in (("token_type_ids", subject.family.answer_type), ("mm_token_type_ids", 0)):
        types = inputs.get(name)
        if types is not None:
            inputs[name] = torch.cat([types, torch.full_like(tail, kind, dtype=types.dtype)], dim=1)
    return inputs, given.shape[1]


def generate_ids(subject: Subject, picture: Image, prompt: str, *, max_new_tokens: int) -> list[int]:
    """The token ids of the greedy answer, the end token included if it came."""
    inputs, _ = inputs_for(subject, picture, prompt)
    with torch.inference_mode():
        output = subject.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return [int(one) for one in output[0, inputs["input_ids"].shape[1] :]]


def inputs_for(subject: Subject, picture: Image, prompt: str) -> tuple[dict[str, Any], str]:
    """What the model is fed for this picture and prompt, on its device and in its number type; and the text before the answer.

    Raises
    ------
    InputError
        If the processor cannot prepare the picture, such as one that is much longer than wide.
    ModelError
        If its chat template cannot be filled in.
    """
    processor = subject.processor
    if getattr(processor, "chat_template", None):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text = chat_text(processor, [message], add_generation_prompt=True)
    else:
        text = subject.family.prompt.format(image=processor.image_token, prompt=prompt)
    try:
        made = processor(images=picture, text=text, return_tensors="pt")
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:  # each of a processor of its own
        raise InputError(
            f"{type(processor.image_processor).__name__} cannot prepare a picture of {picture.height} x {picture.width} pixels "
            f"(height x width) for this prompt: {shorten(str(error), 200)}. Give a larger or less elongated picture."
        ) from error
    inputs = made.to(subject.model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(subject.model.dtype)
    inputs.pop("labels", None)  # what training would compare the prompt with
    return dict(inputs), text


def _answer_ids(subject: Subject, text: str, answer: str) -> list[int]:
    """Token ids of an answer as the model would have written it after this prompt, with the end token."""
    tokenizer = subject.processor.tokenizer
    if not answer.strip():
        return []
    # After "ASSISTANT:" a model goes on with a blank and a word; after a line break with the word itself.
    gap = "" if not text or text[-1].isspace() else " "
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text + gap + answer.strip(), add_special_tokens=False)["input_ids"]
    if whole[: len(before)] == before:
        ids = whole[len(before) :]
    else:
        # The tokenizer would merge across the border; the prompt's tokens are already fixed.
        ids = tokenizer(gap + answer.strip(), add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return list(ids) if end is None else [*ids, end]
