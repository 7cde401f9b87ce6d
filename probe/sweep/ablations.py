"""One cell of a sweep: what is taken away, and how a pass is run without it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from probe.capture.ablation import WAYS, ablate, check_heads, without_heads
from probe.capture.edges import Edge, check_edge_name, cut_edges, edge_positions, without_edges
from probe.capture.references import HeadMeans, HeadOutputs
from probe.capture.taps import AttentionCall
from probe.errors import InputError, did_you_mean
from probe.models import Subject

__all__ = ["CUT", "KINDS", "Ablation", "Cut", "check_ablations"]

#: What can be taken away: one head, every head of a layer, or what some positions see of others in a layer.
KINDS = ("head", "layer", "edge")

#: The ``how`` of every edge.
CUT = "cut"


@dataclass(frozen=True)
class Ablation:
    """What is taken away from a model in one cell of a sweep.

    >>> Ablation("head", 3, 1), Ablation("layer", 2, how="mean"), Ablation("edge", 3, edge="answer to image", how="cut")

    Attributes
    ----------
    kind : one of ``KINDS``.
    layer : its number.
    head : number of the head; ``None`` for a layer, and for an edge of all heads of the layer.
    edge : for an edge alone: one of ``probe.capture.edges.EDGES``.
    how : what stands in the place of heads, see ``probe.ablate``; "cut" for an edge.
    """

    kind: Literal["head", "layer", "edge"]
    layer: int
    head: int | None = None
    edge: str = ""
    how: str = "zero"

    def __str__(self) -> str:
        head = "" if self.head is None else f", head {self.head}"
        return f"{self.kind} in layer {self.layer}{head} ({self.edge or self.how})"

    @property
    def of_answer_alone(self) -> bool:
        """Whether it concerns no row before those that predict the answer."""
        return self.kind == "edge" and self.edge.startswith("answer to ")

    def silenced(self, count: int) -> tuple[int, ...]:
        """Those of the layer's ``count`` heads whose look at the image no longer counts for the answer."""
        blind = self.edge in ("answer to image", "text to image")
        if self.kind == "edge" and not blind:
            return ()
        return tuple(range(count)) if self.head is None else (self.head,)


@dataclass(frozen=True, eq=False)
class Cut:
    """An ablation in one conversation: with the positions of its edge, and what stands in the place of its heads."""

    ablation: Ablation
    heads: tuple[int, ...]
    edge: Edge | None
    reference: HeadMeans | HeadOutputs | None

    @classmethod
    def of(
        cls,
        ablation: Ablation,
        *,
        heads: int,
        ids: Sequence[int],
        image_token: int,
        answer_start: int,
        references: dict[str, HeadMeans | HeadOutputs],
    ) -> Cut:
        """The cut of these token ids, in a model of so many ``heads`` a layer; ``references`` by ``how``.

        Raises
        ------
        InputError
            If there is no position at one end of an edge.
        """
        named = tuple(range(heads)) if ablation.head is None else (ablation.head,)
        if ablation.kind != "edge":
            return cls(ablation, named, None, references.get(ablation.how))
        queries, keys = edge_positions(ablation.edge, ids, image_token=image_token, answer_start=answer_start)
        if not (queries and keys):
            raise InputError(f"There is nothing at one end of the edge {ablation.edge!r} in this conversation.")
        return cls(ablation, named, Edge(ablation.layer, queries, keys, named), None)

    def context(self, subject: Subject) -> AbstractContextManager[None]:
        """The context in which whole passes are without it."""
        if self.edge is not None:
            return cut_edges(subject, [self.edge])
        how: Any = self.ablation.how
        heads = [(self.ablation.layer, head) for head in self.heads]
        return ablate(subject, heads=heads, how=how, reference=self.reference)

    def apply(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """What stands in the place of the layer's attention output, as in ``context``."""
        if self.edge is not None:
            return without_edges(module, call, [self.edge])
        how: Any = self.ablation.how
        return without_heads(
            module, call, list(self.heads), how=how, reference=self.reference, layer=self.ablation.layer
        )


def check_ablations(subject: Subject, ablations: Sequence[Ablation]) -> tuple[Ablation, ...]:
    """The ablations, after a look at every one of them.

    Raises
    ------
    InputError
        If there is none, one is named twice, or asks for what the model or its kind has not.
    """
    listed = tuple(ablations)
    if not listed:
        raise InputError("There is nothing to take away: give at least one Ablation.")
    for one in listed:
        if not isinstance(one, Ablation):
            raise InputError(f"ablations must be Ablation objects, found a {type(one).__name__}.")
        _check(subject, one)
    twice = (
        [one for number, one in enumerate(listed) if one in listed[:number]] if len(set(listed)) < len(listed) else []
    )
    if twice:
        raise InputError(f"The {twice[0]} is named twice; name each ablation once.")
    return listed


def _check(subject: Subject, one: Ablation) -> None:
    if one.kind not in KINDS:
        hint = did_you_mean(str(one.kind), KINDS)
        raise InputError(f"There is no ablation of kind {one.kind!r}; there are {', '.join(KINDS)}.{hint}")
    if one.kind != "edge" and one.how not in WAYS:
        raise InputError(
            f"A {one.kind} is replaced by one of {', '.join(WAYS)}; found how={one.how!r}.{did_you_mean(str(one.how), WAYS)}"
        )
    if one.kind == "edge":
        check_edge_name(one.edge)
        if one.how != CUT:
            raise InputError(f"An edge is always cut: give how={CUT!r}, found {one.how!r}.")
    elif one.edge:
        raise InputError(f"edge={one.edge!r} belongs to an ablation of kind 'edge', found kind {one.kind!r}.")
    if (one.kind == "head") == (one.head is None) and one.kind != "edge":
        raise InputError(f"An ablation of kind {one.kind!r} {'needs' if one.kind == 'head' else 'takes no'} head.")
    check_heads(subject, [(one.layer, 0 if one.head is None else one.head)])
