"""Diffusion pipelines from a folder or the hub: every weight read, none made up, nothing on the screen."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.errors import ModelError, did_you_mean
from probe.families import FAMILIES, Family
from probe.loading import require_complete
from probe.ordinary_files import require_folder

__all__ = ["INDEX", "load_pipeline", "pipeline_family"]

#: The file that makes a folder a pipeline.
INDEX = "model_index.json"


def load_pipeline(folder: Path, *, dtype: Any, device: str) -> tuple[Any, Family]:
    """The pipeline that was saved in a folder, in evaluation mode, and its family.

    Parts that are models are loaded one by one, since only so the library tells which weights it did not find. A safety checker is
    left out: it would blacken pictures that are looked at for their attention.

    Raises
    ------
    ModelError
        If it is of no known family, or weights are missing.
    """
    index = _index(folder)
    family = pipeline_family(str(index.get("_class_name")))
    import diffusers

    kind = getattr(diffusers, index["_class_name"])
    parts: dict[str, Any] = {}
    for name, found in index.items():
        if not isinstance(found, list) or None in found:
            continue
        library, class_name = found
        if name == "safety_checker":
            parts[name] = None
        elif library in ("diffusers", "transformers") and _is_model(library, class_name):
            parts[name] = _part(folder, name, library, class_name, dtype=dtype).eval()
    if "requires_safety_checker" in index:
        parts["requires_safety_checker"] = False
    with quiet():
        pipeline = kind.from_pretrained(str(folder), dtype=dtype, **parts)
    return pipeline.to(device), family


def pipeline_family(class_name: str) -> Family:
    """The family of diffusion pipelines with this class.

    Raises
    ------
    ModelError
        If there is none.
    """
    known = {name: family for family in FAMILIES if family.kind == "diffusion" for name in family.models}
    if class_name not in known:
        raise ModelError(
            f"its pipeline {class_name!r} cannot be recorded yet; known pipelines: {', '.join(known)}."
            f"{did_you_mean(class_name, known)}"
        )
    return known[class_name]


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"its {INDEX} is not valid JSON ({error}); save or fetch it again.") from error
    if not isinstance(index, dict):
        raise ModelError(f"its {INDEX} holds no parts; save or fetch it again.")
    return index


def _is_model(library: str, class_name: str) -> bool:
    from torch import nn

    found = getattr(importlib.import_module(library), class_name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _part(folder: Path, name: str, library: str, class_name: str, *, dtype: Any) -> Any:
    """One model of the pipeline, all of its weights from the folder."""
    kind = getattr(importlib.import_module(library), class_name)
    require_folder(folder / name)
    # With a shape that differs the one library raises by itself, the other reports it only if asked to go on.
    options = {"dtype": dtype} | ({} if library == "diffusers" else {"ignore_mismatched_sizes": True})
    with quiet():
        model, found = kind.from_pretrained(str(folder / name), output_loading_info=True, **options)
    require_complete(found, f"the {name}'s")
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the library's loading bars, and its warnings of what is raised here or wanted so."""
    from diffusers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
