"""The tokenizer of the lab models: byte-level BPE in which every word of the grammar is one token."""

from __future__ import annotations

import functools
from typing import Any

from probe.lab.grammar import PROMPTS
from probe.lab.scenes import SceneSettings, scenes

__all__ = ["BOS", "CHAT_TEMPLATE", "EOS", "IMAGE", "PAD", "framing_tokenizer", "tokenizer"]

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"

# "USER: <image>", the question and "ASSISTANT:" on a line each; an answer starts on a fresh line and ends with </s>.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'].upper() }}:{{ ' ' if message['role'] == 'user' else '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:\\n' }}{% endif %}"
)
SAMPLE = 400  # captions; many times more than each of the grammar's words needs to be met
MOST_TOKENS = 1000  # never reached: merging ends when every word of the sample is one token


def tokenizer() -> Any:
    """A fast tokenizer (`PreTrainedTokenizerFast`); words of the grammar are one token, any other text round-trips."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_core([PAD, BOS, EOS, IMAGE]),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def framing_tokenizer(*, longest: int) -> Any:
    """The same for text encoders: every text between ``<s>`` and ``</s>``, at most `longest` tokens, padded on the right.

    Words have the ids that `tokenizer` gives them. The end token's id is 3 there and not 2, because CLIP in
    transformers takes an end token of id 2 for a sign of an old configuration, and pools the token with the highest id
    instead of the end.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    core = _core([PAD, BOS, IMAGE, EOS])
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(name, core.token_to_id(name)) for name in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
    )


def _core(specials: list[str]) -> Any:
    """A byte-level BPE (`tokenizers.Tokenizer`) trained on the grammar, in which `specials` have the first ids."""
    import tokenizers

    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=MOST_TOKENS,
        min_frequency=1,
        special_tokens=specials,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_sample(), trainer)
    return core


@functools.cache  # drawing the scenes takes most of the time that a tokenizer takes
def _sample() -> tuple[str, ...]:
    """Captions of training scenes, the prompts, and the words that the chat template adds."""
    texts = ["USER: \n", "\nASSISTANT:\n", *PROMPTS]
    for relations in (False, True):
        settings = SceneSettings(size=16, relations=relations)
        texts += [example.caption for example in scenes(SAMPLE, split="train", settings=settings)]
    return tuple(texts)
