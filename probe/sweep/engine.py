"""The effects of many ablations on one image after another, at a fraction of the cost of a pass for each."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from probe.capture.pictures import image_token_id
from probe.capture.references import HeadMeans, HeadOutputs, head_outputs, require_language_model
from probe.capture.resuming import why_whole
from probe.errors import CertificateError, InputError, did_you_mean
from probe.lab.grammar import COLOURS, SIZES
from probe.lab.shapes import SHAPES
from probe.models import Subject
from probe.runs import threads_for
from probe.sweep.ablations import Ablation, Cut, check_ablations
from probe.sweep.conversations import Conversation, Reading, read_conversation

if TYPE_CHECKING:
    import pandas as pd

    from probe.evaluation.examples import Example

__all__ = ["ATTRIBUTES", "EFFECTS", "TOLERANCES", "Engine"]

#: What is measured of each phrase, under the name of its column. ``log_probability``: natural, summed over the phrase's tokens,
#: each given everything before it in the caption. ``caption_log_probability``: that of the whole caption with its end token.
#: ``exact_match``: 1 if at every token of the phrase's attribute words (``ATTRIBUTES``) the model's first choice is that very
#: token, else 0; NaN where the phrase has no such word. ``pointing``, ``auroc``: of the mean attention map of all heads but those
#: taken away, minus its mean over the caption (Eq. 3), against the phrase's mask; an edge takes a head's look away only if it goes
#: from the answer to the image.
EFFECTS = ("log_probability", "caption_log_probability", "exact_match", "pointing", "auroc")

#: Words that name an attribute: those of the lab's scenes.
ATTRIBUTES = frozenset((*COLOURS, *SIZES, *SHAPES))

#: Largest difference of a token's log-probability between a resumed and a whole pass that is rounding, by the model's number type.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2.5e-1}

# Effects that need where the heads look, and so every layer's attention in every pass.
_OF_MAPS = ("pointing", "auroc")


class Engine:
    """Called with examples, a table of what each ablation changes for each of their phrases.

    >>> engine = Engine(subject, [Ablation("head", layer, head) for layer in range(8) for head in range(8)])
    >>> engine(examples)

    Columns: example, image, phrase, start, end (its characters in the example's text), kind, layer, head, edge, how, the effects,
    ``log_probability_change`` and ``caption_log_probability_change`` to the unablated pass, and ``resumed``. The unablated pass of
    each phrase comes first, with kind "none". An example without phrases gives no row. What an example gives depends on nothing
    but itself: not on the other examples, their order, or the batch, beyond rounding.

    Each image is encoded once and read whole once. Every ablation then begins at the layer that it touches, with others of that
    layer in one batch; one that concerns the answer's rows alone runs these rows against the keys and values of the others. The
    results are held against whole passes (``verify``). A model that cannot be entered in the middle is read whole for every
    ablation: ``resumed`` is then False, and ``notes`` says why.

    Attributes
    ----------
    batch : at most so many ablations at a time; may be set to less between calls, where memory is short.
    notes : what the results should be read with, one line each.
    max_difference : largest difference of a token's log-probability that was found between a resumed and a whole pass.

    Parameters
    ----------
    effects : which of ``EFFECTS``; "pointing" and "auroc" cost the most.
    prompt : what the captions answer.
    reference : the ``HeadMeans`` of ``mean_outputs``, for ablations with how="mean".
    others : pictures for how="other image": each example takes the same one of them whenever it is read, by its name.
    attributes : lower-case words for "exact_match".
    verify : "sample" holds one ablation of each layer and kind against a whole pass at the first example, and one ablation at each
        later example; "all" does so for every one, "off" for none.

    Raises
    ------
    InputError
        If an ablation, effect or option does not fit the model or each other.
    """

    def __init__(
        self,
        subject: Subject,
        ablations: Sequence[Ablation],
        effects: Sequence[str] = EFFECTS,
        *,
        batch: int = 16,
        prompt: str = "Describe the image.",
        reference: HeadMeans | None = None,
        others: Sequence[Any] = (),
        attributes: Collection[str] = ATTRIBUTES,
        verify: Literal["sample", "all", "off"] = "sample",
    ) -> None:
        require_language_model(subject, "Engine")
        self.subject, self.ablations = subject, check_ablations(subject, ablations)
        self.effects, self.verify = _checked_effects(effects), verify
        if verify not in ("sample", "all", "off"):
            raise InputError(f"verify must be 'sample', 'all' or 'off', found {verify!r}.")
        if batch < 1:
            raise InputError(f"batch must be 1 or more ablations, found {batch}.")
        ways = {one.how for one in self.ablations}
        if "mean" in ways and not isinstance(reference, HeadMeans):
            raise InputError("how='mean' needs reference: the HeadMeans of mean_outputs().")
        if "other image" in ways and not others:
            raise InputError("how='other image' needs others: pictures to take the heads' outputs from.")
        self.batch, self.prompt, self.reference = batch, prompt, reference
        self.others, self.attributes = list(others), frozenset(attributes)
        self.max_difference = 0.0
        reason = why_whole(subject)
        self.notes = [f"every ablation was a whole pass: {reason}"] if reason else []
        self._verified: set[tuple[Any, ...]] = set()

    def __call__(self, examples: Iterable[Example]) -> pd.DataFrame:
        """The table of these examples.

        Raises
        ------
        InputError
            If an example cannot be read, or its text does not survive the tokenizer.
        CertificateError
            If a resumed pass differs from a whole one.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        with threads_for(self.subject.model):
            for example in examples:
                if example.phrases:
                    rows += self._rows(example)
        table = pd.DataFrame(rows, columns=self.columns)
        return table.astype({"layer": "Int64", "head": "Int64", "resumed": bool})

    @property
    def columns(self) -> list[str]:
        """The table's columns, in order."""
        found = ["example", "image", "phrase", "start", "end", "kind", "layer", "head", "edge", "how", "resumed"]
        for effect in self.effects:
            found += [effect, f"{effect}_change"] if "log_probability" in effect else [effect]
        return found

    def _rows(self, example: Example) -> list[dict[str, Any]]:
        maps = any(one in self.effects for one in _OF_MAPS)
        conversation = read_conversation(self.subject, example, self.prompt, attributes=self.attributes, maps=maps)
        clean = conversation.values(conversation.answered)
        readings, resumed = self._readings(conversation)
        where = [
            {
                "example": example.name,
                "image": _image_name(example),
                "phrase": one.text,
                "start": one.start,
                "end": one.end,
            }
            for one in example.phrases
        ]
        nothing: dict[str, Any] = {"kind": "none", "layer": None, "head": None, "edge": "", "how": "", "resumed": False}
        rows = [one | nothing | self._values(clean, clean, place) for place, one in enumerate(where)]
        for ablation, reading in zip(self.ablations, readings, strict=True):
            values = conversation.values(reading)
            what = {name: getattr(ablation, name) for name in ("kind", "layer", "head", "edge", "how")}
            what["resumed"] = resumed
            rows += [one | what | self._values(values, clean, place) for place, one in enumerate(where)]
        return rows

    def _values(self, values: dict[str, np.ndarray], clean: dict[str, np.ndarray], place: int) -> dict[str, float]:
        found = {effect: float(values[effect][place]) for effect in self.effects}
        changes = {f"{one}_change": found[one] - float(clean[one][place]) for one in found if "log_probability" in one}
        return found | changes

    def _readings(self, conversation: Conversation) -> tuple[list[Reading], bool]:
        """What every ablation gave, in order, and whether these passes began in the middle."""
        cuts = self._cuts(conversation)
        if conversation.reason:
            note = f"every ablation was a whole pass: {conversation.reason}"
            if note not in self.notes:
                self.notes.append(note)
            return [conversation.whole(cut) for cut in cuts], False
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for number, cut in enumerate(cuts):
            groups[cut.ablation.layer, cut.ablation.of_answer_alone].append(number)
        found: dict[int, Reading] = {}
        for numbers in groups.values():
            for begin in range(0, len(numbers), self.batch):
                some = numbers[begin : begin + self.batch]
                found |= zip(some, conversation.resumed([cuts[number] for number in some]), strict=True)
        for number in self._to_verify(conversation):
            self._compare(cuts[number], found[number], conversation.whole(cuts[number]), conversation.example.name)
        return [found[number] for number in range(len(cuts))], True

    def _cuts(self, conversation: Conversation) -> list[Cut]:
        references: dict[str, HeadMeans | HeadOutputs] = {}
        if self.reference is not None:
            references["mean"] = self.reference
        if any(one.how == "other image" for one in self.ablations):
            references["other image"] = self._other(conversation)
        options: dict[str, Any] = {
            "heads": self.subject.model.config.get_text_config().num_attention_heads, "ids": conversation.ids,
            "image_token": image_token_id(self.subject.model), "answer_start": conversation.start, "references": references,
        }  # fmt: skip
        return [Cut.of(one, **options) for one in self.ablations]

    def _other(self, conversation: Conversation) -> HeadOutputs:
        """What the heads give out for another picture, which depends on the example's name alone."""
        example = conversation.example
        left = [number for number, one in enumerate(self.others) if one is not example.image and one != example.image]
        if not left:
            raise InputError(f"{example.name}: all pictures of others are the example's own.")
        number = left[zlib.crc32(example.name.encode()) % len(left)]
        return head_outputs(
            self.subject, self.others[number], self.prompt, example.text, name=f"picture {number} of others"
        )

    def _to_verify(self, conversation: Conversation) -> list[int]:
        """Which ablations are run whole as well."""
        count = len(self.ablations)
        if self.verify != "sample":
            return list(range(count)) if self.verify == "all" else []
        first = []
        for number, one in enumerate(self.ablations):
            kind = (one.kind, one.layer, one.edge, one.how)
            if kind not in self._verified:
                self._verified.add(kind)
                first.append(number)
        return first or [zlib.crc32(conversation.example.name.encode()) % count]

    def _compare(self, cut: Cut, resumed: Reading, whole: Reading, name: str) -> None:
        tolerance = TOLERANCES.get(self.subject.model.dtype, 0.0)
        found = float((resumed.chances - whole.chances).abs().max())
        looked = 0.0
        if resumed.maps is not None and whole.maps is not None:
            looked = float((resumed.maps - whole.maps).abs().max())
        self.max_difference = max(self.max_difference, found)
        # Asked so that a NaN, which compares false with everything, is never right.
        if not (found <= tolerance and looked <= tolerance):
            raise CertificateError(
                f"{name}: the pass that was resumed at layer {cut.ablation.layer} ({cut.ablation}) differs from a whole one by "
                f"{max(found, looked):.1e}, allowed {tolerance:.0e} for {self.subject.model.dtype}. The model does something "
                "between its layers that is not known here; please report it with the model's name."
            )


def _checked_effects(effects: Sequence[str]) -> tuple[str, ...]:
    listed = tuple(dict.fromkeys([effects] if isinstance(effects, str) else effects))
    for one in listed:
        if one not in EFFECTS:
            raise InputError(f"No effect {one!r}; there are {', '.join(EFFECTS)}.{did_you_mean(str(one), EFFECTS)}")
    if not listed:
        raise InputError(f"effects is empty; name at least one of {', '.join(EFFECTS)}.")
    return listed


def _image_name(example: Example) -> str:
    return getattr(example.image, "name", "") or example.name
