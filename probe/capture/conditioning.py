"""What a denoiser's words stand for, and which half of its batch, or which of its passes, had them: read from the pipeline."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from probe.capture.denoisers import Denoiser, denoiser_of
from probe.capture.geometry import Preparation
from probe.capture.hooks import watch_forward, watch_method
from probe.capture.prompts import PADDING, Keys, prompt_keys, tokenizer_of
from probe.errors import CaptureError, InputError
from probe.families import family_of
from probe.families.stable_diffusion import STABLE_DIFFUSION
from probe.images import image_size, read_image

__all__ = ["PADDING", "Conditioning", "Guidance", "Keys", "PipelineConditioning", "Tell", "prompt_keys"]

Guidance = Literal["conditional", "unconditional"]

Tell = Callable[[], None]


class Conditioning(Protocol):
    """What is particular to one kind of diffusion model; the recorder knows what denoises alone."""

    denoiser: Denoiser
    family: str
    model: str
    prompt: str
    #: What all noise follows from, where the model itself holds it.
    seed: int | None

    def watch(self, begin: Tell, end: Tell) -> Any:
        """A context in which ``begin()`` is called when a new pass begins, and ``end()`` when a call that made it has ended."""

    def under_way(self) -> bool:
        """True while a call is running that will make more passes through the denoiser."""

    def read(self, hidden: Tensor) -> tuple[int, Keys] | None:
        """Which row of the batch is to be read, and what its keys are, given the text states that the denoiser is given.

        ``None`` if this pass belongs to the half that was not asked for.
        """

    def preparation(self, cells: tuple[int, int], image: Any) -> Preparation:
        """How the picture lies in this many (rows, cols) of the denoiser's finest patches."""


