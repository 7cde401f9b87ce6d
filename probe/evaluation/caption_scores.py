"""How good the texts are: CIDEr and METEOR by pycocoevalcap's single scorers, or the reason why there are none."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from probe.errors import InputError
from probe.grounding.words import split_words

__all__ = ["CaptionScores", "score_captions"]


@dataclass(frozen=True)
class CaptionScores:
    """CIDEr and METEOR of a set of texts.

    Attributes
    ----------
    overall : measure -> its value over all texts. METEOR's is computed from counts summed over texts and is no mean.
    each : measure -> its value for each text.
    unavailable : measure -> why it is not there.
    tokeniser : what made words of the texts.
    """

    overall: Mapping[str, float] = field(default_factory=dict)
    each: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    tokeniser: str = ""


def score_captions(texts: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """CIDEr and METEOR of each text against its references, of which each has at least one.

    Words are made by the Stanford tokeniser, as published, which needs Java as METEOR does; without it CIDEr's words are those
    of ``probe.grounding.words``, and the result says so. CIDEr's word weights come from the references of the whole set. A text
    without words scores 0 in each.

    Raises
    ------
    InputError
        If there are as many texts as not references, or a text has none.
    """
    if len(texts) != len(references) or not all(references):
        raise InputError(
            f"There are {len(texts)} texts and {len(references)} lists of references, {sum(not one for one in references)} of "
            "them empty; give one list with at least one reference for each text."
        )
    if importlib.util.find_spec("pycocoevalcap") is None:
        reason = "pycocoevalcap is not installed: pip install 'groundprobe[eval]'"
        return CaptionScores(unavailable={"METEOR": reason, "CIDEr": reason})
    if not texts:
        return CaptionScores(unavailable={"METEOR": "there is no text", "CIDEr": "there is no text"})
    no_java = "" if shutil.which("java") else "Java is not installed, or not on the PATH"
    words, tokeniser, problem = _words(texts, references, java=not no_java)
    found, true = words
    overall, each, unavailable = {}, {}, {}
    overall["CIDEr"], each["CIDEr"] = _cider(found, true)
    if no_java or problem:
        unavailable["METEOR"] = no_java or problem
    else:
        try:
            overall["METEOR"], each["METEOR"] = _meteor(found, true)
        except (OSError, ValueError) as error:
            unavailable["METEOR"] = f"its Java program failed ({type(error).__name__}: {error})"
    return CaptionScores(overall, each, unavailable, tokeniser)


_Words = tuple[list[str], list[list[str]]]


def _words(texts: Sequence[str], references: Sequence[Sequence[str]], *, java: bool) -> tuple[_Words, str, str]:
    """The texts and references as words between blanks, who made them, and why it was not the Stanford tokeniser."""
    problem = ""
    if java:
        try:
            return _stanford(texts, references), "Stanford PTB", ""
        except (OSError, ValueError) as error:
            problem = f"the Stanford tokeniser failed ({error})"
    found = [_plain(one) for one in texts]
    return (found, [[_plain(one) for one in each] for each in references]), "plain words", problem


def _plain(text: str) -> str:
    return " ".join(one.text.casefold() for one in split_words(text) if any(map(str.isalnum, one.text)))


def _stanford(texts: Sequence[str], references: Sequence[Sequence[str]]) -> _Words:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # One text a line goes in and comes out: other line ends inside a text would shift all that follow.
    # A bar separates what METEOR's program is given.
    lines = [" ".join(one.replace("|", " ").split()) for each in ([*texts], *references) for one in each]
    full = [number for number, line in enumerate(lines) if line]
    made = PTBTokenizer().tokenize({number: [{"caption": lines[number]}] for number in full})
    if list(made) != full:
        raise ValueError(f"{len(made)} texts came back of {len(full)}")
    words = [made[number][0] if number in made else "" for number in range(len(lines))]
    rest = iter(words[len(texts) :])
    return words[: len(texts)], [[next(rest) for _ in each] for each in references]


def _cider(found: list[str], true: list[list[str]]) -> tuple[float, tuple[float, ...]]:
    from pycocoevalcap.cider.cider import Cider

    overall, each = Cider().compute_score(dict(enumerate(true)), {i: [one] for i, one in enumerate(found)})
    return float(overall), tuple(float(one) for one in each)


def _meteor(found: list[str], true: list[list[str]]) -> tuple[float, tuple[float, ...]]:
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        overall, each = meteor.compute_score(dict(enumerate(true)), {i: [one] for i, one in enumerate(found)})
    except (OSError, ValueError):
        # It still holds its lock, for which its own clean-up would wait for ever, and what could not be sent.
        meteor.lock.release()
        with contextlib.suppress(OSError):
            meteor.meteor_p.stdin.close()
        raise
    return float(overall), tuple(float(one) for one in each)
