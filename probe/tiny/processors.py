"""A processor in the place of those that need torchvision: the library's own image processor, and placeholders put in by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from probe.tiny.words import CHAT_TEMPLATE

__all__ = ["ExpandingProcessor"]


class ExpandingProcessor:
    """What a model is fed for texts and pictures: each placeholder in a text becomes as many as its picture has image tokens.

    Parameters
    ----------
    image_processor, tokenizer : the parts.
    expand : from what the image processor made and a picture's number to the text in the place of its placeholder.
    image_token : the placeholder.
    typed : True adds ``mm_token_type_ids``, 1 for image tokens.
    unused : what the image processor makes for ``expand`` alone.
    options : what the image processor is told at every call.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        expand: Callable[[Any, int], str],
        *,
        image_token: str = "<image>",
        typed: bool = False,
        unused: tuple[str, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> None:
        self.image_processor, self.tokenizer, self.image_token = image_processor, tokenizer, image_token
        self.chat_template = CHAT_TEMPLATE
        self._expand, self._typed, self._unused, self._options = expand, typed, unused, options or {}

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """The text that the tokenizer's template makes of a conversation."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, **options
        ).replace("<image>", self.image_token)

    def __call__(
        self, *, images: Any = None, text: Any = None, return_tensors: str = "pt", padding: bool = True, **options: Any
    ) -> Any:
        """Token ids and pictures of one text or of several, padded on the left."""
        from transformers import BatchFeature

        texts = [text] if isinstance(text, str) else list(text)
        made = dict(self.image_processor(images=images, return_tensors=return_tensors, **self._options))
        numbers = iter(range(10**6))
        mark = re.escape(self.image_token)
        expanded = [re.sub(mark, lambda _: self._expand(made, next(numbers)), one) for one in texts]
        found = dict(self.tokenizer(expanded, return_tensors=return_tensors, padding=padding, **options))
        found.pop("token_type_ids", None)
        if self._typed:
            token = self.tokenizer.convert_tokens_to_ids(self.image_token)
            found["mm_token_type_ids"] = (found["input_ids"] == token).to(found["input_ids"].dtype)
        return BatchFeature({**found, **{name: one for name, one in made.items() if name not in self._unused}})
