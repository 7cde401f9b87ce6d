"""Where a phrase stands in a text: whole words, by character spans."""

from __future__ import annotations

import re
import unicodedata

from probe.errors import InputError, did_you_mean

__all__ = ["find_phrase", "nearby_phrases", "phrase_span", "shorten"]

#: Zero-width (non-)joiners stand inside one word or emoji; skin tones follow theirs.
_JOINERS, _TONES = "\u200c\u200d", "".join(map(chr, range(0x1F3FB, 0x1F400)))


def find_phrase(text: str, phrase: str) -> list[tuple[int, int]]:
    """Character spans (start, end) of every occurrence of a phrase as whole words, without regard to case.

    Where a script does not separate words by spaces (Chinese, Japanese, Thai, ...) any occurrence counts.
    """
    phrase = phrase.strip()
    if not phrase:
        return []
    pattern, found, start = re.compile(re.escape(phrase), flags=re.IGNORECASE), [], 0
    while match := pattern.search(text, start):
        whole = not _glued(text, match.start()) and not _glued(text, match.end())
        if whole:
            found.append(match.span())
        # One that begins inside a word must not swallow the whole one that begins inside it.
        start = match.end() if whole else match.start() + 1
    return found


def phrase_span(text: str, phrase: str, *, occurrence: int | None = None) -> tuple[int, int]:
    """Characters (start, end) of a phrase of whole words; of its occurrence with this number, from 0, where it is said often.

    Raises
    ------
    InputError
        If the phrase is not in the text, or is there several times and no occurrence, or one that does not exist, is named.
    """
    found = find_phrase(text, phrase)
    if not found:
        raise InputError(
            f"The phrase {phrase!r} is not in the text {shorten(text)!r}."
            + did_you_mean(phrase, nearby_phrases(text, phrase))
        )
    choices = f"({phrase!r}, 0) to ({phrase!r}, {len(found) - 1})"
    if occurrence is None and len(found) > 1:
        raise InputError(
            f"The phrase {phrase!r} is {len(found)} times in {shorten(text)!r}; choose one by its number, {choices}, "
            f"at characters {', '.join(map(str, found))}."
        )
    number = occurrence or 0
    if not -len(found) <= number < len(found):
        raise InputError(
            f"occurrence of {phrase!r} {number} does not exist: there are {len(found)}, choose from {choices}."
        )
    return found[number]


def _glued(text: str, cut: int) -> bool:
    """True if a cut at this character would split a word."""
    if not 0 < cut < len(text):
        return False
    before, after = text[cut - 1], text[cut]
    # A combining mark belongs to the letter before it, a skin tone to its emoji, and a joiner to both sides.
    if unicodedata.category(after).startswith("M") or after in _TONES or before in _JOINERS or after in _JOINERS:
        return True
    if not (_in_word(before) and _in_word(after)):
        return False
    return not any(
        re.match(r"(CJK|HIRAGANA|KATAKANA|THAI|LAO|KHMER|MYANMAR)", unicodedata.name(one, ""))
        for one in (before, after)
    )


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def nearby_phrases(text: str, wanted: str) -> list[str]:
    """Runs of as many words of the text as the wanted phrase has, and single words: what might have been meant."""
    words = re.findall(r"\w+", text)
    length = max(1, len(wanted.split()))
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)] + words


def shorten(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
