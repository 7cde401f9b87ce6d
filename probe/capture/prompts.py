"""What stands behind each key of a diffusion model's words: tokens and their places, for one text encoder or several."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

from probe.attention import QueryKind
from probe.errors import CaptureError, InputError
from probe.families import family_of
from probe.text import shorten

__all__ = ["PADDING", "Keys", "key_length", "prompt_keys", "tokenizer_of"]

#: The pseudo token that stands for all padding positions of a text encoder together.
PADDING = "[padding]"


@dataclass(frozen=True)
class Keys:
    """What stands behind each key of cross-attention, or behind each word of joint attention.

    Attributes
    ----------
    kind : what the tokens are.
    text, tokens, token_ids, spans : as in a record.
    positions : for each token its places among the keys; several only for the padding.
    words : numbers of the tokens over which ``token_mean`` is taken.
    groups : numbers of keys that come from one text encoder each (or from several side by side), in the order of the keys.
    padding : numbers of the tokens that stand for padding.
    """

    kind: QueryKind
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    positions: tuple[tuple[int, ...], ...]
    words: tuple[int, ...]
    groups: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of keys."""
        return sum(len(one) for one in self.positions)


def tokenizer_of(pipeline: Any, encoder: str) -> Any:
    """The tokenizer of a pipeline's text encoder: "tokenizer_2" for "text_encoder_2"; ``None`` where there is none."""
    return getattr(pipeline, encoder.replace("text_encoder", "tokenizer"), None)


