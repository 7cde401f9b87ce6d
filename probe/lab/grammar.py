"""The small grammar of captions, with the character span of every phrase."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

__all__ = ["COLOURS", "OPENINGS", "PROMPTS", "RELATIONS", "SIZES", "listing", "relating", "reworded"]

# Saturated, and far apart in hue or brightness, so that a name is never a matter of taste.
COLOURS = {
    "red": (208, 44, 52),
    "orange": (243, 134, 30),
    "yellow": (250, 212, 52),
    "green": (38, 152, 82),
    "blue": (38, 98, 208),
    "purple": (132, 62, 176),
}
SIZES = ("small", "large")
OPENINGS = ("", "there is ", "the image shows ", "a picture of ")
RELATIONS = ("to the left of", "above", "below")
PROMPTS = (
    "Describe the image.",
    "What is in the picture?",
    "Describe this picture in detail.",
    "What do you see?",
    "What does the image show?",
    "Please describe the image in detail.",
)

Span = tuple[int, int]


def listing(rng: np.random.Generator, phrases: Sequence[str]) -> tuple[str, list[Span]]:
    """The caption ``"a large red circle and a small blue square"`` and the span of each phrase."""
    glue = [", "] * (len(phrases) - 1)
    if glue:
        glue[-1] = " and "
    return _joined(OPENINGS[rng.integers(len(OPENINGS))], phrases, glue)


def relating(
    rng: np.random.Generator, phrases: Sequence[str], places: Sequence[tuple[float, float]]
) -> tuple[str, list[Span]]:
    """The caption ``"a large red circle above a small blue square"`` and the span of each phrase.

    Objects come left to right with centres `places` (row, col); each is related to the next one.
    """
    glue = []
    for number, ((row, col), (next_row, next_col)) in enumerate(pairwise(places)):
        relation = RELATIONS[1] if row < next_row else RELATIONS[2]
        if abs(next_col - col) >= abs(next_row - row):
            relation = RELATIONS[0]
        glue.append((", which is " if number else " ") + relation + " ")
    return _joined(OPENINGS[rng.integers(len(OPENINGS))], phrases, glue)


def _joined(opening: str, phrases: Sequence[str], glue: Sequence[str]) -> tuple[str, list[Span]]:
    """The caption and the span of each phrase in it, without its article."""
    text, spans = opening, []
    for phrase, between in zip(phrases, [*glue, ""], strict=True):
        text += "a "
        spans.append((len(text), len(text) + len(phrase)))
        text += phrase + between
    return text, spans


def reworded(caption: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """The same caption with the next of ``OPENINGS``, and where its phrases stand then: other words, same meaning.

    ``"there is a red circle"`` becomes ``"the image shows a red circle"``. The phrases, their order and all between them stay.
    """
    place = max((i for i, one in enumerate(OPENINGS) if caption.startswith(one)), key=lambda i: len(OPENINGS[i]))
    before, after = OPENINGS[place], OPENINGS[(place + 1) % len(OPENINGS)]
    moved = len(after) - len(before)
    return after + caption[len(before) :], [(start + moved, end + moved) for start, end in spans]
