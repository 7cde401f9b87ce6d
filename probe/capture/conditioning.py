"""What the keys of a U-Net's cross-attention stand for, and which half of its batch was given them: read from the live pipeline."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from probe.attention import QueryKind
from probe.capture.geometry import Preparation
from probe.capture.hooks import watch_forward, watch_method
from probe.errors import CaptureError, InputError
from probe.families import family_of
from probe.images import image_size, read_image
from probe.text import shorten

__all__ = ["Conditioning", "Guidance", "Keys", "PipelineConditioning", "Tell", "prompt_keys"]

Guidance = Literal["conditional", "unconditional"]

#: The pseudo token that stands for all padding positions together.
PADDING = "[padding]"


@dataclass(frozen=True)
class Keys:
    """What stands behind each key of cross-attention.

    Attributes
    ----------
    kind : what the tokens are.
    text, tokens, token_ids, spans : as in a record.
    positions : for each token its places among the keys; several only for the padding.
    words : numbers of the tokens over which ``token_mean`` is taken.
    """

    kind: QueryKind
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    positions: tuple[tuple[int, ...], ...]
    words: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of keys."""
        return sum(len(one) for one in self.positions)


Tell = Callable[[], None]


class Conditioning(Protocol):
    """What is particular to one kind of diffusion model; the recorder knows the U-Net alone."""

    unet: nn.Module
    family: str
    model: str
    prompt: str
    #: What all noise follows from, where the model itself holds it.
    seed: int | None

    def watch(self, begin: Tell, end: Tell) -> Any:
        """A context in which ``begin()`` is called when a new pass begins, and ``end()`` when a call that made it has ended."""

    def under_way(self) -> bool:
        """True while a call is running that will make more passes through the U-Net."""

    def read(self, hidden: Tensor) -> tuple[int, Keys]:
        """Which row of the batch is to be read, and what its keys are, given the text states that the U-Net is given."""

    def preparation(self, latent: tuple[int, int], image: Any) -> Preparation:
        """How the picture lies in latents of this (rows, cols)."""


