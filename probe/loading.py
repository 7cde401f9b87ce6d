"""What loading a model needs, whatever it is: where it lies, in which numbers, on which device; typed errors, a clean screen."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.errors import FileError, ModelError
from probe.ordinary_files import require_folder
from probe.text import shorten

__all__ = ["CONFIG", "chat_text", "locate", "number_type", "quiet", "require_complete", "typed", "usable_device"]

#: The file that makes a folder a saved model of transformers.
CONFIG = "config.json"


def locate(name: str, *, dtype: str, files: Sequence[str] = (CONFIG,), example: str) -> tuple[str, str]:
    """The folder or hub name to load from, and the number type to load it in.

    Parameters
    ----------
    files : at least one of them makes a folder a saved model.
    example : a shipped model of the kind that is wanted.

    Raises
    ------
    ModelError
        If there is no such lab model, or no such folder, it is none that a model was saved in, or a pipe or device lies in it.
    """
    if name.startswith("lab/"):
        from probe.lab.storage import folder

        # Shipped in half precision to stay small; computed in single precision, as it was trained.
        return str(folder(name)), "float32" if dtype == "auto" else dtype
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or path.exists() or name.count("/") != 1
    if looks_local and not path.is_dir():
        raise ModelError(
            f"No model folder {name!r}: give a folder with a {' or '.join(files)}, a hub name 'owner/name', or {example!r}."
        )
    if looks_local and not any((path / one).is_file() for one in files):
        raise ModelError(
            f"The folder {name!r} has no {' or '.join(files)}, so it is not a saved model; was it made with save_pretrained?"
        )
    if looks_local:
        try:
            require_folder(path)
        except FileError as error:
            raise ModelError(f"The folder {name!r} is not a saved model: {error}.") from error
    return (str(path) if looks_local else name), dtype


def number_type(dtype: str) -> Any:
    """The floating-point type of torch of this name, or "auto".

    Raises
    ------
    ModelError
        If there is none.
    """
    import torch

    wanted: Any = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if wanted != "auto" and not (isinstance(wanted, torch.dtype) and wanted.is_floating_point):
        raise ModelError(
            f"dtype={dtype!r} is not a floating-point type of torch; try 'float32', 'bfloat16', 'float16' or 'auto'."
        )
    return wanted


def usable_device(device: str | None) -> str:
    """The device asked for, or a GPU if torch sees one, and else the CPU.

    Raises
    ------
    ModelError
        If it cannot be used here.
    """
    import torch

    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=target).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shorten((str(error).strip().splitlines() or [""])[0].rstrip("."), 80)
        raise ModelError(
            f"device={target!r} cannot be used here ({reason}); try 'cpu', or leave it out to take a GPU where there is one."
        ) from error
    return target


def require_complete(found: dict[str, Any], what: str = "its") -> None:
    """Nothing, if every weight came from the checkpoint: the library fills gaps with random numbers and goes on."""
    missing = sorted(found.get("missing_keys", ()))
    other = sorted(str(one[0]) for one in found.get("mismatched_keys", ()))
    for keys, which in ((missing, "are not in its checkpoint"), (other, "have another shape in its checkpoint")):
        if keys:
            raise ModelError(
                f"{len(keys)} of {what} weights {which}, the first {keys[0]!r}: the checkpoint is not of this config.json, or it "
                "is incomplete; save or fetch it again."
            )


def chat_text(speaker: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """The messages as the chat template of a processor or tokenizer writes them.

    Raises
    ------
    ModelError
        If the template cannot be filled in: it comes with the model, and is run in a sandbox.
    """
    try:
        return str(speaker.apply_chat_template(messages, **options))
    except Exception as error:
        # A template is a program, which can fail in any way that a program can.
        reason = shorten(" ".join(str(error).split()), 200)
        raise ModelError(
            f"The model's chat template cannot be filled in ({type(error).__name__}: {reason}); save or fetch its processor again."
        ) from error


@contextmanager
def typed(name: str) -> Iterator[None]:
    """Turn whatever the library raises while loading into one line that names the model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{name!r}: {error}") from None
    except Exception as error:
        # Whatever lies in a folder is read by many parsers, each with errors of its own; all mean that it cannot be loaded.
        lines = str(error).strip().splitlines() or [""]
        reason = shorten(lines[0].strip(), 500).rstrip(".:")
        raise ModelError(
            f"{name!r} could not be loaded ({type(error).__name__}: {reason}). It must be a folder made with save_pretrained, "
            "holding the model and its processor, or the name of such a model on the hub with a network to reach it."
        ) from error


@contextmanager
def quiet(*, bars: bool) -> Iterator[None]:
    """Hold back what needs nobody's attention: that torchvision is absent, reports of what is raised here, and bars."""
    from transformers.utils import logging as library

    def keep(line: logging.LogRecord) -> bool:
        # The PIL image processors are used on purpose; missing weights become an error of their own; and SigLIP's configuration
        # warns of the special tokens that it has by default.
        text = line.getMessage()
        return (
            "torchvision" not in text.lower()
            and not ("LOAD REPORT" in text and ("MISSING" in text or "MISMATCH" in text))
            and not re.search(r"Model config: \w+_token_id must be", text)
        )

    handlers = list(logging.getLogger("transformers").handlers)
    # Without a network the hub's client says so once for each of its tries; the one line that is raised says it too.
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    shown = library.is_progress_bar_enabled()
    for one in handlers:
        one.addFilter(keep)
    if not bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(level)
        for one in handlers:
            one.removeFilter(keep)
        if shown and not bars:
            library.enable_progress_bar()