class PipelineConditioning:
    """The conditioning of a diffusion pipeline, followed from the prompt to what denoises.

    The pipeline says whether it guides and what both halves are; that they are in the denoiser's batch in that order, or come in
    passes of their own (Flux), is then checked against the very numbers. The token ids are those that the text encoders were given.
    """

    def __init__(self, pipeline: Any, guidance: Guidance) -> None:
        self.pipeline, self.guidance = pipeline, guidance
        family = family_of(pipeline)
        self.groups = family.text_encoders
        denoiser = "unet" if family is STABLE_DIFFUSION else "transformer"
        # The first is always needed; T5 may be left out of Stable Diffusion 3.
        first = self.groups[0][0]
        for part in (denoiser, first, first.replace("text_encoder", "tokenizer")):
            if getattr(pipeline, part, None) is None:
                raise CaptureError(
                    f"This {type(pipeline).__name__} has no {part}, so the words of its keys cannot be known."
                )
        self.denoiser = denoiser_of(getattr(pipeline, denoiser))
        self.seed: int | None = None  # its generator is the caller's
        self.family = family.name
        self.model = str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)
        # Flux encodes both halves one after the other and gives each a pass of its own.
        names = inspect.signature(type(pipeline).encode_prompt).parameters
        self._separate = "do_classifier_free_guidance" not in names
        self._forget()
        self._in_call = False
        self._call: dict[str, Any] = {}

    def _forget(self) -> None:
        self.keys: Keys | None = None
        self.prompt = ""
        self._guided = False
        self._halves: list[Tensor] = []
        self._of_half: dict[Guidance, Tensor] = {}
        self._now: Guidance = "conditional"
        self._encoded: dict[str, list[list[int]]] = {}

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
            self._call = _bound(pipeline, "check_inputs", args, kwargs)
            self._of_half = {}

        def call_ends(output: Any) -> None:
            if self._in_call:
                self._in_call = False
                end()

        def prompt_begins(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._separate and self._in_call and "conditional" in self._of_half:
                self._take_negative_prompt(args, kwargs)
                return
            begin()
            self._forget()
            self._take_prompt(_bound(pipeline, "encode_prompt", args, kwargs))

        encoders: dict[nn.Module, str] = {
            getattr(pipeline, group[0]): group[0]
            for group in self.groups
            if getattr(pipeline, group[0], None) is not None
        }

        def encodes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if module in encoders and isinstance(ids, Tensor):
                rows = [[int(one) for one in row] for row in ids]
                self._encoded.setdefault(encoders[module], []).extend(rows)

        with ExitStack() as attached:
            # The pipeline's call cannot be shadowed on the object; these are the first and the last thing that it does.
            attached.enter_context(watch_method(pipeline, "check_inputs", before=mine(call_begins)))
            attached.enter_context(watch_method(pipeline, "maybe_free_model_hooks", after=mine(call_ends)))
            attached.enter_context(
                watch_method(pipeline, "encode_prompt", before=mine(prompt_begins), after=mine(self._take_states))
            )
            if hasattr(getattr(pipeline, "image_processor", None), "classify_height_width_bin"):
                attached.enter_context(_unbinned(pipeline.image_processor, mine))
            attached.enter_context(watch_forward(encoders, before=mine(encodes)))
            yield

    def under_way(self) -> bool:
        """True between the beginning and the end of a call of the pipeline."""
        return self._in_call

    def read(self, hidden: Tensor) -> tuple[int, Keys] | None:
        """The row of the batch that belongs to the half asked for, after a look at the numbers in every row."""
        if self._separate and self._of_half:
            return self._read_separate(hidden)
        if self.keys is None or not self._halves:
            raise CaptureError(
                "The denoiser ran before the pipeline had encoded a prompt inside this context, so the words of its keys cannot be "
                "known; call the pipeline with prompt=..., or pipeline.encode_prompt(...) first."
            )
        if not (hidden.shape[0] == len(self._halves) and all(map(_same, hidden, (one[0] for one in self._halves)))):
            raise self._unknown_states(hidden, f"the {len(self._halves)}")
        row = 0 if self.guidance == "unconditional" else len(self._halves) - 1
        return row, self.keys

    def _read_separate(self, hidden: Tensor) -> tuple[int, Keys] | None:
        """The only row, if it is of the half asked for: each half has passes of its own."""
        if self.guidance not in self._of_half or self.keys is None:
            raise self._no_such_half("true_cfg_scale is 1 or less, or there is no negative_prompt")
        if hidden.shape[0] != 1:
            raise self._unknown_states(hidden, "those")
        found = [half for half, states in self._of_half.items() if _same(hidden[0], states)]
        if len(found) > 1:
            raise InputError(
                "negative_prompt is the same text as prompt, so the passes of both halves cannot be told apart; give another one, "
                "or leave it out."
            )
        if not found:
            raise self._unknown_states(hidden, "those")
        return (0, self.keys) if found == [self.guidance] else None

    def _unknown_states(self, hidden: Tensor, which: str) -> CaptureError:
        return CaptureError(
            f"The denoiser was given text states of shape {tuple(hidden.shape)} that are not {which} that the pipeline made of the "
            "prompt (a callback, an adapter or another prompt changed them), so its halves are not known."
        )

    def _no_such_half(self, why: str) -> InputError:
        return InputError(
            f'guidance="unconditional" was asked for, but the pipeline does not guide ({why}), so there is no such half; record '
            "the conditional one, or raise the scale."
        )

    def preparation(self, cells: tuple[int, int], image: Any) -> Preparation:
        """The generated picture is the latents, each enlarged to as many pixels as the decoder makes of it."""
        factor = int(self.pipeline.vae_scale_factor) * self.denoiser.side
        frame = (cells[0] * factor, cells[1] * factor)
        if image is not None and (found := image_size(read_image(image))) != frame:
            raise InputError(
                f"The image given to result() has {found} pixels (height, width), but {frame} were generated; give the generated "
                "picture, or none. For a picture of your own there is noise_and_record()."
            )
        return Preparation("none: the picture was generated", frame, frame, (1.0, 1.0), (0.0, 0.0))

    # Called by hooks ----------------------------------------------------------------------------------------------------

    def _take_prompt(self, given: dict[str, Any]) -> None:
        """Read what the pipeline was asked to encode; refuse what cannot be followed."""
        self._guided = bool(given.get("do_classifier_free_guidance", False))
        if self.guidance == "unconditional" and not self._guided and not self._separate:
            raise self._no_such_half("guidance_scale is 1 or less")
        if given["num_images_per_prompt"] != 1:
            raise InputError(
                f"num_images_per_prompt={given['num_images_per_prompt']}: one image at a time can be recorded; call the pipeline "
                "once for each."
            )
        own = "prompt" if self.guidance == "conditional" or self._separate else "negative_prompt"
        if given[f"{own}_embeds"] is not None:
            raise InputError(f"{own}_embeds was given, and the words behind it cannot be known; give {own} as text.")
        prompt = _only(given[own], own)
        for other in (f"{own}_2", f"{own}_3"):
            if given.get(other) is not None and _only(given[other], other) != prompt:
                raise InputError(
                    f"{other} differs from {own}, so each key stands for two words, one from each text encoder; give one text."
                )
        self._require_states(given, prompt)
        if self.guidance == "conditional" or not self._separate:
            self._set_keys(prompt, given)

    def _take_negative_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The second text that is encoded in one call: the pipeline must have been given it as negative."""
        given = _bound(self.pipeline, "encode_prompt", args, kwargs)
        if given["prompt"] != self._call.get("negative_prompt"):
            raise CaptureError(
                "The pipeline encoded a second text that is not its negative_prompt, so the passes of both halves cannot be told "
                "apart."
            )
        self._now = "unconditional"
        if self.guidance == "unconditional":
            if given["prompt"] is None:
                raise InputError(
                    "negative_prompt_embeds was given, and the words behind it cannot be known; give a text."
                )
            self._encoded = {}
            self._set_keys(_only(given["prompt"], "negative_prompt"), given)

    def _set_keys(self, prompt: str, given: dict[str, Any]) -> None:
        self.prompt = prompt
        self.keys = prompt_keys(
            self.pipeline,
            prompt,
            empty=self.guidance == "unconditional",
            length=given.get("max_sequence_length"),
            clean=bool(given.get("clean_caption", False)),
        )

    def _require_states(self, given: dict[str, Any], prompt: str) -> None:
        zeros = getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False)
        if self.guidance == "unconditional" and given.get("negative_prompt") is None and zeros:
            raise InputError(
                "This pipeline replaces an empty negative prompt by zeros, which are no words; give negative_prompt, or record the "
                "conditional half."
            )

    def _take_states(self, output: Any) -> None:
        """Keep what both halves have to be, negative prompt first in a batch, as diffusers puts them together."""
        if output is None:
            return
        if self._separate:
            self._of_half[self._now] = output[0].detach()[0]
            if self._now == self.guidance:
                self._require_ids()
            return
        if self.keys is None:
            return
        self._require_ids()
        # The states of the prompt come first in what is given out; the negative ones second, or third after a mask.
        tensors = [one for one in output if isinstance(one, Tensor) and one.ndim == 3]
        halves = [tensors[1], tensors[0]] if self._guided else [tensors[0]]
        self._halves = [one.detach() for one in halves]

    def _require_ids(self) -> None:
        """Nothing, if each text encoder was given the very token ids that the keys stand for."""
        keys = self.keys
        assert keys is not None  # for the type checker: set before the prompt was encoded
        expected = [0] * keys.count
        owner = [group[0] for group, count in zip(self.groups, keys.groups, strict=True) for _ in range(count)]
        for token, places in zip(keys.token_ids, keys.positions, strict=True):
            for place in places:
                tokenizer = tokenizer_of(self.pipeline, owner[place])
                expected[place] = token if token >= 0 else int(getattr(tokenizer, "pad_token_id", 0))
        for group in dict.fromkeys(owner):
            ids = [one for one, which in zip(expected, owner, strict=True) if which == group]
            if getattr(self.pipeline, group, None) is not None and ids not in self._encoded.get(group, []):
                raise CaptureError(
                    "The text encoder was given other token ids than the pipeline's tokenizer makes of the prompt, so its keys "
                    "cannot be matched to words."
                )


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(found, expected.to(found))


def _bound(pipeline: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a method of the pipeline was given, by name, its defaults included."""
    bound = inspect.signature(getattr(type(pipeline), name)).bind(pipeline, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


@contextmanager
def _unbinned(processor: Any, mine: Callable[[Callable[..., None]], Callable[..., None]]) -> Iterator[None]:
    """Refuses a PixArt that makes a picture of another size than was asked for and resizes it: its patches would lie elsewhere."""
    asked: list[tuple[int, int]] = []

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("height", "width"), args, strict=False)) | kwargs
        asked.append((int(given["height"]), int(given["width"])))

    def after(output: Any) -> None:
        wanted = asked.pop()
        if output is not None and tuple(map(int, output)) != wanted:
            raise InputError(
                f"The pipeline would make a picture of {tuple(map(int, output))} pixels (height, width) and resize it to {wanted}, "
                "so its patches would lie elsewhere than in the picture that it gives out; ask for that height and width, or pass "
                "use_resolution_binning=False."
            )

    with watch_method(processor, "classify_height_width_bin", before=mine(before), after=mine(after)):
        yield


def _only(text: Any, name: str) -> str:
    """The only text of a prompt, which may be given as a list of one."""
    listed = [text] if isinstance(text, str) or text is None else list(text)
    if len(listed) != 1:
        raise InputError(
            f"{name} holds {len(listed)} texts; one at a time can be recorded, call the pipeline once for each."
        )
    return listed[0] or ""
