"""Texts of examples: a sentence that names categories, and where given pieces of a text stand in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from probe.evaluation.examples import ExamplePhrase
from probe.evaluation.pictures import Category

__all__ = ["category_sentence", "consecutive_spans", "loose_spans"]

Span = tuple[int, int]


def category_sentence(masks: Sequence[tuple[Category, np.ndarray]]) -> tuple[str, tuple[ExamplePhrase, ...]]:
    """The text "a person, an apple and a car", and each name in it with its mask (height, width)."""
    text = ""
    phrases = []
    for position, (category, mask) in enumerate(masks):
        name = category.name
        if position:
            text += " and " if position == len(masks) - 1 else ", "
        text += "an " if name[0].casefold() in "aeiou" else "a "
        phrases.append(ExamplePhrase(name, len(text), len(text) + len(name), mask, name, category.thing))
        text += name
    return text, tuple(phrases)


def consecutive_spans(text: str, pieces: Sequence[str]) -> list[Span] | None:
    """The characters (start, end) of each piece, if the pieces one after another are the text; ``None`` if not.

    Only letters and digits are compared, without regard to case: tokenisers move blanks and full stops about. A piece
    without any is (end, end) of the one before it.
    """
    letters = _letters(text)
    spans: list[Span] = []
    at = 0
    for piece in pieces:
        wanted = [letter for letter, _ in _letters(piece)]
        found = letters[at : at + len(wanted)]
        if [letter for letter, _ in found] != wanted:
            return None
        at += len(wanted)
        before = spans[-1][1] if spans else 0
        spans.append((found[0][1], _end(text, found[-1][1])) if found else (before, before))
    return spans if at == len(letters) else None


def loose_spans(text: str, phrase: str) -> list[Span]:
    """The characters (start, end) of each place where the phrase's letters and digits stand as whole words.

    Blanks, punctuation and case do not count, so that "man's hat" is found as "Man 's hat".
    """
    letters, wanted = _letters(text), [letter for letter, _ in _letters(phrase)]
    spans: list[Span] = []
    if not wanted:
        return spans
    names = [letter for letter, _ in letters]
    for at in range(len(names) - len(wanted) + 1):
        if names[at : at + len(wanted)] != wanted:
            continue
        start, end = letters[at][1], _end(text, letters[at + len(wanted) - 1][1])
        inside = (start and text[start - 1].isalnum()) or (end < len(text) and text[end].isalnum())
        if not inside and (not spans or start >= spans[-1][1]):
            spans.append((start, end))
    return spans


def _end(text: str, last: int) -> int:
    """Where the character ends whose letter has this number, marks that are written over or under it included."""
    end = last + 1
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end


def _letters(text: str) -> list[tuple[str, int]]:
    """Each letter and digit, in lower case, with the number of its character; some become two ("ß" is "ss")."""
    return [(letter, at) for at, found in enumerate(text) if found.isalnum() for letter in found.casefold()]
