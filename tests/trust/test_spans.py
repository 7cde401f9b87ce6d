"""R11: the tokens of a word or phrase, over tokenizers, scripts, repeated words and answers that were cut off."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from probe.capture.tokens import spell
from probe.grounding.phrases import given_phrases, tokens_of_root
from tests.capture.test_tokens import TOKENIZERS
from tests.records import make_grid, make_record

# No piece is words of another; "cafe", "cafe\u0301" and "café" are three, and so are an emoji and the family that it begins.
PIECES = (
    "a man", "red ball", "dogs", "isn't", "U.S.", "cafe", "cafe\u0301", "café", "n\u0303o", "🐶", "👩", "👩‍👩‍👧", "👍🏽", "❤️", "🇫🇷",
    "שלום עולם", "كرة حمراء", "日本の円", "红色", "हिन्दी", "ไทย", "кот", "𝔘𝔫𝔦", "3.5", "$x^2$", "<b>", "naïve",
)  # fmt: skip
BETWEEN = (" ", "  ", "\n", ", ", " - ", "\n\n", " (", '" ')


def _text(chance):
    """A text and the characters of each of its pieces, known because it was put together from them."""
    text, spans = "", []
    for piece in chance.choices(PIECES, k=chance.randint(2, 9)):
        spans.append((len(text), len(text) + len(piece)))
        text += piece + chance.choice(BETWEEN)
    return text.rstrip(), spans


def _record(found):
    """A record of these tokens on one patch."""
    record = make_record(layers=1, heads=1, text="a", grid=make_grid(1, 1, image_size=(4, 4)))
    [layer] = record.layers
    count = len(found.tokens)
    layer = replace(layer, values=torch.zeros(1, 1, count, 1, 1), rest=torch.zeros(1, 1, count, 3))
    ids = tuple(range(count))
    return replace(record, layers=(layer,), tokens=found.tokens, token_ids=ids, spans=found.spans, text=found.text)


# Byte-level vocabularies write a printable byte as its Latin-1 letter and the n-th other one as character 256 + n.
SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {chr(one): one for one in SHOWN} | {
    chr(256 + place): one for place, one in enumerate(one for one in range(256) if one not in SHOWN)
}


def _bytes(token, kind):
    """The bytes that a token stands for, by the rules of its vocabulary."""
    if kind in ("byte level", "bytes alone"):
        return bytes(LETTERS[one] for one in token)
    named = re.fullmatch("<0x(..)>", token)
    return bytes.fromhex(named[1]) if named else token.replace("▁", " ").encode()


def _characters(tokens, kind):
    """The text that the tokens spell, and for each of its characters the tokens with one of its bytes, by counting bytes alone."""
    spelled = [_bytes(token, kind) for token in tokens]
    owners = [index for index, one in enumerate(spelled) for _ in one]
    text = b"".join(spelled).decode()
    ends = list(accumulate(len(one.encode()) for one in text))
    characters = [set(owners[end - len(one.encode()) : end]) for one, end in zip(text, ends, strict=True)]
    return text.lstrip(), characters[len(text) - len(text.lstrip()) :]


@pytest.mark.promises("R11")
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_of_every_phrase_are_those_that_spell_it(kind, line, full):
    wanted = 6000 if full else 600
    spans = line("R11", target="0 wrong of 20,000", least=wanted)
    tokenizer, chance = TOKENIZERS[kind](), random.Random(kind)
    while spans.trials < wanted:
        text, places = _text(chance)
        ids = tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        plain, characters = _characters(tokenizer.convert_ids_to_tokens(ids), kind)
        assert plain == text
        kept = len(ids) if chance.random() < 0.5 else chance.randint(1, len(ids))  # half of the answers are cut off
        record = _record(spell(tokenizer, ids[:kept]))
        seen = {}
        for start, end in places:
            expected = set.union(*characters[start:end])
            piece = text[start:end]
            occurrence = seen[piece] = seen.get(piece, -1) + 1
            if max(expected) >= kept:
                break
            [phrase] = given_phrases(record.text, [(piece, occurrence)])
            found = tokens_of_root(record, phrase)
            right = (phrase.start, phrase.end) == (start, end) and found == tuple(sorted(expected))
            spans.trial(right, silent=True, what=(piece, occurrence, text, kept))
    spans.settle()
