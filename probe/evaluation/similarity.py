"""How alike the words of two phrases are: encoders of phrases, whose cosine says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probe.errors import InputError, ModelError, did_you_mean
from probe.grounding.words import split_words

__all__ = [
    "BertEncoder",
    "ExactEncoder",
    "TextEncoder",
    "WordEncoder",
    "find_encoder",
    "similarities",
    "singular_words",
]

ARTICLES = frozenset(["a", "an", "the"])
#: The last word of a noun phrase says what it is of, so that it counts as much as two others.
LAST = 2.0
#: Encoded phrases that are kept: three kilobytes each.
KEPT = 50_000


class TextEncoder(Protocol):
    """(phrase, dimension) vectors of phrases, and the name under which results say what they rest on."""

    name: str

    def __call__(self, texts: list[str]) -> NDArray[Any]: ...


def similarities(
    encoder: TextEncoder | Callable[[list[str]], NDArray[Any]], first: Sequence[str], second: Sequence[str]
) -> NDArray[np.float64]:
    """(first, second) cosines of the phrases' vectors, 0 where a vector is zero.

    Raises
    ------
    InputError
        If the encoder gives anything but one finite vector for each phrase.
    """
    if not first or not second:
        return np.zeros((len(first), len(second)))
    texts = [*first, *second]
    vectors = np.asarray(encoder(texts), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise InputError(
            f"the encoder gave an array of shape {vectors.shape} for {len(texts)} phrases; it has to give one finite vector for "
            "each, (phrase, dimension)"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    # Rounding must not push equal phrases beyond 1, nor those at a threshold below it.
    return np.round(units[: len(first)] @ units[len(first) :].T, 9)


class ExactEncoder:
    """Phrases are alike (1) if they are the same but for case, articles and number, and else not (0)."""

    name = "same words"

    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """(phrase, distinct phrase) 1 where it is that one."""
        return _counted([[" ".join(singular_words(one))] for one in texts], last=1.0)


class WordEncoder:
    """Phrases are alike as far as they share words, in the singular and without articles; the last word counts twice.

    It needs no model: "a red circle" and "the circle" have 0.89, "a red circle" and "a red square" 0.2. It knows nothing of
    meaning ("man" and "person" have 0), so that its numbers are not to be compared with those of ``BertEncoder``.
    """

    name = "shared words, the last one twice"

    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """(phrase, distinct word) how much each word counts in each phrase."""
        return _counted([singular_words(one) for one in texts], last=LAST)


def find_encoder(name: str) -> TextEncoder:
    """The encoder called "words", "exact", "bert" (the published one), or "bert:" and a folder or hub name.

    Raises
    ------
    InputError
        If there is none of that name. Whether a BERT can be loaded shows when it is first used.
    """
    kind, _, model = name.partition(":")
    if kind == "bert":
        return BertEncoder(model) if model else BertEncoder()
    if name not in ("words", "exact"):
        known = ("words", "exact", "bert", "bert:NAME")
        raise InputError(f"There is no similarity {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")
    return WordEncoder() if name == "words" else ExactEncoder()


def singular_words(text: str) -> list[str]:
    """The words of an English phrase in lower case and in the singular, without articles and signs."""
    from textblob.en.inflect import singularize

    words = [one.text.casefold() for one in split_words(text) if any(map(str.isalnum, one.text))]
    # "bus" and "glass" are no plurals; what ends in "s" alone is told apart by a vowel or another "s" before it.
    return [one if one.endswith(("ss", "us", "is")) else singularize(one) for one in words if one not in ARTICLES]


def _counted(phrases: list[list[str]], *, last: float) -> NDArray[np.float64]:
    places = {word: place for place, word in enumerate(dict.fromkeys(word for one in phrases for word in one))}
    vectors = np.zeros((len(phrases), max(len(places), 1)))
    for row, words in enumerate(phrases):
        for position, word in enumerate(words, start=1):
            vectors[row, places[word]] += last if position == len(words) else 1.0
    return vectors


class BertEncoder:
    """The published similarity: the mean of BERT's last hidden states over all tokens, special ones included, 512 at most.

    The model is loaded when the first phrase is encoded, from a folder or the hub; phrases are encoded once.

    Raises
    ------
    ModelError
        When a phrase is encoded and the model cannot be loaded.

    References
    ----------
    Rasheed et al., GLaMM: Pixel Grounding Large Multimodal Model, CVPR 2024, and its released evaluation.
    """

    def __init__(self, model: str = "bert-base-uncased", *, device: str = "cpu") -> None:
        self.name, self.device = model, device
        self._loaded: tuple[Any, Any] | None = None
        self._kept: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """(phrase, dimension) float32."""
        new = [one for one in dict.fromkeys(texts) if one not in self._kept]
        if len(self._kept) + len(new) > KEPT:
            self._kept.clear()
            new = list(dict.fromkeys(texts))
        for one in new:
            self._kept[one] = self._encoded(one)
        return np.stack([self._kept[one] for one in texts])

    def _encoded(self, text: str) -> NDArray[np.float32]:
        import torch

        if self._loaded is None:
            self._loaded = self._load()
        tokenizer, model = self._loaded
        # One by one, so that no phrase's vector depends on the padding that its neighbours need.
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=512).to(self.device)
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state[0]
        return np.asarray(states.float().mean(0).cpu())

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
            model = AutoModel.from_pretrained(self.name, trust_remote_code=False).to(self.device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"The text encoder {self.name!r} cannot be loaded ({reason[:200]}); download it, give a folder that has it, or "
                "score with WordEncoder, under whose name the numbers then stand."
            ) from error
        return tokenizer, model
