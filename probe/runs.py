"""Where capture and analysis meet: one image in one line, and scores over a data set."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, tee
from typing import TYPE_CHECKING, Any, Literal

from probe.attention import AttentionRecord
from probe.capture.passes import generate_and_record, generate_ids, read_and_record
from probe.errors import InputError
from probe.images import read_image
from probe.kinds import (
    ScoredQuantity,
    compare_phrases,
    denoise,
    examples_compared,
    examples_denoised,
    require_axis,
    require_fitting,
)
from probe.layout import Indices
from probe.models import Subject

if TYPE_CHECKING:
    from PIL.Image import Image

    from probe.analysis.heads import HeadScores
    from probe.analysis.profiles import Over, Profile
    from probe.analysis.scorer import Reading
    from probe.evaluation.examples import Example

__all__ = ["Run", "main_view", "profile_examples", "records_of", "run", "score_examples", "threads_for"]


@dataclass(frozen=True, eq=False)
class Run:
    """One image, one prompt, one answer, and where the model looked while giving it.

    Attributes
    ----------
    text : the answer; the prompt itself, of a model that answers nothing.
    record : the attention of its tokens, or what patches add to the similarity with its phrases.
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
    timesteps: Sequence[int] | None = None,
    draws: int | None = None,
    seed: int | None = None,
) -> Run:
    """The model's answer about an image, with a record of where it looked: a ``Run``.

    >>> run = probe.run(probe.load_model("lab/llava"), "photo.jpg", "Describe the image.")
    >>> run.record["red circle"].heatmap()

    Decoding is greedy. For anything else, generate yourself inside ``probe.record(subject)``.

    A model that answers nothing reads the prompt instead. CLIP: the record holds what each patch adds to the similarity with each
    noun phrase of the prompt (``probe.contributions``). A diffusion pipeline: noise is put on the image, and the record holds the
    attention of its patches to the prompt's words while it is taken off again.

    Parameters
    ----------
    subject : from ``load_model``.
    image : path, PIL image or (height, width, 3) uint8 array.
    prompt : what the user asks; it is put into the model's own chat template.
    answer : read this text (or these token ids, taken as they are) in one pass instead of generating one. After a text
        comes the end token, as after a generated answer.
    max_new_tokens : where a generated answer is cut off at the latest.
    layers, heads, queries, query_row, offload, verify : see ``probe.record``.
    timesteps, draws, seed : of a diffusion pipeline alone: how much noise (numbers of the scheduler, (100,) by default), over how
        many draws of it the record is a mean (1), and from which seed (0).

    Raises
    ------
    InputError, CaptureError, CertificateError
        As ``read_image``, ``probe.record`` and its ``result`` do; if ``answer`` is empty, ``max_new_tokens`` is below 1, or the
        prompt or answer holds an image placeholder of its own; if an option is given that means nothing for this kind of model; or
        if its words look at no patch (BLIP-2, InstructBLIP).
    """
    if not isinstance(subject, Subject):
        raise InputError(
            f"run() needs a Subject, found a {type(subject).__name__}; make one with probe.load_model(...)."
        )
    kind = subject.family.kind
    _require_maps_of_words(subject)
    spoken = {
        "answer": (answer, None), "max_new_tokens": (max_new_tokens, 128), "queries": (queries, "answer"),
        "query_row": (query_row, None), "offload": (offload, False),
    }  # fmt: skip
    noise = {"timesteps": timesteps, "draws": draws, "seed": seed}
    given = {name: value for name, value in noise.items() if value is not None}
    if kind != "diffusion":
        require_fitting(subject, **{name: (value, None) for name, value in noise.items()})
    if kind == "image encoder":
        # The parts are always checked, all of them.
        require_fitting(subject, **spoken, verify=(verify, verify if verify == "all" else "sample"))
        picture = read_image(image)
        return Run(prompt, compare_phrases(subject, picture, prompt, layers=layers, heads=heads), picture, prompt)
    if kind == "diffusion":
        require_fitting(subject, **spoken)
        picture = read_image(image)
        found = denoise(subject, picture, prompt, layers=layers, heads=heads, verify=verify, **given)
        return Run(found.text, found, picture, prompt)
    _require_usable(subject, prompt, answer, max_new_tokens)
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


def _require_maps_of_words(subject: Subject) -> None:
    """Nothing, if the model has something to look at for its words, or for the words that a picture is compared with."""
    if subject.family.kind == "q-former":
        raise InputError(
            f"{subject.name!r} answers from the tokens of a Q-Former, which have no place in the image, so no map belongs to a "
            "word of its answer. What these tokens gather can be recorded, without words: with probe.record(subject) as recorder: "
            "subject.model.generate(**inputs)."
        )


