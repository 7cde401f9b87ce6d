"""An evaluation from end to end: maps, then masks, then scores, each stage kept in one folder and resumed from there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import probe
from probe.errors import InputError
from probe.evaluation.categories import CategoryRule, named_category, similar_category
from probe.evaluation.examples import Example
from probe.evaluation.grounded_conversations import GroundedConversations
from probe.evaluation.phrase_masks import PanopticNarratives, ReferringExpressions
from probe.evaluation.point_accuracy import PointAccuracy
from probe.evaluation.similarity import TextEncoder, find_encoder
from probe.evaluation.sources import read_data
from probe.evaluation.tallies import Scorer, Scores, score_predictions
from probe.grounding.words import tag_words
from probe.models import load_model
from probe.protocols.identity import subject_identity
from probe.protocols.maps import MapStore, make_maps
from probe.protocols.plans import EvaluationPlan, Protocol, ReadOut, Shard, default_prompt, reads_expression
from probe.protocols.readouts import Predicted, Refiners, predict_examples, read_outs

__all__ = ["Evaluated", "Incomplete", "evaluate", "reread"]

#: Seconds that the first of several processes waits while no new map appears.
PATIENCE = 600.0
#: What follows the progress of a stage: examples, what is done with them, and how many there are -> the same examples.
Follow = Callable[[Iterable[Any], str, int | None], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Incomplete:
    """Maps that other shards have still to make: how many, of how many, and the first of them."""

    missing: int
    total: int
    first: str


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What an evaluation found.

    Attributes
    ----------
    scores : of each read-out, in order.
    predicted : truths, predictions of each read-out, and failures.
    rule : for pacc: which phrases count for which category.
    settings : all that the numbers depend on.
    """

    scores: dict[ReadOut, Scores]
    predicted: Predicted
    rule: CategoryRule | None
    settings: dict[str, Any] = field(default_factory=dict)


def evaluate(
    protocol: Protocol,
    plan: EvaluationPlan,
    out: Path,
    *,
    vary: Sequence[str] = (),
    follow: Follow = lambda examples, what, total: examples,
) -> Evaluated | Incomplete:
    """The scores of a model under a protocol; or what is missing, where other shards are still to come.

    ``out/maps`` keeps what the model said and where it looked, ``out/masks`` each read-out's predictions. The model runs for what
    is not there yet alone.

    Raises
    ------
    InputError, FileError, ModelError
        Whatever cannot be used is said before the model runs; maps in ``out`` that another model or question made are refused; or
        there is no example with an answer.
    """
    shard, read = Shard.of(plan.shard), read_outs(plan, vary)
    refiners = Refiners(read, device=_device(plan, shard))
    encoder = _encoder(protocol)
    if protocol.name in ("gcg", "pacc"):
        tag_words("a dog", chunker=protocol.chunker)  # a chunker that is not here is said now
    examples, total = read_data(plan.data, limit=plan.limit, seed=plan.seed)
    subject = load_model(plan.model, dtype=plan.dtype, device=_device(plan, shard))
    if subject.family.kind != "language model":
        raise InputError(
            f"{plan.model!r} answers nothing, so that it has no phrases to ground; give a model that does."
        )
    store = MapStore(out / "maps", _common(protocol, plan, subject_identity(subject)))
    counts = make_maps(
        subject, follow(examples, "asking the model", total), store, protocol=protocol, plan=plan, shard=shard
    )
    del subject
    if not counts:
        raise InputError(f"There is no example in {plan.data!r}; give data with at least one.")
    if incomplete := _missing(store, counts, wait=shard.together and shard.number == 0):
        return incomplete
    if shard.together and shard.number:
        return Incomplete(0, sum(counts), "")
    again, _ = read_data(plan.data, limit=plan.limit, seed=plan.seed)
    found = predict_examples(
        follow(again, "making masks", len(counts)),
        store,
        read,
        refiners,
        protocol=protocol,
        plan=plan,
        folder=out / "masks",
    )
    if len(found.failures) == len(found.truths):
        name, reason = next(iter(found.failures.items()))
        raise InputError(f"None of {len(found.truths)} examples could be asked about; the first, {name!r}: {reason}")
    rule = _rule(protocol, encoder)
    scores = {
        one: score_predictions(
            _scorer(protocol, encoder, rule, plan), found.truths, found.predictions[one], missing="miss"
        )
        for one in read
    }
    return Evaluated(scores, found, rule, _settings(protocol, plan, store, scores[read[0]]))


