"""The texts that an image is compared with: where they stand in a whole text, and what the text encoder is fed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from probe.errors import InputError
from probe.text import phrase_span, shorten

if TYPE_CHECKING:
    from probe.models import Subject

__all__ = ["encode_texts", "place_texts"]

Span = tuple[int, int]


def place_texts(texts: Sequence[str | Span], text: str | None) -> tuple[tuple[str, ...], tuple[Span, ...], str]:
    """The texts, the characters of each in the whole text, and the whole text.

    A text that is said several times is found at its first place, and where it is given again at its next.

    Raises
    ------
    InputError
        If there is none, one is empty or is not in the whole text.
    """
    if isinstance(texts, str):
        raise InputError(f"texts is a list of texts, found one text; give [{shorten(texts)!r}].")
    if not isinstance(texts, Iterable):
        raise InputError(f"texts is a list of texts, found {texts!r}; give for example ['a red circle'].")
    given = list(texts)
    if not given:
        raise InputError("There is no text to compare the image with; give at least one, for example ['a red circle'].")
    if text is None:
        if wrong := [one for one in given if not isinstance(one, str)]:
            raise InputError(
                f"{wrong[0]!r} is not a text; characters (start, end) need the text that they are of: text=..."
            )
        spans, at = [], 0
        for one in given:
            spans.append((at, at + len(one)))
            at += len(one) + len(", ")
        whole = ", ".join(str(one) for one in given)
    else:
        whole, said = text, Counter[str]()
        spans = []
        for one in given:
            spans.append(_span(one, text, said))
    words = tuple(whole[slice(*span)] for span in spans)
    for index, one in enumerate(words):
        if not one.strip():
            raise InputError(f"Text {index} is empty; an image cannot be compared with nothing.")
    return words, tuple(spans), whole


def _span(one: Any, text: str, said: Counter[str]) -> Span:
    if isinstance(one, str):
        said[one] += 1
        return phrase_span(text, one, occurrence=said[one] - 1)
    try:
        start, end = (int(place) for place in one)
    except (TypeError, ValueError):
        raise InputError(f"{one!r} is neither a text nor (start, end) characters of the whole text.") from None
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"Characters {start} to {end} are not a span of the text, which has {len(text)} characters; give (start, end) with "
            "0 <= start < end."
        )
    return start, end


def encode_texts(subject: Subject, texts: Sequence[str]) -> dict[str, Any]:
    """What the text encoder is fed for these texts: ids and mask, on the model's device.

    Raises
    ------
    InputError
        If one is longer than the encoder takes: it would have to be cut off, and its end would not be compared.
    """
    tokenizer = getattr(subject.processor, "tokenizer", None)
    if tokenizer is None:
        raise InputError(
            f"{type(subject.processor).__name__} has no tokenizer, so texts cannot be encoded; load the model with its processor."
        )
    longest = subject.model.config.text_config.max_position_embeddings
    for index, one in enumerate(texts):
        count = len(tokenizer(one, verbose=False)["input_ids"])  # what it would warn of is raised here
        if count > longest:
            raise InputError(
                f"Text {index} ({shorten(one)!r}) has {count} tokens, its ends included, but the text encoder takes {longest}; "
                "shorten it."
            )
    # Positions count from the first token, so padding belongs behind, whatever the tokenizer is set to.
    found = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt").to(subject.model.device)
    return {name: found[name] for name in ("input_ids", "attention_mask") if name in found}
