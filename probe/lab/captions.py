"""What the lab's LLaVA is trained on: scenes at the size that the model sees, prompts, and captions as the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from probe.lab.grammar import PROMPTS
from probe.lab.scenes import Scene, SceneSettings, scene

__all__ = ["Captions", "Collator", "answer_ids", "pixels", "prompt_ids"]

NO_LOSS = -100  # what torch's cross entropy ignores


def prompt_ids(processor: Any, prompt: str) -> list[int]:
    """Token ids of a user turn with one image and `prompt`, up to where the answer starts."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    crop = processor.image_processor.crop_size
    blank = np.zeros((crop["height"], crop["width"], 3), dtype=np.uint8)
    ids = processor(text=text, images=blank)["input_ids"]
    return list(ids[0] if isinstance(ids[0], Sequence) else ids)


def answer_ids(processor: Any, caption: str) -> list[int]:
    """Token ids of `caption` and the end of the answer."""
    words = processor.tokenizer
    return [*words(caption, add_special_tokens=False)["input_ids"], words.eos_token_id]


def pixels(processor: Any, images: Sequence[Any]) -> torch.Tensor:
    """What the image processor makes of images that already have its size: (image, channel, row, col), float32.

    One multiplication for the whole batch; the test compares it with the processor itself.
    """
    pictures = processor.image_processor
    stack = np.stack([np.asarray(image) for image in images]).astype(np.float32) * pictures.rescale_factor
    stack = (stack - np.asarray(pictures.image_mean, np.float32)) / np.asarray(pictures.image_std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2), dtype=np.float32))


class Captions(IterableDataset):
    """Training scenes `start`, `start` + 1, ... without end."""

    def __init__(self, *, size: int, seed: int, start: int = 0) -> None:
        self.settings = SceneSettings(size=size)
        self.seed, self.start = seed, start

    def __iter__(self) -> Iterator[Scene]:
        index = self.start
        while True:
            yield scene(index, split="train", seed=self.seed, settings=self.settings)
            index += 1


class Collator:
    """A batch as the model takes it: the loss counts the caption and the end of the answer, nothing else."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.prompts = [prompt_ids(processor, prompt) for prompt in PROMPTS]

    def __call__(self, examples: Sequence[Scene]) -> dict[str, torch.Tensor]:
        return self.texts(examples) | {"pixel_values": pixels(self.processor, [example.image for example in examples])}

    def texts(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        """The batch without pictures: of its examples only `index` and `caption` are read."""
        # The wording goes round with the index: as good as chance, and nothing to restore when a run resumes.
        starts = [self.prompts[example.index % len(self.prompts)] for example in examples]
        ends = [answer_ids(self.processor, example.caption) for example in examples]
        longest = max(len(start) + len(end) for start, end in zip(starts, ends, strict=True))
        ids = torch.full((len(examples), longest), self.processor.tokenizer.pad_token_id)
        labels = torch.full_like(ids, NO_LOSS)
        mask = torch.zeros_like(ids)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            stop = len(start) + len(end)
            ids[row, :stop] = torch.tensor(start + end)
            labels[row, len(start) : stop] = torch.tensor(end)
            mask[row, :stop] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
