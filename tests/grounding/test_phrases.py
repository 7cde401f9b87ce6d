"""Noun phrases: their exact characters in any text, their roots, and who found them."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest

from probe.errors import InputError
from probe.grounding import words
from probe.grounding.phrases import given_phrases, noun_phrases, tokens_of_root
from probe.grounding.words import Tagged, Word, split_words
from tests.records import make_record

BLANKS = (" ", "  ", "\n", "\t", " \n ", "\u00a0")
ADJECTIVES = ("red", "large", "big", "small", "blue")
NOUNS = ("dog", "circle", "cafe\u0301", "café", "man", "house")
# None of these is a noun phrase: emoji with joiners and selectors, right-to-left, CJK, combining marks, broken bytes.
FOREIGN = ("🐶", "👩‍👩‍👧", "❤️", "שלום", "مرحبا", "日本の円", "हिन्दी", "ไทย", "\ufffd", "…", "«", "кот", "👍🏽")


def _generated(random_state):
    """A text and the spans of its noun phrases, known because it was put together from them."""
    text, spans = "", []
    for _ in range(random_state.randint(1, 6)):
        for _ in range(random_state.randint(0, 2)):
            text += random_state.choice(FOREIGN) + random_state.choice(["", *BLANKS])
        text += "," + random_state.choice(BLANKS)
        start = len(text)
        parts = ["a", *random_state.sample(ADJECTIVES, random_state.randint(0, 2)), random_state.choice(NOUNS)]
        text += "".join(part + random_state.choice(BLANKS) for part in parts[:-1]) + parts[-1]
        spans.append((start, len(text), len(text) - len(parts[-1])))
        text += random_state.choice(["", *BLANKS]) + ","
    return text, spans


def test_generated_texts_in_every_script_have_their_phrases_at_their_characters():
    # R11; the plan of the text is the expected value.
    random_state, wrong, count = random.Random(0), 0, 0
    for _ in range(3000):
        text, spans = _generated(random_state)
        found = noun_phrases(text, chunker="textblob")
        count += len(spans)
        wrong += [(one.start, one.end, one.root[0]) for one in found] != spans
        assert all(text[one.start : one.end] == one.text and one.root[1] == one.end for one in found)
    assert (wrong, count > 9000) == (0, True)


def test_cut_texts_keep_what_was_whole():
    random_state = random.Random(1)
    for _ in range(1000):
        text, spans = _generated(random_state)
        cut = text[: random_state.randrange(len(text) + 1)]
        found = noun_phrases(cut, chunker="textblob")
        starts = {(one.start, one.end) for one in found}
        assert {(low, high) for low, high, _ in spans if high < len(cut) and "," in cut[high:]} <= starts
        assert all(cut[one.start : one.end] == one.text for one in (*found, *found.attributes, *found.relations))


def test_words_cover_everything_but_white_space_once():
    random_state = random.Random(2)
    alphabet = [
        *FOREIGN,
        *BLANKS,
        "isn't",
        "a",
        "’s",
        "-",
        "3.5",
        "\u0301",
        "\u200d",
        "'",
        "U.S.",
        '"',
        "&",
        "/",
        "$x$",
    ]
    for _ in range(2000):
        text = "".join(random_state.choices(alphabet, k=random_state.randint(0, 12)))
        found = split_words(text)
        assert all(text[one.start : one.end] == one.text != "" for one in found)
        assert "".join(one.text for one in found) == "".join(text.split())
        assert all(one.end <= two.start for one, two in pairwise(found))


def test_sentences_and_joined_letters():
    found = split_words("a dog... 3.5 cats\n\nA man.")
    assert [(one.text, one.sentence) for one in found if one.text.isalnum() or "." in one.text] == [
        ("a", 0), ("dog", 0), (".", 0), (".", 0), (".", 0), ("3.5", 1), ("cats", 1), ("A", 2), ("man", 2), (".", 2),
    ]  # fmt: skip
    assert [one.text for one in split_words("می\u200cخواهم 👩\u200d👧")] == ["می\u200cخواهم", "👩\u200d", "👧"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a large red circle and a small blue square",
            [("a large red circle", "circle"), ("a small blue square", "square")],
        ),
        (
            "a small green cross above it",
            [("a small green cross", "cross")],
        ),  # the tagger alone says that "cross" is a verb
        ("dog and cat", [("dog", "dog"), ("cat", "cat")]),
        ("The man’s hat isn't red.", [("The man", "man"), ("hat", "hat")]),
        ("A smiling man. The dog!", [("A smiling man", "man"), ("The dog", "dog")]),
        ("a dog and a dog", [("a dog", "dog"), ("a dog", "dog")]),
        ("the dog house door", [("the dog house door", "door")]),
        ("two black-and-white dogs", [("two black-and-white dogs", "dogs")]),
    ],
)
def test_phrases_and_their_roots(text, expected):
    found = noun_phrases(text, chunker="textblob")
    assert [(one.text, text[slice(*one.root)]) for one in found] == expected
    assert {one.kind for one in found} == {"noun phrase"}
    assert found.chunker.startswith("textblob ")
    assert {one.chunker for one in found} == {found.chunker}


def test_attributes_and_relations_are_kept_apart():
    text = "a large red circle to the left of a small dog, which is standing on the grass and a cat"
    found = noun_phrases(text, chunker="textblob")
    assert [one.text for one in found] == ["a large red circle", "a small dog", "the grass", "a cat"]
    assert [one.text for one in found.attributes] == ["large", "red", "small"]
    assert [(one.text, text[slice(*one.root)]) for one in found.relations] == [
        ("to the left of", "of"),
        ("is standing on", "on"),
    ]
    assert {one.kind for one in found.relations} == {"relation"}


@pytest.mark.parametrize("text", ["", "  \n", "Yes.", "🐶 !", "it is here"])
def test_an_answer_without_a_noun_phrase_is_explained(text):
    found = noun_phrases(text, chunker="textblob")
    assert found == ()
    assert "has no noun phrase" in found.note
    assert found.chunker in found.note


def test_letters_that_an_english_chunker_cannot_read_are_counted():
    found = noun_phrases("a dog, большой кот, 日本", chunker="textblob")
    assert [one.text for one in found] == ["a dog"]
    assert found.skipped == 3
    assert "3 words" in found.note


@pytest.mark.parametrize("text", ["שלום a dog עולם", "a dog красный, кот", "日本 a dog 到处 красный"])
def test_a_phrase_never_hangs_on_a_word_that_the_chunker_cannot_read(text):
    [found] = noun_phrases(text, chunker="textblob")
    assert (found.text, text[slice(*found.root)]) == ("a dog", "dog")


def test_words_that_the_tagger_changes_are_counted_and_never_misplaced(monkeypatch):
    from textblob.en import parser

    real = parser.find_tags
    monkeypatch.setattr(parser, "find_tags", lambda words: real([one for one in words if one != "gonna"]))
    found = noun_phrases("a dog. a cat gonna go. a man", chunker="textblob")
    assert ([one.text for one in found], found.skipped) == (["a dog", "a man"], 5)


def test_a_chunker_that_is_not_here():
    with pytest.raises(InputError, match="Did you mean 'textblob'"):
        noun_phrases("a dog", chunker="textblog")
    with pytest.raises(
        InputError, match=r"needs spaCy and its model 'xx_none_sm'.*python -m spacy download xx_none_sm"
    ):
        noun_phrases("a dog", chunker="spacy:xx_none_sm")


def test_spacy_is_taken_where_its_model_is_installed(monkeypatch):
    text = "the  dog sees it"
    token = lambda i, word, place, tag: SimpleNamespace(  # noqa: E731
        i=i, text=word, idx=place, tag_=tag, is_space=not word.strip(), is_sent_start=i == 0
    )
    tokens = [token(0, "the", 0, "DT"), token(1, " ", 4, "_SP"), token(2, "dog", 5, "NN"), token(3, "sees", 9, "VBZ")]
    tokens.append(token(4, "IT", 14, "PRP"))  # not what the text says there: skipped, never misplaced

    class Document(list):
        noun_chunks = (SimpleNamespace(root=tokens[2], start=0, end=3),)

    pipeline = lambda text: Document(tokens)  # noqa: E731
    pipeline.meta = {"version": "9.9"}
    fake = ModuleType("spacy")
    fake.util = SimpleNamespace(get_installed_models=lambda: ["en_core_web_sm", "xx"])
    fake.load = lambda name: pipeline
    monkeypatch.setitem(sys.modules, "spacy", fake)
    monkeypatch.setattr(words.importlib.util, "find_spec", lambda name: fake)
    words._pipeline.cache_clear()
    found = noun_phrases(text)
    tokens[3].is_sent_start = True
    read = words.tag_words(text, chunker="auto").words
    words._pipeline.cache_clear()
    assert [(one.text, one.sentence) for one in read] == [("the", 0), ("dog", 0), ("sees", 1)]
    assert [(one.text, one.root, one.chunker) for one in found] == [("the  dog", (5, 8), "spacy:en_core_web_sm 9.9")]
    assert found.skipped == 1


@pytest.mark.parametrize(
    ("text", "phrases", "relations"),
    [
        # A relation has a phrase before it in its own sentence.
        ("There is a dog", ["a dog"], []),
        ("On the grass stands a dog. Near it is a cat.", ["the grass", "a dog", "a cat"], ["stands"]),
        # "the left" is a place only after a preposition of its own sentence.
        ("a dog next to\n\nThe left of the house is red", ["a dog", "The left", "the house"], ["of"]),
        ("a dog (on a mat): under a tree", ["a dog", "a mat", "a tree"], []),
    ],
)
def test_relations_stay_within_their_clause(text, phrases, relations):
    found = noun_phrases(text, chunker="textblob")
    assert [one.text for one in found] == phrases
    assert [one.text for one in found.relations] == relations


def _tagged(*words):
    """A text and what a chunker gave for it by hand: (word, tag, chunk, root)."""
    found, text = [], ""
    for word, tag, chunk, root in words:
        found.append(Word(word, len(text), len(text) + len(word), 0, tag, chunk, root, readable=word.isascii()))
        text += word + " "
    return text, Tagged(tuple(found), "by hand")


def test_words_that_a_chunker_guesses_at_are_in_no_phrase(monkeypatch):
    text, tagged = _tagged(
        ("красный", "JJ", 0, False),
        ("dog", "NN", 0, True),
        ("the", "DT", 1, False),
        ("кот", "NN", 1, True),
        ("--", "NN", 2, True),
    )
    monkeypatch.setattr("probe.grounding.phrases.tag_words", lambda text, chunker: tagged)
    found = noun_phrases(text)
    assert [one.text for one in found] == ["dog"]
    assert (found.attributes, found.skipped) == ((), 2)


def test_the_root_is_the_chunkers_and_no_attribute_of_itself(monkeypatch):
    # "the rich" hangs on an adjective, "the big number 7" on a word in its middle.
    text, tagged = _tagged(
        ("the", "DT", 0, False), ("rich", "JJ", 0, True), ("see", "VB", None, False), ("the", "DT", 1, False),
        ("big", "JJ", 1, False), ("number", "NN", 1, True), ("7", "CD", 1, False),
    )  # fmt: skip
    monkeypatch.setattr("probe.grounding.phrases.tag_words", lambda text, chunker: tagged)
    phrases = noun_phrases(text)
    assert [(one.text, text[slice(*one.root)]) for one in phrases] == [
        ("the rich", "rich"),
        ("the big number 7", "number"),
    ]
    assert [one.text for one in phrases.attributes] == ["big"]


def test_given_phrases_stand_for_every_time_they_are_said():
    text = "a dog and a dog"
    assert [(one.start, one.end, one.root) for one in given_phrases(text, ["dog", ("dog", 1), (0, 1)])] == [
        (2, 5, (2, 5)),
        (12, 15, (12, 15)),
        (12, 15, (12, 15)),
        (0, 1, (0, 1)),
    ]
    for wanted, message in (("cat", "not in the text"), ((3, 99), "within its 15"), (7, "found 7")):
        with pytest.raises(InputError, match=message):
            given_phrases(text, [wanted])


def test_the_tokens_of_a_root():
    record = make_record(text="a red circle and a blue circle")
    first, second = noun_phrases(record.text, chunker="textblob")
    assert (tokens_of_root(record, first), tokens_of_root(record, second)) == ((2,), (6,))
    [whole] = given_phrases(record.text, ["red circle"])
    assert tokens_of_root(record, whole) == (1, 2)
    with pytest.raises(InputError, match="of another text"):
        tokens_of_root(make_record(text="two dogs"), first)
