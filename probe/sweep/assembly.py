"""From a plan to the engine that computes its rows, and what of the live model the rows depend on."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from probe.errors import InputError
from probe.sweep.identity import ModelOutline, digest_of, example_digest, identify

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from probe.evaluation.examples import Example
    from probe.sweep.ablations import Ablation
    from probe.sweep.plan import SweepPlan

__all__ = ["SweepEngine", "identity_of", "load_engine"]


class SweepEngine(Protocol):
    """What computes the rows: ``probe.sweep.engine.Engine``, or anything that is called in the same way.

    Called with examples, it gives a table with the plan's columns but ``position`` and ``error``. Where memory does not suffice it
    raises ``MemoryError`` or ``torch.OutOfMemoryError``, and is called again with a smaller ``batch``.
    """

    batch: int

    def __call__(self, examples: Sequence[Example], /) -> pd.DataFrame: ...


def load_engine(plan: SweepPlan, outline: ModelOutline, *, ablations: Sequence[Ablation]) -> SweepEngine:
    """The engine of this plan for these ablations, with its weights loaded.

    Raises
    ------
    ModelError
        If the model cannot be loaded.
    InputError
        If there is no example to take means or pictures from.
    """
    from probe.models import load_model
    from probe.sweep.engine import Engine

    subject = load_model(plan.model, dtype=plan.dtype, device=_device(plan))
    ways = plan.names("how")
    options: dict[str, Any] = {}
    if "mean" in ways or "other image" in ways:
        examples = _reference(plan)
        if "mean" in ways:
            from probe.capture.ablation import mean_outputs

            conversations = [(one.image, plan.prompt, one.text) for one in examples if one.text]
            name = f"{len(conversations)} examples of {plan.reference or plan.data}"
            options["reference"] = mean_outputs(subject, conversations, name=name)
        options["others"] = [one.image for one in examples]
    return Engine(subject, ablations, plan.names("effects"), batch=plan.batch, prompt=plan.prompt, **options)


def identity_of(plan: SweepPlan, outline: ModelOutline, engine: SweepEngine) -> dict[str, Any]:
    """Everything that a row of the sweep depends on but its own example, see ``identify``."""
    model = getattr(getattr(engine, "subject", None), "model", None)
    dtype = plan.dtype if model is None else str(model.dtype).removeprefix("torch.")
    kernel = "" if model is None else str(model.config.get_text_config()._attn_implementation)
    kind = type(engine)
    found = identify(plan, outline, dtype=dtype, kernel=kernel, engine=f"{kind.__module__}.{kind.__qualname__}")
    if {"mean", "other image"} & set(plan.names("how")):
        found["reference examples"] = digest_of({"examples": [example_digest(one) for one in _reference(plan)]})
    return found


def _reference(plan: SweepPlan) -> list[Example]:
    from probe.evaluation.sources import read_data

    examples, _ = read_data(plan.reference or plan.data, limit=plan.reference_limit, seed=plan.seed)
    found = list(islice(examples, plan.reference_limit))
    if not found:
        raise InputError(f"reference={plan.reference or plan.data!r} has no example to take means or pictures from.")
    return [replace(one, phrases=()) for one in found]  # their masks are not needed, and may be large


def _device(plan: SweepPlan) -> str | None:
    """Of several processes on one machine each takes a GPU of its own."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    if plan.device in (None, "cuda") and rank.isdecimal() and torch.cuda.is_available():
        return f"cuda:{int(rank) % torch.cuda.device_count()}"
    return plan.device
