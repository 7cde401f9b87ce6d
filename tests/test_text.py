"""Phrases are found as whole words, in any script, wherever they stand."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.text import find_phrase, nearby_phrases, shorten


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("a red circle", "red", [(2, 5)]),
        ("a red circle", "red circle", [(2, 12)]),
        ("a Red Circle", "red circle", [(2, 12)]),
        ("a red circle", "  red ", [(2, 5)]),
        ("redder reds are red.", "red", [(16, 19)]),
        ("cat, cat; cat", "cat", [(0, 3), (5, 8), (10, 13)]),
        ("concatenate", "cat", []),
        ("snake_case", "case", []),
        ("the man's hat", "man", [(4, 7)]),
        ("a red-haired man", "red", [(2, 5)]),
        ("a red circle", "", []),
        ("a red circle", "  ", []),
        ("a (red) one", "(red)", [(2, 7)]),
        ("cafe\u0301 noir", "cafe", []),
        ("cafe\u0301 noir", "cafe\u0301", [(0, 5)]),
        ("红色的圆", "圆", [(3, 4)]),
        ("赤い円と青い円", "円", [(2, 3), (6, 7)]),
        ("วงกลมสีแดง", "สีแดง", [(5, 10)]),
        ("Ein Ärmel", "ärmel", [(4, 9)]),
        ("синий квадрат", "квадрат", [(6, 13)]),
        ("كرة حمراء", "حمراء", [(4, 9)]),
        ("a 🐶 dog", "🐶", [(2, 3)]),
        # Skin tones and joiners make one sign of several, as they make one word.
        ("👍🏽 👍", "👍", [(3, 4)]),
        ("👩‍👩‍👧 👩", "👩", [(6, 7)]),
        ("👩‍👩‍👧", "👩‍👩‍👧", [(0, 5)]),
        ("می‌خواهم می", "می", [(9, 11)]),
        ("2 dogs", "2", [(0, 1)]),
        ("a 24 b", "2", []),
        # What begins inside a word must not swallow the whole phrase that begins in it.
        ("banana ana ana", "ana ana", [(7, 14)]),
        ("xa a a", "a a", [(3, 6)]),
    ],
)
def test_phrases(text, phrase, expected):
    assert find_phrase(text, phrase) == expected


def test_thousands_of_planted_words_are_found_exactly():
    rng = random.Random(0)
    words = ["a", "red", "reds", "circle", "café", "élan", "круг", "2", "dog's", "x_y", "is", "this"]
    for _ in range(3000):
        said = [rng.choice(words) for _ in range(rng.randint(1, 9))]
        text = " ".join(said)
        length = rng.randint(1, 2)
        at = rng.randrange(len(said))
        phrase = " ".join(said[at : at + length])
        found = find_phrase(text, phrase if rng.random() < 0.5 else phrase.upper())
        start = len(" ".join(said[:at])) + (at > 0)
        assert (start, start + len(phrase)) in found or any(a < start + len(phrase) and start < b for a, b in found)
        for a, b in found:
            assert text[a:b].lower() == phrase.lower()
            assert a == 0 or not re.match(r"\w", text[a - 1])
            assert b == len(text) or not re.match(r"\w", text[b])


@given(st.text(max_size=30), st.text(max_size=6))
def test_any_text_gives_spans_that_hold_the_phrase_and_do_not_overlap(text, phrase):
    last = 0
    for start, end in find_phrase(text, phrase):
        assert last <= start < end <= len(text)
        assert re.fullmatch(re.escape(phrase.strip()), text[start:end], flags=re.IGNORECASE)
        last = end


def test_near_phrases_are_runs_of_words():
    assert nearby_phrases("a red circle", "red cirle") == ["a red", "red circle", "a", "red", "circle"]


def test_shortening():
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab…"
