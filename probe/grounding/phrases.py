"""The phrases of an answer, each with its exact characters: what they name, how it looks, and how one relates to another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.grounding.words import Tagged, Word, tag_words
from probe.text import find_phrase, phrase_span, shorten

__all__ = ["Kind", "Phrase", "Phrases", "Wanted", "given_phrases", "noun_phrases", "tokens_of_root"]

Kind = Literal["noun phrase", "attribute", "relation", "given"]
Span = tuple[int, int]
#: A phrase asked for: its words (every time they are said), its words and which occurrence, or (start, end) characters.
Wanted = str | tuple[str, int] | tuple[int, int]

#: "to the left of" is a relation as a whole: these name no thing between a preposition and "of".
PLACES = frozenset(["left", "right", "top", "bottom", "front", "back", "side", "middle", "center", "centre"])
_LINKS = ("IN", "TO", "VB", "RP")


@dataclass(frozen=True)
class Phrase:
    """Words at characters [start, end) of a text.

    Attributes
    ----------
    text : the words, as they stand in the text.
    start, end : their characters.
    root : characters (start, end) of the word that the phrase hangs on: "circle" of "a red circle". A given phrase's is all of it.
    kind : "noun phrase"; "attribute", an adjective inside one; "relation", what links one to the next; "given" by the user.
    chunker : who found it, with its version, or "user".
    """

    text: str
    start: int
    end: int
    root: Span
    kind: Kind
    chunker: str


class Phrases(tuple[Phrase, ...]):
    """The noun phrases of a text in their order, with what else was found.

    Attributes
    ----------
    attributes, relations : phrases of these kinds, in their order.
    chunker : who found them, with its version.
    skipped : words that could not be placed in the text, or that are in letters the chunker's language is not written in.
    note : why there are none or words were skipped; empty where there is nothing to say.
    """

    attributes: tuple[Phrase, ...] = ()
    relations: tuple[Phrase, ...] = ()
    chunker: str = ""
    skipped: int = 0
    note: str = ""


@dataclass
class _Chunk:
    words: list[Word]
    #: Words of the same sentence that stand between the noun phrase before and this one.
    before: list[Word] = field(default_factory=list)

    @property
    def root(self) -> Word | None:
        return next((one for one in self.words if one.root), None)


def noun_phrases(text: str, *, chunker: str = "auto") -> Phrases:
    """The noun phrases of an English text, with exact characters: a tuple that also has ``attributes`` and ``relations``.

    >>> [one.text for one in noun_phrases("a red circle above two dogs")]
    ['a red circle', 'two dogs']

    Pronouns ("it") name nothing by themselves and are left out. Words in letters that English is not written in belong to no
    phrase and are counted, since an English chunker can only guess there: ask for phrases of such an answer by their words.

    Parameters
    ----------
    chunker : "textblob"; "spacy:" and the name of a model, for the paper's own "spacy:en_core_web_lg"; or "auto", which takes
        spaCy if a model of it is installed and TextBlob otherwise. Each phrase says who found it.

    Raises
    ------
    InputError
        If there is no such chunker, or its model is not installed.
    """
    tagged = tag_words(text, chunker=chunker)
    # A chunker that guesses at words in other letters takes them for nouns, even for the one that a phrase hangs on.
    chunks = _chunks([one if one.readable else replace(one, chunk=None, root=False) for one in tagged.words])
    found = Phrases(_phrase(text, one.words, one.root, "noun phrase", tagged) for one in chunks)
    found.attributes = tuple(
        _phrase(text, [word], word, "attribute", tagged)
        for one in chunks
        for word in one.words
        if word.tag.startswith("JJ") and not word.root
    )
    links = (_link(one.before) for one in chunks)
    found.relations = tuple(_phrase(text, words, _link_root(words), "relation", tagged) for words in links if words)
    found.chunker = tagged.chunker
    found.skipped = tagged.unplaced + sum(not one.readable for one in tagged.words)
    found.note = _note(text, found)
    return found


def _phrase(text: str, words: Sequence[Word], root: Word | None, kind: Kind, tagged: Tagged) -> Phrase:
    start, end = words[0].start, words[-1].end
    hook = root or words[-1]
    return Phrase(text[start:end], start, end, (hook.start, hook.end), kind, tagged.chunker)


def _chunks(words: Sequence[Word]) -> list[_Chunk]:
    """The chunks that name something."""
    pieces: list[_Chunk] = []
    waiting: list[Word] = []
    runs = [(number, list(run)) for number, run in groupby(words, key=lambda one: (one.sentence, one.chunk))]
    for index, ((sentence, number), run) in enumerate(runs):
        if waiting and waiting[0].sentence != sentence:
            waiting = []
        after = runs[index + 1][1][0] if index + 1 < len(runs) else None
        root = next((one for one in run if one.root), None)
        named = any(map(str.isalnum, root.text)) if root is not None else False
        if number is None or root is None or not named or root.tag.startswith("PRP") or _is_place(run, waiting, after):
            waiting += run
        else:
            first = not pieces or pieces[-1].words[0].sentence != sentence
            pieces.append(_Chunk(run, [] if first else waiting))
            waiting = []
    return pieces


def _is_place(run: Sequence[Word], before: Sequence[Word], after: Word | None) -> bool:
    """True for "the left" in "to the left of"."""
    names = [one.text.lower() for one in run if one.tag != "DT"]
    led = bool(before) and before[-1].tag in ("IN", "TO")
    return led and after is not None and after.text.lower() == "of" and all(one in PLACES for one in names)


def _link(words: list[Word]) -> list[Word]:
    """The prepositions and verbs between two noun phrases, or nothing where a comma or "and" parts them."""
    # In "the man, whom he sees" and ", which is above" the link begins after what stands for a noun phrase.
    starts = [i + 1 for i, one in enumerate(words) if one.tag in ("WDT", "WP", "EX", "PRP", "CC") or one.tag == ","]
    link = words[starts[-1] :] if starts else words
    parted = any(not any(map(str.isalnum, one.text)) for one in link)
    linked = any(one.tag.startswith(_LINKS) for one in link)
    return [] if parted or not linked else link


def _link_root(words: Sequence[Word]) -> Word:
    by_rank = [[one for one in words if one.tag.startswith(tag)] for tag in (("IN", "TO"), ("VB", "RP"))]
    return next(found[-1] for found in by_rank if found)


def _note(text: str, found: Phrases) -> str:
    parts = []
    if not found:
        parts.append(f"The answer {shorten(text)!r} has no noun phrase that {found.chunker} finds")
    if found.skipped:
        parts.append(f"{found.skipped} words are not in English letters or could not be placed, and were left out")
    return "; ".join(parts) + "; ask for phrases by their words." if parts else ""


def given_phrases(text: str, wanted: Iterable[Wanted | Phrase]) -> tuple[Phrase, ...]:
    """The phrases that a user asks for, in that order; words that are said several times stand for every time.

    Raises
    ------
    InputError
        If a phrase is not in the text, or its characters are no span of it.
    """
    if isinstance(wanted, (str, Phrase)):
        wanted = [wanted]
    return tuple(one for each in wanted for one in _given(text, each))


def _given(text: str, wanted: Wanted | Phrase) -> list[Phrase]:
    if isinstance(wanted, Phrase):
        if text[wanted.start : wanted.end] != wanted.text:
            raise InputError(
                f"The phrase {wanted.text!r} is of another text: at characters {wanted.start} to {wanted.end} this one has "
                f"{text[wanted.start : wanted.end]!r}; find the phrases of this record's own text."
            )
        return [wanted]
    match wanted:
        case str():
            spans = find_phrase(text, wanted) or [phrase_span(text, wanted)]  # the second says what there is instead
        case (str() as phrase, int() as occurrence):
            spans = [phrase_span(text, phrase, occurrence=occurrence)]
        case (int() as start, int() as end) if 0 <= start < end <= len(text):
            spans = [(start, end)]
        case _:
            raise InputError(
                f"A phrase is words of the text, (words, occurrence), or characters (start, end) within its {len(text)}; "
                f"found {wanted!r}."
            )
    return [Phrase(text[start:end], start, end, (start, end), "given", "user") for start, end in spans]


def tokens_of_root(record: AttentionRecord, phrase: Phrase) -> tuple[int, ...]:
    """Positions of the record's tokens that overlap the phrase's root word: those whose maps stand for the phrase.

    Raises
    ------
    InputError
        If the phrase is of another text, or none of the record's tokens spells its root.
    """
    given_phrases(record.text, [phrase])
    return record.tokens_of(*phrase.root)
