"""The words of a text with their exact characters, and the chunkers that tag them."""

from __future__ import annotations

import functools
import importlib.util
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from probe.errors import InputError, did_you_mean

__all__ = ["CHUNKERS", "Tagged", "Word", "split_words", "tag_words"]

CHUNKERS = ("auto", "textblob", "spacy:en_core_web_lg")
#: English spaCy models, the paper's own first.
MODELS = ("en_core_web_lg", "en_core_web_trf", "en_core_web_md", "en_core_web_sm")
#: A word with inner apostrophes, hyphens and full stops, each letter with its marks; or one sign with its marks.
_PATTERN = re.compile("w[wm]*(?:[ahd]w[wm]*)*|[^s]m*")
_SIGNS = frozenset(".,;:!?()\"'&-")
#: Taggers know these as words of their own.
_CONTRACTION = re.compile(r"(?<=\w)(?:n['’]t|['’](?:s|re|ve|ll|d|m))$", re.IGNORECASE)


@dataclass(frozen=True)
class Word:
    """A word at characters [start, end) of the text, with its tag (Penn Treebank) and the chunk that it is part of.

    ``chunk`` is the number of its noun chunk, or None; ``root`` says that the chunk hangs on this word; ``readable`` is False
    where the chunker's language is not written in these letters; ``sentence`` counts from 0.
    """

    text: str
    start: int
    end: int
    sentence: int = 0
    tag: str = ""
    chunk: int | None = None
    root: bool = False
    readable: bool = True


@dataclass(frozen=True)
class Tagged:
    """The words of a text, who tagged them, and how many it gave back in a form that could not be placed in the text."""

    words: tuple[Word, ...]
    chunker: str
    unplaced: int = 0


def split_words(text: str) -> list[Word]:
    """The words and signs of a text in any script, without tags; white space belongs to none."""
    kinds = "".join(map(_kind, text))
    spans: list[tuple[int, int]] = []
    for match in _PATTERN.finditer(kinds):
        start, end = match.span()
        cut = _CONTRACTION.search(text[start:end])
        spans += [(start, start + cut.start()), (start + cut.start(), end)] if cut else [(start, end)]
    words: list[Word] = []
    sentence = 0
    for index, (start, end) in enumerate(spans):
        words.append(Word(text[start:end], start, end, sentence, readable=_latin(text[start:end])))
        gap = text[end : spans[index + 1][0]] if index + 1 < len(spans) else ""
        # A full stop inside "3.5" or "U.S." ends nothing; a blank line ends a heading without one.
        if (text[start:end] in (".", "!", "?", "…", "。") and gap) or re.search(r"\n\s*\n", gap):
            sentence += 1
    return words


def _kind(character: str) -> str:
    if character.isalnum() or character == "_":
        return "w"
    if character.isspace():
        return "s"
    # Marks and invisible joiners belong to the letter or emoji before them.
    if unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf"):
        return "m"
    return {"'": "a", "’": "a", "-": "h", "‐": "h", "‑": "h", ".": "d"}.get(character, "p")


def _latin(word: str) -> bool:
    return all(not one.isalpha() or unicodedata.name(one, "").startswith("LATIN") for one in word)


def tag_words(text: str, *, chunker: str) -> Tagged:
    """The words of a text with tags and noun chunks.

    Raises
    ------
    InputError
        If there is no such chunker, or its model is not installed.
    """
    name = _resolved(chunker)
    return _with_textblob(text) if name == "textblob" else _with_spacy(text, name.partition(":")[2])


def _resolved(chunker: str) -> str:
    installed = _spacy_models()
    if chunker == "auto":
        return next((f"spacy:{one}" for one in MODELS if one in installed), "textblob")
    if chunker == "textblob":
        return chunker
    kind, _, model = chunker.partition(":")
    if kind != "spacy" or not model:
        raise InputError(
            f"There is no chunker {chunker!r}; there are {', '.join(CHUNKERS)} and other models of spaCy's."
            + did_you_mean(chunker, CHUNKERS)
        )
    if model not in installed:
        have = (
            f"the models installed are {', '.join(sorted(installed))}" if installed else "no model of spaCy's is here"
        )
        raise InputError(
            f"chunker={chunker!r} needs spaCy and its model {model!r}, and {have}; install them with `pip install spacy` and "
            f"`python -m spacy download {model}`, or take chunker='textblob'."
        )
    return chunker


