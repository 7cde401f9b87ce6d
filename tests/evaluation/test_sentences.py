"""Pieces of a text are found where they stand, however a tokeniser wrote them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.evaluation.sentences import consecutive_spans, loose_spans


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("In this picture, a bear.", ["in this", "picture", "a bear", "."], ["In this", "picture", "a bear", ""]),
        ("It doesn't move", ["it", "does n't", "move"], ["It", "doesn't", "move"]),
        ("Große Straße", ["grosse", "strasse"], ["Große", "Straße"]),
        ("की आँख", ["की", "आँख"], ["की", "आँख"]),
        ("", [], []),
    ],
)
def test_pieces_in_order(text: str, pieces: list[str], expected: list[str]) -> None:
    spans = consecutive_spans(text, pieces)
    assert spans is not None
    assert [text[start:end] for start, end in spans] == expected


@pytest.mark.parametrize(
    "pieces", [["a dog"], ["a dog", "and", "a bat"], ["a dog", "and a cat", "too"], ["and a cat", "a dog"]]
)
def test_pieces_that_are_not_the_text(pieces: list[str]) -> None:
    assert consecutive_spans("a dog and a cat", pieces) is None


@given(st.lists(st.text(alphabet="abc É9", min_size=1).filter(lambda one: one.strip()), min_size=1), st.data())
def test_any_text_that_is_cut_is_found_again(words: list[str], data: st.DataObject) -> None:
    glue = data.draw(st.lists(st.sampled_from([" ", ", ", "... "]), min_size=len(words), max_size=len(words)))
    text = "".join(word + between for word, between in zip(words, glue, strict=True))
    spans = consecutive_spans(text.upper(), words)
    assert spans is not None
    start = 0
    for word, between, span in zip(words, glue, spans, strict=True):
        stripped = start + len(word) - len(word.lstrip())
        assert span == (stripped, stripped + len(word.strip()))
        start += len(word + between)


def test_phrases_as_whole_words() -> None:
    text = "A man's hat and a Man 's  hat on the woman"
    assert [text[start:end] for start, end in loose_spans(text, "man's hat")] == ["man's hat", "Man 's  hat"]
    assert loose_spans(text, "man") == [(2, 5), (18, 21)]  # not in "woman"
    assert loose_spans(text, "oman") == loose_spans(text, "...") == loose_spans("", "man") == []
