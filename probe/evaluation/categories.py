"""Which class of things a predicted phrase is about: the rules that point accuracy can be asked with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from probe.evaluation.predictions import PredictedPhrase
from probe.evaluation.similarity import TextEncoder, similarities, singular_words

__all__ = ["CategoryRule", "named_category", "similar_category"]

#: (phrase, the picture's categories) -> the category that the phrase counts for, or None where it does not count.
CategoryRule = Callable[[PredictedPhrase, Sequence[str]], str | None]


def named_category(synonyms: Mapping[str, Sequence[str]] | None = None) -> CategoryRule:
    """The rule that a phrase counts for the category that its last words name, in the singular or plural.

    >>> rule = named_category({"person": ["man", "woman"]})
    >>> rule(phrase_of("two young women"), ["person", "dog"])
    'person'

    A noun phrase ends in the word that it hangs on, so "a hot dog" counts for "hot dog" and not for "dog": of several names the
    longest decides. A phrase that was given a category counts for that one, be it in the picture or not. Others do not count.
    """
    listed = {name: [singular_words(one) for one in (name, *others)] for name, others in (synonyms or {}).items()}

    def rule(phrase: PredictedPhrase, categories: Sequence[str]) -> str | None:
        if phrase.category:
            return phrase.category
        words = singular_words(phrase.text)
        best, length = None, 0
        for category in categories:
            for name in listed.get(category) or [singular_words(category)]:
                if len(name) > length and words[-len(name) :] == name:
                    best, length = category, len(name)
        return best

    return rule


def similar_category(encoder: TextEncoder, *, least: float = 0.0) -> CategoryRule:
    """The rule that a phrase counts for the most similar of the picture's categories, if it is at least that similar.

    With ``least`` 0 every phrase counts, as in the paper's released code, which compares a phrase's root word by spaCy's vectors.
    A phrase that was given a category counts for that one. Of equals the first in alphabetical order is taken.
    """

    def rule(phrase: PredictedPhrase, categories: Sequence[str]) -> str | None:
        if phrase.category or not categories:
            return phrase.category or None
        names = sorted(categories)
        [alike] = similarities(encoder, [phrase.text], names)
        best = int(alike.argmax())
        return names[best] if alike[best] >= least else None

    return rule
