"""What ``generate`` is asked to do: which decoding can be followed token by token, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from probe.capture.hooks import watch_method
from probe.errors import CaptureError

__all__ = ["end_tokens", "generation_arguments", "generation_settings", "refuse_other_loops", "require_followed"]

# What ``generate`` may be given by position.
_POSITIONAL = (
    "inputs",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
)

_CURE = "record greedy decoding or sampling, or generate first and read the answer that was found: probe.run(..., answer=...)."
# Each of these replaces the plain loop, in which every sequence is fed its own next token and nothing else.
_LOOPS = {
    "assistant_model": "makes the model read tokens that it may drop again",
    "prompt_lookup_num_tokens": "makes the model read tokens that it may drop again",
    "assistant_early_exit": "makes the model read tokens that it may drop again",
    "use_mtp": "makes the model read tokens that it may drop again",
    "penalty_alpha": "(contrastive search) makes the model read several candidates of each token",
    "dola_layers": "chooses tokens in a loop of its own",
    "custom_generate": "chooses tokens in a loop of its own",
    "constraints": "searches beams, which change their places in the batch",
    "force_words_ids": "searches beams, which change their places in the batch",
}


def generation_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What ``generate`` was given, by name."""
    return dict(zip(_POSITIONAL, args, strict=False)) | kwargs


def generation_settings(given: dict[str, Any], model: Any) -> Callable[[str], Any]:
    """From the name of a setting to its value for this call of ``generate``, ``None`` where it is not set.

    An argument goes before the generation configuration that was given, and that before the model's own, which fills in whatever
    the other leaves ``None``.
    """

    def value(name: str) -> Any:
        if name in given:
            return given[name]
        found = getattr(given.get("generation_config"), name, None)
        return getattr(model.generation_config, name, None) if found is None else found

    return value


def require_followed(asked: Callable[[str], Any], model: Any, *, sequences: int) -> None:
    """Nothing, if each sequence that ``generate`` makes is fed to the model token by token, in a row of its own.

    Parameters
    ----------
    asked : from the name of a setting to its value, as ``generation_settings`` gives it.
    sequences : how many of them there will be.

    Raises
    ------
    CaptureError
        If it searches beams, lets the model read tokens that it may drop again, runs it on something else beside, keeps no keys, or
        ends single sequences in a way that leaves no end token.
    """
    beams = asked("num_beams") or 1
    if beams > 1:
        raise CaptureError(
            f"num_beams={beams} cannot be followed: beams change their places in the batch while they are searched; {_CURE}"
        )
    for name, reason in _LOOPS.items():
        if asked(name):
            raise CaptureError(f"{name} {reason}, which cannot be followed; {_CURE}")
    if (asked("guidance_scale") or 1) != 1:
        raise CaptureError(
            f"guidance_scale={asked('guidance_scale')} runs the model a second time for every token, on another prompt, so the "
            f"two cannot be told apart; {_CURE}"
        )
    if asked("use_cache") is False:
        raise CaptureError(
            "use_cache=False makes the model read the whole text again for every token, so the same row comes many times; keep "
            "use_cache on in generate."
        )
    if asked("cache_implementation") == "paged":
        raise CaptureError(
            "A paged cache packs sequences into one, so columns cannot be matched to patches; leave it out."
        )
    # Releases that do not encode the picture beforehand feed it to the model with the wrong part of the prompt.
    if asked("prefill_chunk_size") and not hasattr(model, "_prepare_multimodal_encoder_kwargs_for_generation"):
        raise CaptureError(
            "prefill_chunk_size splits a prompt without its pictures in this release of transformers, so the model does not see "
            "them as they are; leave it out, or update transformers."
        )
    for name in ("stop_strings", "stopping_criteria"):
        if sequences > 1 and asked(name):
            raise CaptureError(
                f"{name} ends single sequences of a batch without an end token, so where they end cannot be followed; record them "
                "one by one."
            )


# Methods of a model through which it generates in a way that hooks cannot follow.
_UNFOLLOWED = {
    # generate_batch and the context manager both go through it.
    "init_continuous_batching": (
        "Continuous batching packs sequences into one and runs them in a thread of its own, so rows cannot be matched to tokens; "
        "record model.generate(...), which takes a batch too."
    ),
    # As generate does with a static cache on a GPU. What a graph made before holds, no hook sees, and a graph that holds the
    # recorder's own work may write over what it gave out.
    "get_compiled_call": (
        "generate compiles its steps, as it does with a static cache on a GPU, where hooks do not fire; give it "
        "disable_compile=True, or the default cache."
    ),
}


@contextmanager
def refuse_other_loops(model: Any, followed: Callable[[], bool]) -> Iterator[None]:
    """Raises ``CaptureError`` where ``model`` would generate compiled or in continuous batches, if ``followed()`` there."""

    def refuse(message: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if followed():
            raise CaptureError(message)

    with ExitStack() as stack:
        for name, message in _UNFOLLOWED.items():
            if hasattr(model, name):
                stack.enter_context(watch_method(model, name, before=partial(refuse, message)))
        yield


def end_tokens(asked: Callable[[str], Any]) -> frozenset[int]:
    """The ids after which ``generate`` fills a sequence up with padding while it goes on with others."""
    found = asked("eos_token_id")
    if found is None:
        return frozenset()
    return frozenset(int(one) for one in (found if isinstance(found, (list, tuple)) else [found]))
