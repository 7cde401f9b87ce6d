"""Where capture and analysis meet: one image in one line, and scores over a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Any, Literal

from probe.attention import AttentionRecord
from probe.capture.passes import generate_and_record, generate_ids, read_and_record
from probe.errors import InputError
from probe.images import read_image
from probe.layout import Indices
from probe.models import Subject

if TYPE_CHECKING:
    from PIL.Image import Image

    from probe.analysis.heads import HeadScores
    from probe.analysis.profiles import Profile
    from probe.evaluation.examples import Example

__all__ = ["Run", "profile_examples", "run", "score_examples", "threads_for"]


@dataclass(frozen=True, eq=False)
class Run:
    """One image, one prompt, one answer, and where the model looked while giving it.

    Attributes
    ----------
    text : the answer.
    record : the attention of its tokens.
    image : the picture, RGB, turned by its EXIF orientation.
    prompt : what was asked.
    """

    text: str
    record: AttentionRecord
    image: Image
    prompt: str

    def __repr__(self) -> str:
        return f"Run({self.prompt!r} -> {self.text!r})\n{self.record!r}"


def run(
    subject: Subject,
    image: Any,
    prompt: str,
    *,
    answer: str | Sequence[int] | None = None,
    max_new_tokens: int = 128,
    layers: Indices = None,
    heads: Indices = None,
    queries: Literal["answer", "prompt"] | Sequence[int] = "answer",
    query_row: Literal["predicting", "own"] | None = None,
    offload: bool = False,
    verify: Literal["sample", "all", "off"] = "sample",
) -> Run:
    """The model's answer about an image, with a record of where it looked: a ``Run``.

    >>> run = probe.run(probe.load_model("lab/llava"), "photo.jpg", "Describe the image.")
    >>> run.record["red circle"].heatmap()

    Decoding is greedy. For anything else, generate yourself inside ``probe.record(subject)``.

    Parameters
    ----------
    subject : from ``load_model``.
    image : path, PIL image or (height, width, 3) uint8 array.
    prompt : what the user asks; it is put into the model's own chat template.
    answer : read this text (or these token ids, taken as they are) in one pass instead of generating one. After a text
        comes the end token, as after a generated answer.
    max_new_tokens : where a generated answer is cut off at the latest.
    layers, heads, queries, query_row, offload, verify : see ``probe.record``.

    Raises
    ------
    InputError, CaptureError, CertificateError
        As ``read_image``, ``probe.record`` and its ``result`` do; if ``answer`` is empty, ``max_new_tokens`` is below 1, or the
        prompt or answer holds an image placeholder of its own.
    """
    _require_usable(subject, prompt, answer, max_new_tokens)
    if not isinstance(subject, Subject):
        raise InputError(
            f"run() needs a Subject, found a {type(subject).__name__}; make one with probe.load_model(...)."
        )
    picture = read_image(image)
    options: dict[str, Any] = {
        "layers": layers, "heads": heads, "queries": queries, "query_row": query_row, "offload": offload, "verify": verify,
    }  # fmt: skip
    if answer is None and query_row == "own" and queries != "prompt":
        # The last generated token is never fed back, so own rows need a second pass over the whole answer.
        answer = generate_ids(subject, picture, prompt, max_new_tokens=max_new_tokens)
    if answer is None:
        found = generate_and_record(subject, picture, prompt, max_new_tokens=max_new_tokens, **options)
    else:
        found = read_and_record(subject, picture, prompt, answer=answer, **options)
    return Run(found.text, found, picture, prompt)


def _require_usable(subject: Subject, prompt: str, answer: Any, max_new_tokens: int) -> None:
    if not isinstance(subject, Subject):
        raise InputError(
            f"run() needs a Subject, found a {type(subject).__name__}; make one with probe.load_model(...)."
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be 1 or more, found {max_new_tokens}.")
    mark = getattr(subject.processor, "image_token", None)
    for name, text in (("prompt", prompt), ("answer", answer)):
        if mark and isinstance(text, str) and mark in text:
            raise InputError(
                f"The {name} holds the image placeholder {mark!r}, which is put in where it belongs by itself; leave it out."
            )


def score_examples(
    subject: Subject,
    examples: Iterable[Example],
    *,
    prompt: str = "Describe the image.",
    metric: str | Sequence[str] = ("pointing", "auroc", "lift"),
    reading: Literal["minus mean", "attention"] = "minus mean",
    verify: Literal["sample", "all", "off"] = "sample",
    seed: int = 0,
) -> HeadScores:
    """Scores of every layer and head over a data set, its captions read in one pass each: a ``HeadScores``.

    Streams: any number of examples takes the memory of one. Phrases are found by their character spans.
    """
    from probe.analysis.heads import score_heads

    first, second = tee(_read_examples(subject, examples, prompt=prompt, verify=verify))
    records, masks = (one for one, _ in first), (two for _, two in second)
    with threads_for(subject.model):
        return score_heads(records, masks, metric=metric, reading=reading, seed=seed)


def profile_examples(
    subject: Subject,
    examples: Iterable[Example],
    *,
    over: Literal["layer", "token"] = "layer",
    prompt: str = "Describe the image.",
    metric: str = "pointing",
    reading: Literal["minus mean", "attention"] = "minus mean",
    seed: int = 0,
) -> Profile:
    """A score over layers or over the tokens around a phrase, captions read in one pass each: a ``Profile``. Streams."""
    from probe.analysis.profiles import profile

    first, second = tee(_read_examples(subject, examples, prompt=prompt, verify="sample"))
    records, masks = (one for one, _ in first), (two for _, two in second)
    with threads_for(subject.model):
        return profile(records, masks, over=over, metric=metric, reading=reading, seed=seed)


def _read_examples(
    subject: Subject, examples: Iterable[Example], *, prompt: str, verify: Literal["sample", "all", "off"]
) -> Iterator[tuple[AttentionRecord, list[tuple[tuple[int, int], Any]]]]:
    """The record of each example's caption, and its phrases' spans with their masks."""
    for example in examples:
        found = run(subject, example.image, prompt, answer=example.text, verify=verify).record
        if found.text != example.text.strip():
            raise InputError(
                f"{example.name}: the tokenizer gives the caption back as {found.text!r} instead of {example.text!r}, so the "
                "phrases' places in it are lost."
            )
        cut = len(example.text) - len(example.text.lstrip())
        yield found, [((one.start - cut, one.end - cut), one.mask) for one in example.phrases]


@contextmanager
def threads_for(model: Any) -> Iterator[None]:
    """One torch thread while a small model runs: sharing out tensors this small costs more than it gives, above all where
    the other cores are busy."""
    import torch

    before = torch.get_num_threads()
    small = sum(one.numel() for one in model.parameters()) < 10_000_000
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