def key_length(pipeline: Any, encoder: str, given: int | None = None) -> int:
    """How many keys a text encoder makes of a prompt: as many as it has positions, or as T5 is asked for.

    Parameters
    ----------
    given : ``max_sequence_length`` of the pipeline's call; its own default where it is ``None``.
    """
    config = getattr(getattr(pipeline, encoder, None), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        return min(int(tokenizer_of(pipeline, encoder).model_max_length), int(positions))
    if given is None:
        # T5 takes a text of any length; the pipeline says to how many tokens it pads and cuts.
        given = inspect.signature(type(pipeline).encode_prompt).parameters["max_sequence_length"].default
    return int(given)


def prompt_keys(
    pipeline: Any, prompt: str, *, empty: bool = False, length: int | None = None, clean: bool = False
) -> Keys:
    """What each key stands for when a pipeline is given this prompt: start, words, end, and the padding as one.

    A pipeline whose text encoders follow each other (Stable Diffusion 3: CLIP, then T5) has the words once for each of them.

    Parameters
    ----------
    empty : True allows a prompt without words.
    length : ``max_sequence_length`` of the pipeline's call.
    clean : ``clean_caption`` of the pipeline's call.

    Raises
    ------
    InputError
        If the prompt is empty, or longer than a text encoder takes: the pipeline would cut it off without an error.
    CaptureError
        If the tokenizers do not say where in the text their tokens stand.
    """
    if not isinstance(prompt, str):
        raise InputError(f"The prompt must be a text, found a {type(prompt).__name__}: {shorten(repr(prompt), 70)}.")
    fed, text = _as_encoded(pipeline, prompt, clean=clean)
    parts = [
        _group_keys(pipeline, group, fed, text, length=length, empty=empty)
        for group in family_of(pipeline).text_encoders
    ]
    return _one_after_the_other(parts)


def _as_encoded(pipeline: Any, prompt: str, *, clean: bool) -> tuple[str, str]:
    """The text that the tokenizers are given, and the same as it was written, where only the case of its letters differs."""
    change = getattr(pipeline, "_text_preprocessing", None)
    if change is not None:
        from probe.pipelines import quiet

        with quiet():  # the pipeline itself says what it misses for cleaning
            [fed] = change(prompt, clean_caption=clean)
        written = prompt.strip()
        return fed, written if fed == written.lower() and len(fed) == len(written) else fed
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    # Only words of several vectors (textual inversion, "<cat>", "<cat>_1") are written otherwise.
    if convert is None or not any(one.endswith("_1") for one in pipeline.tokenizer.added_tokens_encoder):
        return prompt, prompt
    text = convert(prompt, copy.deepcopy(pipeline.tokenizer))
    return text, text


def _group_keys(pipeline: Any, group: tuple[str, ...], fed: str, text: str, *, length: int | None, empty: bool) -> Keys:
    """The keys of text encoders that stand side by side and are given one text."""
    first = group[0]
    if getattr(pipeline, first, None) is None:
        # Stable Diffusion 3 without T5: zeros in its place, which are looked at all the same.
        count = key_length(pipeline, first, length)
        return Keys("text token", text, (PADDING,), (-1,), ((0, 0),), (tuple(range(count)),), (), (count,), (0,))
    found = [tokenizer_of(pipeline, one) for one in group]
    tokenizer, *others = (one for one in found if one is not None)
    ids, offsets = _tokens(tokenizer, fed)
    counts = [len(ids), *(len(_tokens(one, fed)[0]) for one in others)]
    size = key_length(pipeline, first, length)
    if max(counts) > size:
        raise InputError(
            f"The prompt has {max(counts)} tokens with start and end, but the text encoder takes {size}, so its end would be cut "
            "off; shorten it."
        )
    if len(set(counts)) > 1:
        raise CaptureError(
            f"The two tokenizers make {counts[0]} and {counts[1]} tokens of the prompt, so a key has no one word."
        )
    special = set(tokenizer.all_special_ids) - _unknown(tokenizer)
    words = tuple(
        i for i, (one, (start, end)) in enumerate(zip(ids, offsets, strict=True)) if end > start and one not in special
    )
    if not empty and not any(text[slice(*offsets[i])].strip() for i in words):
        raise InputError(f"The prompt {text!r} holds no word to look for.")
    names = tokenizer.convert_ids_to_tokens(ids)
    spans = [_without_blanks(text, *span) if i in words else (0, 0) for i, span in enumerate(offsets)]
    tokens = [text[slice(*span)] if span[1] > span[0] else name for span, name in zip(spans, names, strict=True)]
    positions: list[tuple[int, ...]] = [(i,) for i in range(len(ids))]
    padding: tuple[int, ...] = ()
    if len(ids) < size:
        tokens, ids, spans = [*tokens, PADDING], [*ids, -1], [*spans, (0, 0)]
        padding = (len(positions),)
        positions.append(tuple(range(len(positions), size)))
    return Keys("text token", text, tuple(tokens), tuple(ids), tuple(spans), tuple(positions), words, (size,), padding)


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and (start, end) characters of every token of a text."""
    if not getattr(tokenizer, "is_fast", False):
        raise CaptureError(
            f"{type(tokenizer).__name__} does not say where in a text its tokens stand, so keys cannot be matched to words; load "
            "the fast tokenizer of the same name."
        )
    # Called itself, a tokenizer keeps the padding that it is asked for, and another thread may be using the pipeline's; a copy
    # that has read a text is never freed wholly. So it reads as it was last asked to, and its padding is left out.
    backend = tokenizer.backend_tokenizer
    found = backend.encode(text)
    if found.overflowing:
        backend = copy.deepcopy(backend)
        backend.no_truncation()
        found = backend.encode(text)
    real = [i for i, one in enumerate(found.attention_mask) if one]
    return [found.ids[i] for i in real], [found.offsets[i] for i in real]


def _unknown(tokenizer: Any) -> set[int]:
    """The id that stands for a word which the tokenizer does not know, unless it stands for something else too."""
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return {tokenizer.unk_token_id} - others - {None}


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters without the blank before it, which SentencePiece counts to the word."""
    while end - start > 1 and text[start].isspace():
        start += 1
    return start, end


def _one_after_the_other(parts: list[Keys]) -> Keys:
    """The keys of several groups in one row."""
    if len(parts) == 1:
        return parts[0]
    positions: list[tuple[int, ...]] = []
    words: list[int] = []
    padding: list[int] = []
    begin = 0
    for one in parts:
        words += [len(positions) + i for i in one.words]
        padding += [len(positions) + i for i in one.padding]
        positions += [tuple(begin + place for place in places) for places in one.positions]
        begin += one.count
    return Keys(
        kind=parts[0].kind,
        text=parts[0].text,
        tokens=tuple(token for one in parts for token in one.tokens),
        token_ids=tuple(number for one in parts for number in one.token_ids),
        spans=tuple(span for one in parts for span in one.spans),
        positions=tuple(positions),
        words=tuple(words),
        groups=tuple(count for one in parts for count in one.groups),
        padding=tuple(padding),
    )