def _require_usable(subject: Subject, prompt: str, answer: Any, max_new_tokens: int) -> None:
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
    reading: Reading | None = None,
    quantity: ScoredQuantity | None = None,
    timesteps: Sequence[int] | None = None,
    verify: Literal["sample", "all", "off"] = "sample",
    seed: int = 0,
) -> HeadScores:
    """Scores of every layer and head over a data set, its captions read in one pass each: a ``HeadScores``.

    Streams: any number of examples takes the memory of one. Phrases are found by their character spans.

    Parameters
    ----------
    prompt : what the captions answer, for a language model.
    reading : what a single head's score reads, see ``score_heads``: by default "minus mean", but "attention" for the one row of a
        class token, which has no mean to subtract.
    quantity : for an image encoder alone: the "contribution" of patches to the similarity with each phrase (the default), or the
        "attention" of its class token (or pooling query), one map that is scored against every phrase.
    timesteps : for a diffusion pipeline alone, whose prompt is the caption: how much noise is put on the image, (100,) by default.
        With several, every timestep has its own rows.
    seed : of the bootstrap, and of the noise.
    """
    from probe.analysis.heads import score_heads

    chosen = _reading(subject, reading, quantity)
    options: dict[str, Any] = {"quantity": quantity, "timesteps": timesteps, "seed": seed}
    seen: deque[str] = deque()
    followed = _noting(examples, seen)
    first, second = tee(records_of(subject, followed, prompt=prompt, verify=verify, **options))
    records, masks = (one for one, _ in first), (two for _, two in second)
    pictures = (seen.popleft() for _ in count())
    with threads_for(subject.model):
        return score_heads(records, masks, pictures=pictures, metric=metric, reading=chosen, seed=seed)


def _noting(examples: Iterable[Example], seen: deque[str]) -> Iterator[Example]:
    """The same examples; what tells the picture of each from others is added to ``seen`` as it is drawn."""
    for one in examples:
        seen.append(one.picture)
        yield one


def profile_examples(
    subject: Subject,
    examples: Iterable[Example],
    *,
    over: Over = "layer",
    prompt: str = "Describe the image.",
    metric: str = "pointing",
    reading: Reading | None = None,
    quantity: ScoredQuantity | None = None,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
) -> Profile:
    """A score over layers, timesteps or the tokens around a phrase, captions read in one pass each: a ``Profile``. Streams.

    Options are those of ``score_examples``.
    """
    from probe.analysis.profiles import profile

    require_axis(subject, over)
    chosen = _reading(subject, reading, quantity)
    options: dict[str, Any] = {"quantity": quantity, "timesteps": timesteps, "seed": seed}
    first, second = tee(records_of(subject, examples, prompt=prompt, verify="sample", **options))
    records, masks = (one for one, _ in first), (two for _, two in second)
    with threads_for(subject.model):
        return profile(records, masks, over=over, metric=metric, reading=chosen, seed=seed)


def _reading(subject: Subject, reading: Reading | None, quantity: ScoredQuantity | None) -> Reading:
    single = subject.family.kind == "image encoder" and quantity == "attention"
    return reading or ("attention" if single else "minus mean")


def records_of(
    subject: Subject,
    examples: Iterable[Example],
    *,
    prompt: str = "Describe the image.",
    verify: Literal["sample", "all", "off"] = "sample",
    quantity: ScoredQuantity | None = None,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[tuple[AttentionRecord, list[tuple[tuple[int, int], Any]]]]:
    """The record of each example's caption, and its phrases' spans with their masks. Options are those of ``score_examples``."""
    kind = subject.family.kind
    if quantity not in (None, "contribution", "attention"):
        raise InputError(f"quantity must be 'contribution' or 'attention', found {quantity!r}.")
    if kind != "language model":
        require_fitting(subject, prompt=(prompt, "Describe the image."))
    if kind != "diffusion":
        require_fitting(subject, timesteps=(timesteps, None))
    if kind != "image encoder":
        require_fitting(subject, quantity=(quantity, None))
    if kind == "image encoder":
        require_fitting(subject, verify=(verify, verify if verify == "all" else "sample"))
        yield from examples_compared(subject, examples, quantity=quantity or "contribution")
    elif kind == "diffusion":
        steps = (100,) if timesteps is None else timesteps
        yield from examples_denoised(subject, examples, timesteps=steps, seed=seed, verify=verify)
    else:
        yield from _examples_answered(subject, examples, prompt=prompt, verify=verify)


def _examples_answered(
    subject: Subject, examples: Iterable[Example], *, prompt: str, verify: Literal["sample", "all", "off"]
) -> Iterator[tuple[AttentionRecord, list[tuple[tuple[int, int], Any]]]]:
    for example in examples:
        found = run(subject, example.image, prompt, answer=example.text, verify=verify).record
        if found.text != example.text.strip():
            raise InputError(
                f"{example.name}: the tokenizer gives the caption back as {found.text!r} instead of {example.text!r}, so the "
                "phrases' places in it are lost."
            )
        cut = len(example.text) - len(example.text.lstrip())
        yield main_view(found), [((one.start - cut, one.end - cut), one.mask) for one in example.phrases]


def main_view(record: AttentionRecord) -> AttentionRecord:
    """The record itself, or of one picture in several views that of the whole image at its finest: not of its thumbnail."""
    views = {one.view for one in record.layers}
    return record.select(view="image 0") if views == {"image 0", "thumbnail"} else record


@contextmanager
def threads_for(*models: Any) -> Iterator[None]:
    """One torch thread while small models run: sharing out tensors this small costs more than it gives, above all where
    the other cores are busy."""
    import torch

    before = torch.get_num_threads()
    # A pipeline is no module itself.
    parts = [[one] if isinstance(one, torch.nn.Module) else getattr(one, "components", {}).values() for one in models]
    modules = [[one for one in some if isinstance(one, torch.nn.Module)] for some in parts]
    sizes = [sum(one.numel() for part in some for one in part.parameters()) for some in modules]
    torch.set_num_threads(1 if max(sizes, default=0) < 10_000_000 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