class PipelineConditioning:
    """The conditioning of a Stable Diffusion pipeline, followed from the prompt to the U-Net.

    The pipeline says whether it guides and what both halves of the batch are; that they are in the U-Net's batch in that order is
    then checked against the very numbers. The token ids are those that the text encoder was given.
    """

    def __init__(self, pipeline: Any, guidance: Guidance) -> None:
        self.pipeline, self.guidance = pipeline, guidance
        self.unet = pipeline.unet
        self.seed: int | None = None  # its generator is the caller's
        self.family = family_of(pipeline).name
        self.model = str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)
        for part in ("unet", "text_encoder", "tokenizer"):
            if getattr(pipeline, part, None) is None:
                raise CaptureError(
                    f"This {type(pipeline).__name__} has no {part}, so the words of its keys cannot be known."
                )
        self._forget()
        self._in_call = False

    def _forget(self) -> None:
        self.keys: Keys | None = None
        self.prompt = ""
        self._guided = False
        self._halves: list[Tensor] = []
        self._encoded: list[list[int]] = []

    @contextmanager
    def watch(self, begin: Tell, end: Tell) -> Iterator[None]:
        """A context: ``begin()`` when the pipeline is to encode a prompt, before anything is computed, ``end()`` after its call."""
        pipeline, thread = self.pipeline, threading.get_ident()

        def mine(follow: Callable[..., None]) -> Callable[..., None]:
            """What another thread does with the same pipeline is none of this record's."""

            def followed(*seen: Any) -> None:
                if threading.get_ident() == thread:
                    follow(*seen)

            return followed

        def call_begins(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._in_call = True

        def call_ends(output: Any) -> None:
            if self._in_call:
                self._in_call = False
                end()

        def prompt_begins(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            begin()
            self._forget()
            self._take_prompt(args, kwargs)

        def encodes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if module is pipeline.text_encoder and isinstance(ids, Tensor):
                self._encoded += [[int(one) for one in row] for row in ids]

        with ExitStack() as attached:
            # The pipeline's call cannot be shadowed on the object; these are the first and the last thing that it does.
            attached.enter_context(watch_method(pipeline, "check_inputs", before=mine(call_begins)))
            attached.enter_context(watch_method(pipeline, "maybe_free_model_hooks", after=mine(call_ends)))
            attached.enter_context(
                watch_method(pipeline, "encode_prompt", before=mine(prompt_begins), after=mine(self._take_states))
            )
            attached.enter_context(watch_forward([pipeline.text_encoder], before=mine(encodes)))
            yield

    def under_way(self) -> bool:
        """True between the beginning and the end of a call of the pipeline."""
        return self._in_call

    def read(self, hidden: Tensor) -> tuple[int, Keys]:
        """The row of the batch that belongs to the half asked for, after a look at the numbers in every row."""
        if self.keys is None or not self._halves:
            raise CaptureError(
                "The U-Net ran before the pipeline had encoded a prompt inside this context, so the words of its keys cannot be "
                "known; call the pipeline with prompt=..., or pipeline.encode_prompt(...) first."
            )
        same = hidden.shape[0] == len(self._halves) and all(
            torch.equal(found, half[0].to(found)) for found, half in zip(hidden, self._halves, strict=True)
        )
        if not same:
            raise CaptureError(
                f"The U-Net was given text states of shape {tuple(hidden.shape)} that are not the {len(self._halves)} that the "
                "pipeline made of the prompt (a callback, an adapter or another prompt changed them), so its halves are not known."
            )
        row = 0 if self.guidance == "unconditional" else len(self._halves) - 1
        return row, self.keys

    def preparation(self, latent: tuple[int, int], image: Any) -> Preparation:
        """The generated picture is the latents, each enlarged to as many pixels as the decoder makes of it."""
        factor = int(self.pipeline.vae_scale_factor)
        frame = (latent[0] * factor, latent[1] * factor)
        if image is not None and (found := image_size(read_image(image))) != frame:
            raise InputError(
                f"The image given to result() has {found} pixels (height, width), but {frame} were generated; give the generated "
                "picture, or none. For a picture of your own there is noise_and_record()."
            )
        return Preparation("none: the picture was generated", frame, frame, (1.0, 1.0), (0.0, 0.0))

    # Called by hooks ----------------------------------------------------------------------------------------------------

    def _take_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read what the pipeline was asked to encode; refuse what cannot be followed."""
        method = getattr(type(self.pipeline), "encode_prompt")  # noqa: B009 - not the one that is shadowed
        bound = inspect.signature(method).bind(self.pipeline, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        self._guided = bool(given["do_classifier_free_guidance"])
        if self.guidance == "unconditional" and not self._guided:
            raise InputError(
                'guidance="unconditional" was asked for, but the pipeline does not guide (guidance_scale is 1 or less), so there '
                "is no such half; record the conditional one, or raise guidance_scale."
            )
        if given["num_images_per_prompt"] != 1:
            raise InputError(
                f"num_images_per_prompt={given['num_images_per_prompt']}: one image at a time can be recorded; call the pipeline "
                "once for each."
            )
        own, other, states = (
            ("prompt", "prompt_2", "prompt_embeds")
            if self.guidance == "conditional"
            else ("negative_prompt", "negative_prompt_2", "negative_prompt_embeds")
        )
        if given[states] is not None:
            raise InputError(f"{states} was given, and the words behind it cannot be known; give {own} as text.")
        prompt = _only(given[own], own)
        if given.get(other) is not None and _only(given[other], other) != prompt:
            raise InputError(
                f"{other} differs from {own}, so each key stands for two words, one from each text encoder; give one text."
            )
        self._require_states(given, prompt)
        self.prompt = prompt
        self.keys = prompt_keys(self.pipeline, prompt, empty=self.guidance == "unconditional")

    def _require_states(self, given: dict[str, Any], prompt: str) -> None:
        zeros = getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False)
        if self.guidance == "unconditional" and given["negative_prompt"] is None and zeros:
            raise InputError(
                "This pipeline replaces an empty negative prompt by zeros, which are no words; give negative_prompt, or record the "
                "conditional half."
            )

    def _take_states(self, output: Any) -> None:
        """Keep what both halves of the U-Net's batch have to be, negative prompt first, as diffusers puts them together."""
        if output is None or self.keys is None:
            return
        expected = [0] * self.keys.count
        for token, places in zip(self.keys.token_ids, self.keys.positions, strict=True):
            for place in places:
                expected[place] = token if token >= 0 else int(self.pipeline.tokenizer.pad_token_id)
        if expected not in self._encoded:
            raise CaptureError(
                "The text encoder was given other token ids than the pipeline's tokenizer makes of the prompt, so its keys cannot "
                "be matched to words."
            )
        halves = [output[1], output[0]] if self._guided else [output[0]]
        self._halves = [one.detach() for one in halves]


def _only(text: Any, name: str) -> str:
    """The only text of a prompt, which may be given as a list of one."""
    listed = [text] if isinstance(text, str) or text is None else list(text)
    if len(listed) != 1:
        raise InputError(
            f"{name} holds {len(listed)} texts; one at a time can be recorded, call the pipeline once for each."
        )
    return listed[0] or ""


def prompt_keys(pipeline: Any, prompt: str, *, empty: bool = False) -> Keys:
    """What each key stands for when a pipeline is given this prompt: start, words, end, and the padding as one.

    Parameters
    ----------
    empty : True allows a prompt without words.

    Raises
    ------
    InputError
        If the prompt is empty, or longer than the text encoder takes: the pipeline would cut it off without an error.
    """
    if not isinstance(prompt, str):
        raise InputError(f"The prompt must be a text, found a {type(prompt).__name__}: {shorten(repr(prompt), 70)}.")
    # Copies: a tokenizer keeps the padding it was last asked for, and another thread may be using the pipeline's.
    tokenizer, second = copy.deepcopy((pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)))
    length = min(tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)
    for one in filter(None, (tokenizer, second)):
        one.model_max_length = 10**9  # what it would warn of is raised here
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    text = convert(prompt, tokenizer) if convert is not None else prompt
    found = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = [int(one) for one in found["input_ids"]], found["offset_mapping"]
    counts = [len(ids)] if second is None else [len(ids), len(second(text)["input_ids"])]
    if max(counts) > length:
        raise InputError(
            f"The prompt has {max(counts)} tokens with start and end, but the text encoder takes {length}, so its end would be cut "
            "off; shorten it."
        )
    if len(set(counts)) > 1:
        raise CaptureError(
            f"The two tokenizers make {counts[0]} and {counts[1]} tokens of the prompt, so a key has no one word."
        )
    special = set(tokenizer.all_special_ids)
    words = tuple(
        i for i, (one, (start, end)) in enumerate(zip(ids, offsets, strict=True)) if end > start and one not in special
    )
    if not empty and not any(text[slice(*offsets[i])].strip() for i in words):
        raise InputError(f"The prompt {prompt!r} holds no word to look for.")
    names = tokenizer.convert_ids_to_tokens(ids)
    spans = [(int(start), int(end)) if i in words else (0, 0) for i, (start, end) in enumerate(offsets)]
    tokens = [text[slice(*span)] if span[1] > span[0] else name for span, name in zip(spans, names, strict=True)]
    positions: list[tuple[int, ...]] = [(i,) for i in range(len(ids))]
    if len(ids) < length:
        tokens, ids, spans = [*tokens, PADDING], [*ids, -1], [*spans, (0, 0)]
        positions.append(tuple(range(len(positions), length)))
    return Keys("text token", text, tuple(tokens), tuple(ids), tuple(spans), tuple(positions), words)
