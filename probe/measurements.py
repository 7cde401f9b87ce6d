"""One state of a model on a fixed set of examples: where it looks, what its captions cost, and the floors, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probe.analysis import controls
from probe.analysis.concentration import PEAKS
from probe.analysis.metrics import Metric, find_metric
from probe.analysis.scorer import ImageScorer, ScoreSettings, mean_maps
from probe.analysis.stats import Interval, PoissonBootstrap
from probe.analysis.structure import Structure
from probe.analysis.targets import Target, read_masks
from probe.attention import AttentionRecord
from probe.capture.passes import inputs_with_answer
from probe.capture.recorder import Recorder
from probe.errors import InputError
from probe.images import read_image
from probe.models import Subject

if TYPE_CHECKING:
    from probe.evaluation.examples import Example

__all__ = ["MEASURED", "Measurement", "Reword", "measure", "other_prompt", "read_example"]

#: Gives the same example in other words.
Reword = Callable[["Example"], "Example"]

#: What is asked where an example has no other wording: the same caption then answers another question.
OTHER_PROMPT = "What does the image show?"

#: What one measurement holds, in the order of tables.
MEASURED = {
    "caption_loss": "mean loss of the caption's tokens in nats, teacher-forced",
    "phrase_loss": "the same over the tokens of the phrases alone",
    "mean_map": "score of the mean over layers and heads",
    "minus_mean": "the same minus its mean over the answer (Eq. 3)",
    "best_head_held_out": "the head chosen on the even images, scored on the odd ones",
    "chance": "a patch chosen at random",
    "centre_prior": "always the centre of the image",
    "shuffled": "the minus_mean map against the masks of the previous image",
    "other_phrase": "the minus_mean map of another phrase of the image",
    "oracle_patch": "the best that patches allow",
    "paraphrase": "how far minus_mean moves when only the words change",
    "floor": "other_phrase + paraphrase: what minus_mean must beat",
    "margin": "minus_mean - floor, phrase by phrase",
    "top1_share": "share of the minus_mean map's variance in one patch",
    "border_share": "share of the minus_mean map's best patches on the border",
    "sink_share": "share of the minus_mean map's best patches in sinks, which every word looks at",
}
_OF_SCORER = ("mean_map", "minus_mean", "chance", "centre_prior", "shuffled", "other_phrase", "oracle_patch")
_BESIDE = ("caption_loss", "phrase_loss", "paraphrase", "floor", "margin")


@dataclass(frozen=True, eq=False)
class Measurement:
    """What ``measure`` found: for each name in ``MEASURED`` its interval, and its (replicate,) values for paired comparisons.

    Attributes
    ----------
    best_head : (layer, head) chosen on the even images; None where none can be scored.
    structure : layers and heads, which must be those of whatever it is compared with.
    """

    intervals: dict[str, Interval]
    replicated: dict[str, NDArray[np.float64]]
    best_head: tuple[int, int] | None
    structure: Structure
    images: int
    phrases: int

    @property
    def grounds(self) -> bool:
        """True if the whole intervals of the margin over the paraphrase floor and of minus_mean lie above 0 and chance."""
        return self.intervals["margin"].low > 0 and self.intervals["minus_mean"].low > self.intervals["chance"].value


def measure(
    subject: Subject,
    examples: Sequence[Example],
    *,
    prompt: str = "Describe the image.",
    metric: str = "pointing",
    reword: Reword | None = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Measurement:
    """Scores, losses, controls and floors of one model on these examples: a ``Measurement``.

    Each example is read twice in one pass each: as it is, and in other words.

    Parameters
    ----------
    reword : the same example in other words, such as ``probe.evaluation.lab.reword_scene``; by default the same caption is read as
        the answer to another question.

    Raises
    ------
    InputError
        If there is no example, or as ``score_heads`` does; the message names the example.
    """
    scorer = ImageScorer(ScoreSettings((find_metric(metric).name,), replicates=replicates, seed=seed))
    structure, phrases, halves = None, 0, list[PoissonBootstrap]()
    for index, example in enumerate(examples):
        try:
            record, masks, losses = read_example(subject, example, prompt)
            other = reword(example) if reword else example
            again, masks_again, _ = read_example(subject, other, prompt if reword else other_prompt(prompt))
            if structure is None:
                structure = Structure.of(record)
                cells = structure.cells((metric,))
                count = len(cells) + len(_BESIDE)
                halves = [PoissonBootstrap(count, replicates=replicates, seed=seed) for _ in range(2)]
            sums, counts, found = scorer.score(record, masks)
            beside = (
                _beside(record, masks, again, masks_again, losses, find_metric(metric)) if found else _nothing(losses)
            )
        except InputError as error:
            raise InputError(f"{example.name}: {error}") from None
        phrases += found
        halves[index % 2].add(index, *(np.concatenate(two) for two in zip((sums, counts), beside, strict=True)))
    if structure is None:
        raise InputError("There is no example to measure the model on.")
    both = halves[0] + halves[1]
    named = {one.name: i for i, one in enumerate(cells) if one.metric == metric and one.kind in ("reading", "control")}
    places = {name: named[name] for name in _OF_SCORER} | {name: len(cells) + i for i, name in enumerate(_BESIDE)}
    places |= {one.metric: i for i, one in enumerate(cells) if one.metric in PEAKS and one.name == "minus_mean"}
    everything, drawn = both.intervals(confidence=confidence), both.replicated()
    intervals = {name: everything[place] for name, place in places.items()}
    replicated = {name: drawn[:, place] for name, place in places.items()}
    heads = [
        i
        for i, one in enumerate(cells)
        if one.kind == "head" and one.metric == metric and not np.isnan(halves[0].value[i])
    ]
    best = max(heads, key=lambda i: halves[0].value[i], default=None)
    if best is None:
        intervals["best_head_held_out"] = Interval(np.nan, np.nan, np.nan, 0, 0)
        replicated["best_head_held_out"] = np.full(replicates, np.nan)
    else:
        intervals["best_head_held_out"] = halves[1].intervals(confidence=confidence)[best]
        replicated["best_head_held_out"] = halves[1].replicated()[:, best]
    return Measurement(
        intervals={name: intervals[name] for name in MEASURED},
        replicated={name: replicated[name] for name in MEASURED},
        best_head=None if best is None else (cells[best].layer or 0, cells[best].head or 0),
        structure=structure,
        images=len(examples),
        phrases=phrases,
    )


def read_example(
    subject: Subject, example: Example, prompt: str
) -> tuple[AttentionRecord, list[tuple[tuple[int, int], Any]], Tensor]:
    """The record of an example's caption, its phrases' spans with their masks, and the (token,) loss of each caption token in nats.

    One pass gives all of it. The mean of the losses is what the model's own ``labels=`` would give for the caption and its end.

    Raises
    ------
    InputError
        If the tokenizer does not give the caption back as it is.
    """
    picture, text = read_image(example.image), example.text.strip()
    inputs, start = inputs_with_answer(subject, picture, prompt, text)
    recorder = Recorder(subject.model, subject.processor, answer_start=start)
    with torch.inference_mode(), recorder:
        logits = subject.model(**inputs, use_cache=False).logits
    record = recorder.result(image=picture)
    if record.text != text:
        raise InputError(
            f"the tokenizer gives the caption back as {record.text!r} instead of {text!r}, so the phrases' places in it are lost."
        )
    losses = torch.nn.functional.cross_entropy(
        logits[0, start - 1 : -1].float(), inputs["input_ids"][0, start:], reduction="none"
    )
    cut = len(example.text) - len(example.text.lstrip())
    return record, [((one.start - cut, one.end - cut), one.mask) for one in example.phrases], losses.cpu()


def other_prompt(prompt: str) -> str:
    """Another question than this one, that a caption answers as well."""
    return OTHER_PROMPT if prompt != OTHER_PROMPT else "Describe the image."


def _beside(
    record: AttentionRecord, masks: Any, again: AttentionRecord, masks_again: Any, losses: Tensor, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and counts, in the order of ``_BESIDE``: losses by token, everything else by phrase."""
    tokens, read = read_masks(record, masks)
    target = Target.from_masks(record.layers[0].grid, read, device=record.layers[0].values.device)
    maps = mean_maps(record, tokens)
    other = mean_maps(again, read_masks(again, masks_again)[0])
    floor = controls.paraphrase_floor(metric, maps, other, target)
    rows = [
        losses.double(),
        losses.double()[sorted({place for one in tokens for place in one})],
        controls.paraphrase(metric, maps, other, target),
        floor,
        metric(maps, target) - floor,
    ]
    return np.array([float(one.nansum()) for one in rows]), np.array([float((~one.isnan()).sum()) for one in rows])


def _nothing(losses: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same for an example without phrases, which still has a caption."""
    sums, counts = np.zeros(len(_BESIDE)), np.zeros(len(_BESIDE))
    sums[0], counts[0] = float(losses.double().sum()), len(losses)
    return sums, counts
