"""What an evaluation is told: one frozen plan, checked when it is made, and how the examples are divided among processes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from probe.errors import InputError
from probe.grounding.choices import Combine, PointKind, Reduction

__all__ = ["EvaluationPlan", "Protocol", "ProtocolName", "ReadOut", "Shard", "default_prompt", "reads_expression"]

ProtocolName = Literal["gcg", "pacc", "res", "png"]


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is asked of which model about which data, and how its maps are read.

    Parameters
    ----------
    data
        "lab" (also lab:unseen, lab:plain, lab:occlusion, lab:relations, lab:clutter), or a folder in a published format, with the
        format and the split before it where they are not plain, as in grandf/val:FOLDER, refcoco/testA:FOLDER or png:FOLDER.
    model
        "lab/llava", "lab/difflmm", a hub name or a local folder.
    prompt
        What to ask; by default "Describe the image in detail.", and "Describe the image." of a lab model, which knows no other.
        For res, {expression} in it is what is referred to.
    limit
        At most this many examples; 500 for lab scenes, all of a folder.
    refiner
        What makes a mask of a point: "threshold", "superpixels", lab/sam, or sam: or sam-hq: and a hub name or folder, such as
        sam:facebook/sam-vit-huge.
    combine
        How the maps of a phrase's tokens become one.
    reduction
        All heads of all layers, or the last head but one of each layer, as the first public code did.
    point
        The largest pixel of the map upsampled as in the paper, or the centre of the best patch.
    max_new_tokens
        Where a generated answer is cut off at the latest.
    shard
        i/n takes every n-th example from the i-th on, counted from 0, as one of n runs with one --out. Under torchrun each
        process takes its own.
    seed
        For the bootstrap, and for which lab scenes.
    dtype
        Number type of the model, such as "float32" or "bfloat16"; "auto" takes the checkpoint's own.
    device
        Such as "cuda" or "cpu", for the refiner too; by default a GPU if there is one.

    Raises
    ------
    InputError
        If a value is impossible.
    """

    data: str = "lab"
    model: str = "lab/llava"
    prompt: str | None = None
    limit: int | None = None
    refiner: str = "threshold"
    combine: Combine = "mean"
    reduction: Reduction = "all-heads"
    point: PointKind = "bicubic"
    max_new_tokens: int = 256
    shard: str | None = None
    seed: int = 0
    dtype: str = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("--limit", self.limit), ("--max-new-tokens", self.max_new_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{option} must be 1 or more, found {value}.")
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, found {self.seed}.")
        Shard.of(self.shard)


@dataclass(frozen=True)
class Protocol:
    """A protocol with its own options.

    Attributes
    ----------
    name : "gcg", "pacc", "res" or "png".
    chunker : for gcg and pacc: who finds noun phrases, see ``noun_phrases``.
    similarity : for gcg, and for pacc by similar words: what says how alike words are, see ``find_encoder``.
    category : for pacc: a phrase counts for the category that its last words name ("named"), or for the most similar of the
        picture's ("similar", as in the paper's code).
    expressions : for res: "answer" asks for a description and reads the token after its first "is", "are" or "be"; "expression"
        lets the model read the expression itself; "auto" is the second for lab models, which can only describe scenes.
    """

    name: ProtocolName
    chunker: str = "auto"
    similarity: str = "words"
    category: Literal["named", "similar"] = "named"
    expressions: Literal["auto", "answer", "expression"] = "auto"


@dataclass(frozen=True)
class ReadOut:
    """How a mask is read from maps; the fields are options of ``attend_and_segment``."""

    combine: Combine
    reduction: Reduction
    point: PointKind
    refiner: str


@dataclass(frozen=True)
class Shard:
    """Which of the examples are this run's: those whose number is ``number`` modulo ``count``.

    ``together`` says that the others run now, under torchrun.
    """

    number: int = 0
    count: int = 1
    together: bool = False

    @classmethod
    def of(cls, text: str | None) -> Shard:
        """The shard "i/n"; without one, that of this process under torchrun.

        Raises
        ------
        InputError
            If it is no shard, or there are two ways to divide the examples.
        """
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if text is None:
            return cls(int(os.environ.get("RANK", "0")), processes, processes > 1)
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not found or not int(found[1]) < int(found[2]):
            raise InputError(
                f"--shard takes i/n with i from 0 to n - 1, such as 0/4 to 3/4 for four runs, found {text!r}."
            )
        if processes > 1:
            raise InputError(
                f"--shard {text} and torchrun's {processes} processes both divide the examples; leave one out."
            )
        return cls(int(found[1]), int(found[2]))

    def has(self, index: int) -> bool:
        """True if the example of this number is its own."""
        return index % self.count == self.number


def default_prompt(protocol: Protocol, plan: EvaluationPlan) -> str:
    """What is asked where nothing else is said: as in the paper, but the one question that lab models were trained on."""
    if plan.prompt is not None:
        return plan.prompt
    if protocol.name == "res" and not reads_expression(protocol, plan):
        return 'Describe the "{expression}" in the image.'
    return "Describe the image." if plan.model.startswith("lab/") else "Describe the image in detail."


def reads_expression(protocol: Protocol, plan: EvaluationPlan) -> bool:
    """For res: True if the model reads the expression itself and answers nothing."""
    chosen = protocol.expressions
    return plan.model.startswith("lab/") if chosen == "auto" else chosen == "expression"
