"""``probe train convert-difflmm``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from probe.reports import Report

__all__ = ["convert_difflmm", "quiet"]


def convert_difflmm(
    adapter: str,
    base: str,
    out: str,
    *,
    clip: str | None = None,
    diffusion: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
) -> Report:
    """Turn released DiffLMM weights, a LoRA adapter and loose tensors, into a folder that loads like any model.

    The folder says that pixels are normalised as in the released code, which its weights were trained with.

    Parameters
    ----------
    adapter
        Folder with adapter_model, adapter_config.json, non_lora_trainables and config.json, as released.
    base
        The language model that it was trained on: a folder or a hub name, such as "lmsys/vicuna-7b-v1.5".
    out
        A new folder for the model and its processor.
    clip
        CLIP's vision model, a folder or a hub name; by default the one that the adapter's config.json names.
    diffusion
        Stable Diffusion, a folder or a hub name; by default the one that the adapter's config.json names.
    dtype
        Number type to keep the weights in; "auto" is the language model's own.
    """
    settings = dict(locals())
    from probe.difflmm.conversion import convert

    with quiet():
        folder = convert(adapter, base, out, clip=clip, diffusion=diffusion, dtype=dtype)
    return Report({"out": str(folder), "settings": settings}, [f"model        {folder}"])


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but progress on a terminal: what the libraries log while loading comes as one line if it matters."""
    import diffusers  # noqa: F401 - its first import sets its logger's level
    from transformers.utils import logging as library

    loggers = [logging.getLogger(name) for name in ("diffusers", "huggingface_hub")]
    levels = [one.level for one in loggers]
    bars = library.is_progress_bar_enabled()
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        if bars:
            library.enable_progress_bar()
