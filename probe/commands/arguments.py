"""What several commands ask of their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from probe.errors import InputError

if TYPE_CHECKING:
    from probe.evaluation.examples import Example
    from probe.models import Subject

__all__ = [
    "OptionalWord",
    "OptionalWords",
    "Words",
    "at_least",
    "kind_note",
    "lab_note",
    "read_examples",
    "whole_numbers",
]

#: An argument that is typed without a name, and may be left out.
OptionalWord = str | None

#: Arguments that are typed without a name, as many as one likes or none.
OptionalWords = list[str]

#: An option with one or several words after it.
Words = Sequence[str]


def read_examples(data: str, *, limit: int | None, seed: int) -> tuple[Iterable[Example], int | None]:
    """The examples of a data set by its name, and how many there are where that is known."""
    if limit is not None:
        at_least("--limit", limit, 1)
    from probe.evaluation.sources import read_data

    return read_data(data, limit=limit, seed=seed)


def at_least(name: str, value: int, low: int) -> None:
    """Nothing, if an option is large enough; ``InputError`` if not."""
    if value < low:
        raise InputError(f"{name} must be {low} or more, found {value}.")


def whole_numbers(name: str, given: Sequence[str]) -> tuple[int, ...] | None:
    """The numbers given to an option that may be given several times; ``None`` if it was not."""
    wrong = [one for one in given if not one.strip().isdecimal()]
    if wrong:
        raise InputError(f"{name} takes a whole number of 0 or more, found {wrong[0]!r}.")
    return tuple(int(one) for one in given) or None


def kind_note(subject: Subject, quantity: str) -> list[str]:
    """A line that says what is shown of a model that has no attention from text to patches; else nothing."""
    if subject.family.kind != "image encoder":
        return []
    name = {"clip": "CLIP", "siglip": "SigLIP"}.get(subject.family.name, subject.family.name)
    shown = (
        "these are contributions of patches to the image's similarity with each phrase"
        if quantity == "contribution"
        else "this is the attention of its own query, one map that is the same for every phrase"
    )
    return [f"note         {name} has no attention from text to patches: {shown}"]


def lab_note(model: str, data: str = "") -> list[str]:
    """A line that says what the shipped model cannot do, where it may be asked to; else nothing."""
    if not model.startswith("lab/") or data.split(":")[0] == "lab":
        return []
    return [f"note         {model} knows coloured shapes alone; give --model for photographs"]