def _spacy_models() -> set[str]:
    if importlib.util.find_spec("spacy") is None:
        return set()
    import spacy

    return set(spacy.util.get_installed_models())


# spaCy ----------------------------------------------------------------------------------------------------------------


@functools.cache
def _pipeline(model: str) -> Any:
    import spacy

    return spacy.load(model)


def _with_spacy(text: str, model: str) -> Tagged:
    pipeline = _pipeline(model)
    document = pipeline(text)
    chunk_of, roots = {}, set()
    for number, chunk in enumerate(document.noun_chunks):
        roots.add(chunk.root.i)
        chunk_of.update(dict.fromkeys(range(chunk.start, chunk.end), number))
    words: list[Word] = []
    sentence = unplaced = 0
    for token in document:
        start, end = token.idx, token.idx + len(token.text)
        sentence += bool(words and token.is_sent_start)
        if text[start:end] != token.text:
            unplaced += 1
        elif not token.is_space:
            found = Word(token.text, start, end, sentence, token.tag_, chunk_of.get(token.i), token.i in roots)
            words.append(replace(found, readable=_latin(token.text)))
    return Tagged(tuple(words), f"spacy:{model} {pipeline.meta.get('version', '')}".strip(), unplaced)


# TextBlob -------------------------------------------------------------------------------------------------------------


def _with_textblob(text: str) -> Tagged:
    # Its own splitter changes the words (quotes, contractions, slashes), so that they could not be placed in the text again;
    # here it is given ours, one by one, and gives as many back.
    from importlib.metadata import version

    from textblob.en import parser

    words: list[Word] = []
    unplaced = number = 0
    for sentence in _sentences(split_words(text)):
        plain = [_plain(one) for one in sentence]
        tagged = [list(one) for one in parser.find_tags(plain)]
        if [one[0] for one in tagged] != plain:
            unplaced += len(sentence)
            continue
        chunks = [one[2] for one in parser.find_chunks(_repaired(tagged))]
        for word, (_, tag, *_rest), label in zip(sentence, tagged, chunks, strict=True):
            # Its pattern runs on from one phrase into the next: "dog and cat", "the square a circle".
            before = words[-1] if words else None
            runs_on = before is not None and before.tag.startswith("NN") and tag in ("DT", "PRP$", "CC")
            number += label == "B-NP" or (label == "I-NP" and runs_on)
            inside = label.endswith("-NP") and tag != "CC"
            words.append(replace(word, tag=tag, chunk=number if inside else None))
    return Tagged(tuple(_with_roots(words)), f"textblob {version('textblob')}", unplaced)


def _sentences(words: list[Word]) -> Iterator[list[Word]]:
    for number in dict.fromkeys(one.sentence for one in words):
        yield [one for one in words if one.sentence == number]


def _plain(word: Word) -> str:
    """A word as the tagger knows it; emoji and other scripts, which it does not know, count as a comma and not as a noun."""
    if not word.readable or not any(map(str.isalnum, word.text)):
        return word.text if word.text in _SIGNS else ","
    return word.text.replace("’", "'")


def _repaired(tagged: list[list[str]]) -> list[list[str]]:
    """The same words, where a verb's form after an article is a noun ("a green cross") or, before one, an adjective."""
    within = False
    for one, after in pairwise([*tagged, ["", "."]]):
        if one[1] in ("DT", "PRP$"):
            within = True
        elif within and one[1].startswith("VB"):
            one[1] = "JJ" if after[1].startswith(("NN", "JJ", "VBG", "VBN")) else "NN"
        within = within and one[1].startswith(("DT", "PRP$", "CD", "JJ", "RB"))
    return tagged


def _with_roots(words: list[Word]) -> Iterator[Word]:
    """The same words, the last noun of each chunk marked as its root."""
    last = {one.chunk: one.start for one in words if one.chunk is not None and one.tag.startswith(("NN", "PRP"))}
    for one in words:
        yield replace(one, root=one.chunk is not None and last.get(one.chunk) == one.start)
