"""From a conversation to token ids and labels: the loss counts answers and the end token behind each, nothing else."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from probe.errors import InputError, ModelError
from probe.loading import chat_text
from probe.training.conversations import IMAGE_TOKEN, Conversation

__all__ = ["NO_LOSS", "Encoder"]

NO_LOSS = -100  # what torch's cross entropy ignores


class Encoder:
    """Token ids and labels of conversations, as a processor writes them.

    >>> ids, labels = Encoder(processor, prompt="conversation", max_length=2048)(conversation)

    With "plain" the image is followed by the answer and a line break, as in LLaVA's first stage. With "conversation" the
    processor's own chat template writes the text; where it puts no end token behind an answer, one is added: a model that never
    sees it never stops.

    Raises
    ------
    InputError
        If the image alone has as many tokens as are allowed.
    ModelError
        If the chat template cannot be used.
    """

    def __init__(self, processor: Any, *, prompt: Literal["plain", "conversation"], max_length: int) -> None:
        self.tokenizer, self.template = processor.tokenizer, processor.chat_template
        self.prompt, self.max_length = prompt, max_length
        self.end = self.tokenizer.eos_token
        if not getattr(self.tokenizer, "is_fast", False) or not self.end:
            raise ModelError("Training needs a fast tokenizer with an end token; this one lacks one of them.")
        if prompt == "conversation" and not self.template:
            raise ModelError(
                "The model's processor has no chat template to write conversations with; give prompt=plain."
            )
        self.patches = _patches(processor)
        if self.patches >= max_length:
            raise InputError(
                f"An image has {self.patches} tokens, so max_length={max_length} leaves no room for words; give more."
            )

    def __call__(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Ids and labels of the whole text, not cut off."""
        text, spans = self.written(conversation)
        begins = self.tokenizer.bos_token
        # A template that writes the start token itself must not get a second one from the tokenizer.
        add = not (begins and text.startswith(begins))
        found = self.tokenizer(
            text, add_special_tokens=add, return_offsets_mapping=True, truncation=False, verbose=False
        )
        labels, place = [], 0
        for number, (start, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            while place < len(spans) and start >= spans[place][1]:
                place += 1
            # Tokens that the tokenizer adds around the text have no characters of it.
            inside = place < len(spans) and stop > start and stop > spans[place][0]
            labels.append(number if inside else NO_LOSS)
        return found["input_ids"], labels

    def cut(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """The first ``max_length`` ids and labels."""
        ids, labels = self(conversation)
        return ids[: self.max_length], labels[: self.max_length]

    def written(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text with every placeholder of the image, and the characters (start, end) of each answer in it."""
        pictures = IMAGE_TOKEN * self.patches
        if self.prompt == "plain":
            answer = conversation.turns[0][1] + "\n"
            return pictures + answer, [(len(pictures), len(pictures) + len(answer))]
        messages: list[dict[str, Any]] = []
        text, spans, done = "", [], ""
        for place, (question, answer) in enumerate(conversation.turns):
            image = [{"type": "image"}] if conversation.image is not None and place == 0 else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
            before = self._rendered(messages, opened=True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            after = self._rendered(messages, opened=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ModelError(
                    "The chat template writes earlier turns otherwise once later ones are there, so that nobody can tell where "
                    "the answers are."
                )
            text += before[len(done) :].replace(IMAGE_TOKEN, pictures)
            said = after[len(before) :]
            said = said if said.rstrip().endswith(self.end) else said.rstrip() + self.end
            # What stands behind the end token, such as a line break, is the template's and not the answer's.
            spans.append((len(text), len(text) + said.rindex(self.end) + len(self.end)))
            text, done = text + said, after
        return text, spans

    def _rendered(self, messages: list[dict[str, Any]], *, opened: bool) -> str:
        options = {"chat_template": self.template, "tokenize": False, "add_generation_prompt": opened}
        return chat_text(self.tokenizer, messages, **options)


def _patches(processor: Any) -> int:
    """How many tokens an image has."""
    blank = np.zeros((32, 32, 3), dtype=np.uint8)
    found = processor(text=IMAGE_TOKEN, images=blank)["input_ids"]
    ids = np.asarray(found).reshape(-1)
    return int((ids == processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).sum())