def _common(protocol: Protocol, plan: EvaluationPlan, identity: dict[str, str]) -> dict[str, Any]:
    """What all maps of a run depend on."""
    return {
        "protocol": protocol.name,
        "groundprobe": probe.__version__,
        **identity,
        "max_new_tokens": plan.max_new_tokens,
        "question": default_prompt(protocol, plan),
    }


def _settings(protocol: Protocol, plan: EvaluationPlan, store: MapStore, scores: Scores) -> dict[str, Any]:
    """The exact configuration: of the plan all but how the work was divided, and what was chosen where it says nothing."""
    given = {name: value for name, value in asdict(plan).items() if name not in ("shard", "device")}
    own: dict[str, Any] = {"protocol": protocol.name, "prompt": default_prompt(protocol, plan)}
    if protocol.name in ("gcg", "pacc"):
        own["chunker"] = tag_words("a dog", chunker=protocol.chunker).chunker
    if protocol.name == "res":
        rule = "the word that the expression's noun phrase hangs on, the expression being read by the model"
        own["expressions"] = rule if reads_expression(protocol, plan) else "the token after the first is, are or be"
    if protocol.name == "png":
        own["rows"] = "own rows of the given caption, all tokens of a phrase"
    return given | own | dict(scores.settings) | {"maps": store.common}


def _device(plan: EvaluationPlan, shard: Shard) -> str | None:
    """The device asked for; under torchrun with GPUs each process has its own."""
    import torch

    if plan.device is None and shard.together and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return plan.device


def _encoder(protocol: Protocol) -> TextEncoder:
    encoder = find_encoder(protocol.similarity)
    if protocol.name == "gcg" or protocol.category == "similar":
        encoder(["a dog"])  # one that cannot be loaded is said before a model runs
    return encoder


def _rule(protocol: Protocol, encoder: TextEncoder) -> CategoryRule | None:
    if protocol.name != "pacc":
        return None
    return named_category() if protocol.category == "named" else similar_category(encoder)


def _scorer(protocol: Protocol, encoder: TextEncoder, rule: CategoryRule | None, plan: EvaluationPlan) -> Scorer:
    if protocol.name == "gcg":
        return GroundedConversations(encoder, seed=plan.seed)
    if protocol.name == "pacc":
        names = {
            "named": "its last words name the category",
            "similar": f"it is most like the category by {encoder.name}",
        }
        return PointAccuracy(rule, name=names[protocol.category], seed=plan.seed)
    return ReferringExpressions(seed=plan.seed) if protocol.name == "res" else PanopticNarratives(seed=plan.seed)


def _missing(store: MapStore, counts: Sequence[int], *, wait: bool) -> Incomplete | None:
    """What is not there yet; ``wait`` is for other processes that are at work, as long as maps still appear."""
    wanted = [(index, number) for index, count in enumerate(counts) for number in range(count)]
    left, last = wanted, time.monotonic()
    while True:
        gone = [one for one in left if not store.exists(*one)]
        if len(gone) < len(left):
            last = time.monotonic()
        left = gone
        if not left:
            return None
        if not wait or time.monotonic() - last > PATIENCE:
            return Incomplete(len(left), len(wanted), store.path(*left[0]).name)
        time.sleep(0.2)


def reread(plan: EvaluationPlan, wanted: Iterable[int]) -> dict[int, Example]:
    """The examples of these numbers, read again."""
    left = set(wanted)
    found: dict[int, Example] = {}
    examples, _ = read_data(plan.data, limit=plan.limit, seed=plan.seed)
    for index, example in enumerate(examples):
        if index in left:
            found[index] = example
        if len(found) == len(left):
            break
    return found
