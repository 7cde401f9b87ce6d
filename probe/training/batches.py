"""Examples in the order of training, and batches of them as the models take them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from probe.errors import FileError, InputError, ProbeError
from probe.images import read_image
from probe.training.conversations import BadRecords, Conversation
from probe.training.texts import NO_LOSS, Encoder

__all__ = ["Collator", "Examples", "check_lengths", "plain_error"]


def check_lengths(
    conversations: Sequence[Conversation],
    encoder: Encoder,
    bad: BadRecords,
    *,
    long_texts: Literal["refuse", "truncate", "skip"],
    tracked: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> tuple[list[Conversation], list[str]]:
    """The conversations that can be trained on, and the names of those that are longer than allowed.

    What is too long is noted in ``bad`` unless it may be truncated; so is what has no answer left once it is.
    """
    kept, long = [], []
    limit = encoder.max_length
    for one in tracked(conversations):
        ids, labels = encoder(one)
        name = one.name.rpartition("record ")[2]
        if len(ids) > limit:
            long.append(name)
            if long_texts == "refuse":
                bad.add(f"a text of more than max_length={limit} tokens", name)
                continue
            if long_texts == "skip":
                continue
            if all(label == NO_LOSS for label in labels[:limit]):
                bad.add(f"no answer within the first max_length={limit} tokens", name)
                continue
        kept.append(one)
    return kept, long


class Examples(Dataset):
    """Everything that a training sees, in order: shuffled round after round, each with a permutation of its own.

    The order depends on the seed and the number of records alone: never on the number of processes or where a run was resumed.
    """

    def __init__(
        self, conversations: Sequence[Conversation], total: int, *, encoder: Encoder, pictures: Any, seed: int
    ) -> None:
        self.conversations, self.total, self.seed = conversations, total, seed
        self.encoder, self.pictures = encoder, pictures
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return self.total

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __getitem__(self, place: int) -> dict[str, Any]:
        one = self.conversation(place)
        ids, labels = self.encoder.cut(one)
        return {"input_ids": ids, "labels": labels, **({} if one.image is None else self._pixels(one))}

    def conversation(self, place: int) -> Conversation:
        """The record that stands at a place of the training."""
        if not 0 <= place < self.total:
            raise IndexError(place)
        turn, within = divmod(place, len(self.conversations))
        return self.conversations[self._order(turn)[within]]

    def _permutation(self, turn: int) -> Any:
        return np.random.default_rng([self.seed, turn]).permutation(len(self.conversations))

    def _pixels(self, one: Conversation) -> dict[str, torch.Tensor]:
        """What the model takes of the picture: "pixel_values" (channel, row, col), and a DiffLMM's larger one."""
        assert one.image is not None  # for the type checker
        try:
            image = read_image(one.image)
        except (FileError, InputError) as error:
            raise type(error)(f"{one.name}: {error}") from None
        found = self.pictures(image, return_tensors="pt")
        return {name: value[0] for name, value in found.items() if name.endswith("pixel_values")}


class Collator:
    """A batch: texts padded on the right; pictures of those that have one, in order, and no such entry where none has."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(one["input_ids"]) for one in examples)
        ids = torch.full((len(examples), longest), self.pad)
        labels = torch.full_like(ids, NO_LOSS)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(examples):
            stop = len(one["input_ids"])
            ids[row, :stop] = torch.tensor(one["input_ids"])
            labels[row, :stop] = torch.tensor(one["labels"])
            mask[row, :stop] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        for name in ("pixel_values", "diffusion_pixel_values"):
            found = [one[name] for one in examples if name in one]
            if found:
                batch[name] = torch.stack(found)
        return batch


def plain_error(error: ProbeError) -> ProbeError:
    """The error itself, as one line: torch wraps what a reading process raises in a traceback."""
    last = str(error).strip().splitlines()[-1]
    prefix = f"{type(error).__module__}.{type(error).__name__}: "
    return type(error)(last.removeprefix(prefix)) if last.startswith(prefix) else error
