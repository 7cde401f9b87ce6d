"""What one picture and one text become for each kind of model: an answer, a comparison, or a picture that is denoised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch

from probe.attention import AttentionRecord
from probe.capture.decomposition import contributions
from probe.capture.encoders import EncoderRecorder
from probe.capture.geometry import encoder_inputs
from probe.errors import InputError
from probe.grounding.phrases import noun_phrases
from probe.images import read_image
from probe.models import Subject

if TYPE_CHECKING:
    from probe.evaluation.examples import Example

__all__ = [
    "ScoredQuantity",
    "compare_phrases",
    "denoise",
    "examples_compared",
    "examples_denoised",
    "require_axis",
    "require_fitting",
]

#: What of an image encoder is scored: parts of its similarity with a phrase, or the one row of its class token.
ScoredQuantity = Literal["contribution", "attention"]
Pairs = list[tuple[tuple[int, int], Any]]

_WHY = {
    "language model": "a language model reads a picture once and answers",
    "q-former": "its words are given what learned queries gathered, and no patch",
    "image encoder": "an image encoder compares a picture with texts and answers nothing",
    "diffusion": "a diffusion model denoises a picture by a text and answers nothing",
}


def require_fitting(subject: Subject, **given: tuple[Any, Any]) -> None:
    """Nothing, if every option that means nothing for this kind of model was left as it is.

    Parameters
    ----------
    given : for each such option its value and its default.

    Raises
    ------
    InputError
        If one was given: it would be ignored.
    """
    for name, (value, default) in given.items():
        if value is not default and value != default:
            raise InputError(
                f"{name}={value!r} means nothing for {subject.name!r}: {_WHY[subject.family.kind]}; leave it out."
            )


def require_axis(subject: Subject, over: str) -> None:
    """Nothing, if this kind of model has what a profile is taken over: timesteps, or words around a phrase.

    Raises
    ------
    InputError
        If it has not.
    """
    kind = subject.family.kind
    if (over == "timestep" and kind != "diffusion") or (over == "token" and kind == "image encoder"):
        raise InputError(f"{subject.name!r} has no profile over {over}s: {_WHY[kind]}; take it over layers.")


def compare_phrases(subject: Subject, image: Any, text: str, **options: Any) -> AttentionRecord:
    """What each patch adds to the similarity with each noun phrase of a text, or with the whole text where it has none."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"There is no text to compare the image with, found {text!r}; name what to look for, such as 'a red circle'."
        )
    phrases: Sequence[Any] = [(one.start, one.end) for one in noun_phrases(text)] or [text.strip()]
    return contributions(subject, image, phrases, text=text, **options)


def denoise(subject: Subject, picture: Any, text: str, **options: Any) -> AttentionRecord:
    """Where the patches of a picture with noise on it look among the words of a text, while it is denoised."""
    from probe.capture.denoising import noise_and_record

    found: AttentionRecord = noise_and_record(subject, picture, text, **options).record
    return found


def examples_compared(
    subject: Subject, examples: Iterable[Example], *, quantity: ScoredQuantity
) -> Iterator[tuple[AttentionRecord, Pairs]]:
    """For each example an image encoder's record, and the span of each phrase in the record's text with its mask."""
    for example in examples:
        if quantity == "attention":
            yield _class_row(subject, example), [((one.start, one.end), one.mask) for one in example.phrases]
        elif not example.phrases:
            yield contributions(subject, example.image, [example.text]), []
        else:
            spans = [(one.start, one.end) for one in example.phrases]
            # Where one phrase is part of another, a span of the caption would stand for both.
            apart = all(one[1] <= two[0] for one, two in pairwise(sorted(set(spans))))
            texts: list[Any] = spans if apart else [one.text for one in example.phrases]
            found = contributions(subject, example.image, texts, text=example.text if apart else None)
            yield found, [(span, one.mask) for span, one in zip(found.spans, example.phrases, strict=True)]


def _class_row(subject: Subject, example: Example) -> AttentionRecord:
    """The class token's row, given to the whole caption: it is the same for every phrase."""
    picture = read_image(example.image)
    inputs = encoder_inputs(subject.processor, picture, subject.model)
    with torch.no_grad(), EncoderRecorder(subject.model, subject.processor) as recorder:
        subject.model.get_image_features(**inputs)
    found = recorder.result(image=picture)
    return replace(found, text=example.text, spans=((0, len(example.text)),))


def examples_denoised(
    subject: Subject, examples: Iterable[Example], *, timesteps: Sequence[int], seed: int, **options: Any
) -> Iterator[tuple[AttentionRecord, Pairs]]:
    """For each example a diffusion model's record with the caption as its prompt, and the phrases' spans with their masks."""
    for example in examples:
        picture = read_image(example.image)
        found = denoise(subject, picture, example.text, timesteps=timesteps, seed=seed, **options)
        cut = len(example.text) - len(example.text.lstrip())
        if found.text not in (example.text, example.text.strip()):
            raise InputError(
                f"{example.name}: the tokenizer gives the caption back as {found.text!r} instead of {example.text!r}, so the "
                "phrases' places in it are lost."
            )
        cut = 0 if found.text == example.text else cut
        yield found, [((one.start - cut, one.end - cut), one.mask) for one in example.phrases]
