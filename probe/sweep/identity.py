"""What a stored result is keyed by: weights, configuration, number type, kernel, plan, pictures and versions."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import __version__
from probe.errors import FileError, ModelError

if TYPE_CHECKING:
    from probe.evaluation.examples import Example
    from probe.sweep.plan import SweepPlan

__all__ = [
    "FORMAT",
    "ModelOutline",
    "canonical",
    "describe_differences",
    "digest_of",
    "example_digest",
    "identify",
    "outline_of",
]

#: Of the store; raised when what a row means or how it is stored changes.
FORMAT = 1

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# Everything else that transformers reads beside weights: configuration, processor, tokenizer and chat template.
_SETTINGS = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class ModelOutline:
    """A language model that sees, as its configuration alone says: before any weight is loaded.

    Attributes
    ----------
    folder : where its files lie; ``None`` for a hub name, whose files may not be here yet.
    layers, heads : how many layers, and heads in each.
    """

    name: str
    folder: Path | None
    layers: int
    heads: int


def outline_of(name: str) -> ModelOutline:
    """The outline of a model by its name, as ``probe.load_model`` takes it.

    Raises
    ------
    ModelError
        If there is no such model, or it has no language model whose heads could be taken away.
    """
    import transformers

    from probe.families import family_of
    from probe.loading import locate, quiet, typed

    found, _ = locate(name, dtype="auto", example="lab/llava")
    with typed(name), quiet(bars=False):
        settings, _ = transformers.PretrainedConfig.get_config_dict(found)
        if isinstance(settings, dict) and settings.get("model_type") == "difflmm":
            import probe.difflmm  # noqa: F401 - makes its classes known to the library
        config = transformers.AutoConfig.from_pretrained(found, trust_remote_code=False)
        family = family_of(config)
        if family.kind != "language model":
            raise ModelError(
                f"it has no language model whose heads could be taken away ({family.name}); give a vision-language model."
            )
        text = config.get_text_config()
        folder = Path(found) if Path(found).is_dir() else None
        return ModelOutline(name, folder, int(text.num_hidden_layers), int(text.num_attention_heads))


def identify(plan: SweepPlan, outline: ModelOutline, *, dtype: str, kernel: str, engine: str = "") -> dict[str, Any]:
    """Everything that a row of the sweep depends on but the pictures, in plain types: name -> value.

    Parameters
    ----------
    dtype, kernel : of the live model.
    engine : what computes the rows.

    Raises
    ------
    FileError
        If a file of the model cannot be read.
    ModelError
        If the files of a model of the hub are not here.
    """
    folder = outline.folder or _snapshot(outline.name)
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    own = plan.identity() | {"dtype": dtype, "layers_of_model": outline.layers, "heads_of_model": outline.heads}
    return {
        "format": FORMAT,
        "version": __version__,
        **{f"{name} version": value for name, value in libraries.items()},
        **own,
        "kernel": kernel,
        "engine": engine,
        "weights": _digest_files(folder, _WEIGHTS),
        "config": _digest_files(folder, _SETTINGS),
    }


def _snapshot(name: str) -> Path:
    """The folder that the files of a model of the hub were fetched into."""
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name, "config.json", local_files_only=True))).parent
    except OSError as error:
        raise ModelError(
            f"The files of {name!r} are not on this machine, so it cannot be told from another; load it once first."
        ) from error


def _digest_files(folder: Path, suffixes: tuple[str, ...]) -> str:
    """A digest of names and bytes of the folder's files with these endings."""
    # The weights that the lab's models share lie elsewhere; their own SHA-256 stands in frozen.json and is checked while loading.
    digest = hashlib.sha256()
    for one in sorted(folder.iterdir()):
        if one.suffix not in suffixes or not one.is_file():
            continue
        try:
            with one.open("rb") as file:
                # Name and contents with fixed lengths between them, so that no byte can move from one file into the next.
                digest.update(hashlib.sha256(one.name.encode()).digest())
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise FileError(
                f"{one} cannot be read ({error.strerror or error}); the model's files are needed."
            ) from error
    return digest.hexdigest()


def canonical(values: Mapping[str, Any]) -> bytes:
    """The values as JSON in the one spelling that digests are taken of."""
    return json.dumps(values, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(values: Mapping[str, Any]) -> str:
    """The SHA-256 of plain values, in hexadecimal digits."""
    return hashlib.sha256(canonical(values)).hexdigest()


def example_digest(example: Example) -> str:
    """The SHA-256 of everything that a row depends on of its example: picture, text, phrases and masks.

    A picture that cannot be read has a digest too, by the reason: it becomes a row that says so.
    """
    import numpy as np

    digest = hashlib.sha256()
    words = {
        "name": example.name,
        "text": example.text,
        "phrases": [[one.text, one.start, one.end, list(one.mask.shape)] for one in example.phrases],
    }
    digest.update(hashlib.sha256(canonical(words)).digest())
    digest.update(_picture_digest(example.image))
    for one in example.phrases:
        digest.update(hashlib.sha256(np.packbits(one.mask).tobytes()).digest())
    return digest.hexdigest()


def _picture_digest(image: Any) -> bytes:
    if not isinstance(image, Path):
        palette = image.getpalette() or []
        return hashlib.sha256(f"{image.mode} {image.size} {palette} ".encode() + image.tobytes()).digest()
    try:
        if not image.is_file():  # opening a pipe would wait for ever
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with image.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return hashlib.sha256(f"unreadable: {error.errno}".encode()).digest()


def describe_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Which values differ, as "prompt='a' (now 'b')" with commas between them; empty where none does."""
    names: Iterable[str] = dict.fromkeys([*wanted, *found])
    return ", ".join(
        f"{name}={_short(found.get(name))} (now {_short(wanted.get(name))})"
        for name in names
        if found.get(name) != wanted.get(name)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:20]}...{text[-8:]}"
