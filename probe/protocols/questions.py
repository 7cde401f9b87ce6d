"""What each protocol asks a model about an example, and which words of the answer it looks for.

References: Cao, Gui, Wang, arXiv 2410.08209: the answer's noun phrases (GCG, PAcc); a description of what an expression refers to,
read at the token after its verb (RES); the given caption in one pass, each token's own row (PNG).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from probe.attention import AttentionRecord
from probe.errors import InputError
from probe.evaluation.examples import Example
from probe.grounding.phrases import Phrase, noun_phrases
from probe.grounding.segment import recorded_noun_phrases
from probe.protocols.plans import EvaluationPlan, Protocol, default_prompt, reads_expression

__all__ = ["Question", "expression_phrase", "narrative_phrases", "questions_of", "said_phrases", "token_after_verb"]

#: A model that reads words in a sentence is given them as they would be said.
ARTICLES = ("a ", "an ", "the ")


@dataclass(frozen=True)
class Question:
    """One pass of the model: a prompt, the answer that it is given to read (None lets it answer), and which rows are kept."""

    prompt: str
    answer: str | None = None
    query_row: Literal["predicting", "own"] = "predicting"


def questions_of(example: Example, protocol: Protocol, plan: EvaluationPlan) -> list[Question]:
    """The passes over one example: for res one for each of its phrases in order, else one."""
    prompt = default_prompt(protocol, plan)
    if protocol.name == "png":
        return [Question(prompt, example.text, "own")]
    if protocol.name != "res":
        return [Question(prompt)]
    if reads_expression(protocol, plan):
        return [Question(prompt, _as_said(one.text)) for one in example.phrases]
    return [Question(prompt.replace("{expression}", one.text)) for one in example.phrases]


def _as_said(expression: str) -> str:
    """The expression with an article before it."""
    if expression.casefold().startswith(ARTICLES):
        return expression
    return ("an " if expression[:1].casefold() in "aeiou" else "a ") + expression


def said_phrases(record: AttentionRecord, protocol: Protocol) -> tuple[Phrase, ...]:
    """The noun phrases of an answer (gcg, pacc)."""
    return recorded_noun_phrases(record, chunker=protocol.chunker)[0]


def narrative_phrases(record: AttentionRecord, spans: Sequence[tuple[int, int]], text: str) -> list[Phrase]:
    """The phrases of a caption (png), all their tokens, at the characters that they have in the record's text.

    Raises
    ------
    InputError
        If the record's text is not that caption, so that places in it are lost.
    """
    if record.text != text.strip():
        raise InputError(f"the tokenizer gives the caption back as {record.text!r} instead of {text.strip()!r}")
    cut = len(text) - len(text.lstrip())
    found = []
    for start, end in spans:
        low, high = start - cut, end - cut
        found.append(Phrase(record.text[low:high], low, high, (low, high), "given", "data set"))
    return found


def expression_phrase(record: AttentionRecord) -> Phrase:
    """An expression that the model read: the word that its first noun phrase hangs on, or its last word (res)."""
    text = record.text
    found = noun_phrases(text, chunker="textblob")
    if found:
        return found[0]
    words = list(re.finditer(r"\S+", text))
    return Phrase(text, 0, len(text), words[-1].span(), "given", "last word")


def token_after_verb(record: AttentionRecord) -> Phrase | None:
    """The token after the first "is", "are" or "be" of the answer (res); None where there is none."""
    verb = re.search(r"\b(is|are|be)\b", record.text, re.IGNORECASE)
    if verb is None:
        return None
    after = next((span for span in record.spans if span[1] > span[0] >= verb.end()), None)
    if after is None:
        return None
    return Phrase(record.text[slice(*after)], *after, after, "given", "after the verb")
