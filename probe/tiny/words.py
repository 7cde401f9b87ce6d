"""Tokenizers for tiny models, trained on one line of words; every other text is spelt byte by byte."""

from __future__ import annotations

import copy
import functools
from typing import Any

__all__ = ["CHAT_TEMPLATE", "framing_tokenizer", "tiny_tokenizer"]

# In the style of LLaVA-1.5: the answer follows "ASSISTANT:" after a blank.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %} {% else %}"
    "ASSISTANT: {{ message.content[0].text }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_WORDS = (
    "USER: ASSISTANT: Describe the image. a man with a red ball and two dogs on the grass, near a café 🐶 in the park"
)


@functools.cache
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer that knows ``<image>``."""
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
def framing_tokenizer() -> Any:
    """The same for text encoders: a start and an end token around every text, padding behind it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer())
    marks = [(one, tokenizer.convert_tokens_to_ids(one)) for one in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    tokenizer.padding_side = "right"
    return tokenizer
