"""One example as a model reads it: its unablated pass, and what other passes of it are measured with."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from probe.analysis.metrics import score
from probe.analysis.targets import Target
from probe.attention import AttentionRecord
from probe.capture.modules import attention_modules
from probe.capture.passes import inputs_with_answer
from probe.capture.pictures import image_token_id
from probe.capture.recorder import Recorder
from probe.capture.resuming import Trunk, read_trunk, resume
from probe.capture.taps import AttentionCall
from probe.capture.weights import attention_rows
from probe.errors import InputError
from probe.images import read_image
from probe.models import Subject
from probe.runs import main_view
from probe.sweep.ablations import Cut

if TYPE_CHECKING:
    from probe.evaluation.examples import Example

__all__ = ["Conversation", "Reading", "read_conversation"]

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class Reading:
    """What one pass over a conversation gave.

    Attributes
    ----------
    chances : (token,) float64 natural log-probability of each token of the answer, its end token included.
    right : (token,) bool: the token is the most probable one.
    maps : (token, row, col) mean attention of the heads that were left, or ``None`` if it was not asked for.
    """

    chances: Tensor
    right: Tensor
    maps: Tensor | None


@dataclass(frozen=True, eq=False)
class Conversation:
    """One example with its unablated pass.

    Attributes
    ----------
    tokens : tokens of the answer that each phrase covers.
    attributes : of each phrase, tokens of the words that name an attribute.
    target : the phrases' masks on the patches; ``None`` without maps.
    answered : the unablated pass.
    """

    subject: Subject
    example: Example
    picture: Any
    inputs: dict[str, Any]
    start: int
    trunk: Trunk
    record: AttentionRecord
    tokens: tuple[tuple[int, ...], ...]
    attributes: tuple[tuple[int, ...], ...]
    target: Target | None
    answered: Reading

    @property
    def ids(self) -> list[int]:
        """Every token id that the model was fed."""
        return [int(one) for one in self.inputs["input_ids"][0]]

    @property
    def columns(self) -> list[int]:
        """Positions of the image tokens."""
        token = image_token_id(self.subject.model)
        return [place for place, one in enumerate(self.ids) if one == token]

    @property
    def reason(self) -> str:
        """Why its passes are run whole; empty if they can begin in the middle."""
        if self.trunk.reason or self.target is None:
            return self.trunk.reason
        rows, cols = self.target.grid.shape
        return "" if rows * cols == len(self.columns) else "its patches are not one image token each"

    @property
    def modules(self) -> list[nn.Module]:
        """The attention module of each layer."""
        return [one for _, one in attention_modules(self.subject.model, self.subject.family)]

    def whole(self, cut: Cut | None = None) -> Reading:
        """A whole pass, under ``probe.ablate`` or ``cut_edges``."""
        context = nullcontext() if cut is None else cut.context(self.subject)
        logits, record = _read(
            self.subject, self.picture, self.inputs, self.start, context, maps=self.target is not None
        )
        return self._reading(logits, None if self.target is None else _mean_of_left(record, cut))

    def resumed(self, cuts: Sequence[Cut]) -> list[Reading]:
        """The passes without each of these, all of one layer, in one batch that begins at that layer."""
        layer, alone = cuts[0].ablation.layer, cuts[0].ablation.of_answer_alone
        found = None if self.target is None else _Maps(self, cuts)

        def change(module: nn.Module, call: AttentionCall) -> Tensor:
            return torch.cat([cut.apply(module, call.of(number)) for number, cut in enumerate(cuts)])

        logits = resume(
            self.trunk, layer, change, count=len(cuts), answer_alone=alone, watch=None if found is None else found.see
        )
        maps: Sequence[Tensor | None] = [None] * len(cuts) if found is None else found.means()
        return [self._reading(one, own) for one, own in zip(logits, maps, strict=True)]

    def values(self, reading: Reading) -> dict[str, np.ndarray]:
        """Effect -> (phrase,) values of a pass."""
        taken = reading.chances.numpy()
        right = reading.right.numpy()
        found = {
            "log_probability": np.array([taken[list(one)].sum() for one in self.tokens]),
            "caption_log_probability": np.full(len(self.tokens), taken.sum()),
            "exact_match": np.array([right[list(one)].all() if one else np.nan for one in self.attributes], float),
        }
        if self.target is not None and reading.maps is not None:
            centred = reading.maps - reading.maps.mean(0)
            maps = torch.stack([centred[list(one)].mean(0) for one in self.tokens])
            scores = score(["pointing", "auroc"], maps, self.target)
            found |= {name: one.numpy() for name, one in scores.items()}
        return found

    def _reading(self, logits: Tensor, maps: Tensor | None) -> Reading:
        return _reading(logits, self.inputs["input_ids"][0, self.start :], maps)


class _Maps:
    """Mean attention maps of several passes that begin at one layer, gathered while these run."""

    def __init__(self, conversation: Conversation, cuts: Sequence[Cut]) -> None:
        record, trunk = conversation.record, conversation.trunk
        layer = cuts[0].ablation.layer
        self.cuts, self.columns = cuts, torch.tensor(conversation.columns)
        self.shape = record.layers[0].values.shape[-2:]
        heads = record.layers[0].values.shape[1]
        before = [one.values[0].double().sum(0) for one in record.layers[:layer]]
        start = torch.stack(before).sum(0) if before else record.layers[0].values.new_zeros((), dtype=torch.float64)
        self.sums = [start.flatten(-2) if before else start for _ in cuts]
        self.heads = tuple(range(heads))
        self.left = len(record.layers) * heads
        self.modules = conversation.modules
        self.first, self.count = trunk.first, trunk.stop - trunk.first

    def see(self, layer: int, call: AttentionCall) -> None:
        """Add what every pass attends to in this layer."""
        begin = self.first - (call.key.shape[2] - call.query.shape[2])
        rows = torch.arange(begin, begin + self.count, device=call.query.device)
        for number, cut in enumerate(self.cuts):
            silenced = cut.ablation.silenced(len(self.heads)) if layer == cut.ablation.layer else ()
            kept = tuple(head for head in self.heads if head not in silenced)
            if kept:
                weights = attention_rows(self.modules[layer], call.of(number), rows=rows, heads=kept)
                self.sums[number] = self.sums[number] + weights[..., self.columns].double().sum(0).cpu()

    def means(self) -> list[Tensor]:
        """(token, row, col) of each pass."""
        left = [self.left - len(one.ablation.silenced(len(self.heads))) for one in self.cuts]
        rows, cols = self.shape
        shaped = [rearrange(one, "token (row col) -> token row col", row=rows, col=cols) for one in self.sums]
        return [one / count for one, count in zip(shaped, left, strict=True)]


def read_conversation(
    subject: Subject, example: Example, prompt: str, *, attributes: Collection[str], maps: bool
) -> Conversation:
    """An example with its unablated pass.

    Raises
    ------
    InputError
        If its text does not survive the tokenizer, or its image cannot be read.
    CaptureError
        If the model cannot be watched.
    """
    picture = read_image(example.image)
    inputs, start = inputs_with_answer(subject, picture, prompt, example.text)
    recorder = _recorder(subject, start, maps=maps)
    with recorder:
        trunk = read_trunk(subject, inputs, start)
    record = main_view(recorder.result(image=picture))
    if record.text != example.text.strip():
        raise InputError(
            f"{example.name}: the tokenizer gives the text back as {record.text!r} instead of {example.text!r}, so the phrases' "
            "places in it are lost."
        )
    cut = len(example.text) - len(example.text.lstrip())
    spans = [(one.start - cut, one.end - cut) for one in example.phrases]
    tokens = tuple(record.tokens_of(*span) for span in spans)
    named = tuple(
        tuple(sorted({
            token
            for word in _WORD.finditer(record.text[low:high]) if word.group().casefold() in attributes
            for token in record.tokens_of(low + word.start(), low + word.end())
        }))
        for low, high in spans
    )  # fmt: skip
    masks = np.stack([one.mask for one in example.phrases]) if maps and example.phrases else None
    target = None if masks is None else Target.from_masks(record.layers[0].grid, masks)
    taken = inputs["input_ids"][0, start:]
    answered = _reading(trunk.logits, taken, _mean_of_left(record, None) if maps else None)
    return Conversation(subject, example, picture, inputs, start, trunk, record, tokens, named, target, answered)


def _recorder(subject: Subject, start: int, *, maps: bool) -> Recorder:
    # Without maps one head is enough: what tokens there are, and where.
    few: dict[str, Any] = {} if maps else {"layers": [0], "heads": [0]}
    return Recorder(subject.model, subject.processor, answer_start=start, **few)


def _read(
    subject: Subject,
    picture: Any,
    inputs: dict[str, Any],
    start: int,
    context: AbstractContextManager[None],
    *,
    maps: bool,
) -> tuple[Tensor, AttentionRecord | None]:
    """(row, vocabulary) logits of the answer's rows in a whole pass inside a context, and its record if maps are wanted."""
    keep = inputs["input_ids"].shape[1] - start + 1
    recorder = _recorder(subject, start, maps=True) if maps else None
    with torch.inference_mode(), context, recorder or nullcontext():
        logits = subject.model(**inputs, use_cache=False, logits_to_keep=keep).logits[0, :-1]
    return logits, None if recorder is None else main_view(recorder.result(image=picture))


def _mean_of_left(record: AttentionRecord | None, cut: Cut | None) -> Tensor:
    """(token, row, col) mean attention of all heads but those that the cut silences."""
    assert record is not None  # for the type checker: maps are asked for together with a record
    stacked = record.stack()  # (layer, head, token, row, col), for each of one or more timesteps
    values = stacked.reshape(len(record.layers), -1, *stacked.shape[-3:]).double()
    left = torch.ones(values.shape[:2], dtype=torch.bool)
    if cut is not None:
        left[cut.ablation.layer, list(cut.ablation.silenced(values.shape[1]))] = False
    return values[left].sum(0).cpu() / left.sum()


def _reading(logits: Tensor, taken: Tensor, maps: Tensor | None) -> Reading:
    wide = logits.double()
    chances = torch.log_softmax(wide, dim=-1).gather(1, taken[:, None])[:, 0]
    return Reading(chances.cpu(), (wide.argmax(-1) == taken).cpu(), maps)
