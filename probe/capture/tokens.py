"""From token ids to text and back: which characters of the text each token spells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probe.errors import ModelError

__all__ = ["TokenText", "spell"]


@dataclass(frozen=True)
class TokenText:
    """A text and the tokens that spell it.

    Attributes
    ----------
    text : the decoded text, without special tokens and without leading white space.
    tokens : each token's own characters, white space included; special tokens by their name.
    spans : (start, end) characters of ``text`` for each token; empty for special tokens.
    """

    text: str
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def spell(tokenizer: Any, ids: Sequence[int]) -> TokenText:
    """The text of these token ids with the characters that each of them spells.

    Decoding is incremental, so it is linear in the number of tokens; tokens that each hold part of one character (an emoji
    split into bytes, say) share that character's span. A character cut off by the end of the answer becomes U+FFFD.

    Raises
    ------
    ModelError
        If the tokenizer is not a fast one.
    """
    from tokenizers.decoders import DecodeStream

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so its tokens cannot be aligned with text."
        )
    special = set(tokenizer.all_special_ids)
    special |= {i for i, one in tokenizer.added_tokens_decoder.items() if one.special}
    stream = DecodeStream(skip_special_tokens=True)
    text = ""
    spans: list[tuple[int, int] | None] = [None] * len(ids)
    waiting: list[int] = []
    sound: int | None = None  # the last token that spelled something by itself
    for index, token in enumerate(ids):
        if token in special:
            continue
        waiting.append(index)
        piece = _step(stream, backend, token)
        if piece is _TAKEN_BACK:
            # Bytes that are no character made the decoder take back what it had given: they become U+FFFD, and it starts anew,
            # behind a token that it has seen, so that it does not take a blank for one at the beginning.
            _give(spans, waiting[:-1], (len(text), len(text) + 1))
            text += "\N{REPLACEMENT CHARACTER}" if waiting[:-1] else ""
            waiting = [index]
            stream = DecodeStream(skip_special_tokens=True)
            if sound is not None:
                _step(stream, backend, sound)
            piece = _step(stream, backend, token)
            piece = "\N{REPLACEMENT CHARACTER}" if piece is _TAKEN_BACK else piece
        if piece is not None:
            if len(waiting) == 1 and not _BYTE.fullmatch(str(tokenizer.convert_ids_to_tokens(int(token)))):
                sound = int(token)
            while len(waiting) > 1 and _is_blank(tokenizer, ids[waiting[0]]):
                # The decoder takes away a blank at the beginning; it is no part of the character that follows.
                _give(spans, [waiting.pop(0)], (len(text), len(text)))
            _give(spans, waiting, (len(text), len(text) + len(piece)))
            text += piece
            waiting = []
    if waiting:
        whole = tokenizer.decode(list(ids), skip_special_tokens=True)
        rest = whole[len(text) :] if whole.startswith(text) else "�"
        _give(spans, waiting, (len(text), len(text) + len(rest)))
        text += rest
    return _stripped(tokenizer, ids, text, spans)


# Llama-like vocabularies have a token for each byte, for what they cannot spell otherwise.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_TAKEN_BACK = "\0taken back"


def _step(stream: Any, backend: Any, token: int) -> str | None:
    """What this token adds to the text; ``None`` if it waits for more; ``_TAKEN_BACK`` if it changes what was given before."""
    try:
        found: str | None = stream.step(backend, int(token))
    except Exception as error:  # the library raises nothing more particular
        if "Invalid prefix" not in str(error):
            raise
        return _TAKEN_BACK
    return found


def _is_blank(tokenizer: Any, token: int) -> bool:
    """True for SentencePiece's blanks alone."""
    return not str(tokenizer.convert_ids_to_tokens(int(token))).strip("▁")


def _give(spans: list[tuple[int, int] | None], waiting: list[int], span: tuple[int, int]) -> None:
    for index in waiting:
        spans[index] = span


def _stripped(tokenizer: Any, ids: Sequence[int], text: str, spans: list[tuple[int, int] | None]) -> TokenText:
    """Leading white space removed from the text and from the spans together: offsets stay true."""
    cut = len(text) - len(text.lstrip())
    tokens, moved, last = [], [], 0
    for token, span in zip(ids, spans, strict=True):
        if span is None:
            tokens.append(str(tokenizer.convert_ids_to_tokens(int(token))))
            moved.append((last, last))
            continue
        characters = text[slice(*span)]
        tokens.append(characters)
        # A token's span is its visible part: the blank before a word belongs to no phrase.
        lead = len(characters) - len(characters.lstrip()) if characters.strip() else 0
        start, end = max(span[0] + lead - cut, 0), max(span[1] - cut, 0)
        moved.append((start, end))
        last = end
    return TokenText(text[cut:], tuple(tokens), tuple(moved))
