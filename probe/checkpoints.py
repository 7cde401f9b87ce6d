"""A model at several steps of its training: from a glob of folders, or from what the lab ships and saves."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import InputError, ModelError
from probe.models import Subject, load_model

__all__ = ["Checkpoint", "find_checkpoints", "lab_checkpoints"]

#: What a configuration must agree in for two checkpoints to be one training: everything that has a shape.
_SHAPE_KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "image_size", "patch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A step of a training and how to load the model as it was then.

    Attributes
    ----------
    step : how many steps it had been trained.
    name : what messages call it: its folder.
    load : gives the ``Subject``; only then is memory taken.
    """

    step: int
    name: str
    load: Callable[[], Subject]


def find_checkpoints(
    pattern: str | os.PathLike[str], *, dtype: str = "auto", device: str | None = None
) -> list[Checkpoint]:
    """The checkpoints in the folders that a glob matches, by rising step: the last number in each folder's name.

    >>> find_checkpoints("runs/mine/checkpoint-*")

    Every folder must hold model *and* processor; ``Trainer(processing_class=processor)`` writes both into each. Configurations and
    the heads of the weight files are read here, so that what cannot be compared or is cut short is said before hours of work.

    Raises
    ------
    InputError
        If the glob matches no folder, a folder has no number or two have the same, or the models differ in shape.
    ModelError
        If a folder is no saved model or a weight file is incomplete; the message names it.
    """
    text = os.path.expanduser(os.fspath(pattern))
    folders = sorted(Path(one) for one in glob.glob(text, recursive=True) if os.path.isdir(one))
    if not folders:
        raise InputError(
            f"No folder matches {str(pattern)!r}; give a glob of checkpoint folders such as 'runs/mine/checkpoint-*', in quotes."
        )
    steps: dict[int, Path] = {}
    for one in folders:
        step = _step_of(one)
        if step in steps:
            raise InputError(
                f"{str(steps[step])!r} and {str(one)!r} are both of step {step}; give a glob that matches one training."
            )
        steps[step] = one
    _require_one_shape([steps[step] for step in sorted(steps)])
    return [
        Checkpoint(step, str(steps[step]), _loader(str(steps[step]), dtype=dtype, device=device))
        for step in sorted(steps)
    ]


def lab_checkpoints(name: str | Path, *, dtype: str = "auto", device: str | None = None) -> list[Checkpoint]:
    """The checkpoints of a lab training: its random weights at step 0, its snapshots, and what it ended with.

    Parameters
    ----------
    name : "lab/llava", or a folder that ``probe lab train`` wrote.

    Raises
    ------
    InputError
        If the folder holds no snapshots.
    ModelError
        If there is no such lab model.
    """
    from probe.lab.llava import folder, snapshot_folders

    home = Path(name) if Path(name).is_dir() else folder(str(name))
    snapshots = snapshot_folders(home)
    if not snapshots or not (home / "training.json").is_file():
        raise InputError(
            f"{str(name)!r} holds no snapshots of its training; give a glob of its checkpoints, such as 'runs/mine/checkpoint-*'."
        )
    plan = json.loads((home / "training.json").read_text(encoding="utf-8"))
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    found = [Checkpoint(0, f"{name} step 0", lambda: _lab_subject(home, plan, 0, **options))]
    found += [
        Checkpoint(step, f"{name} step {step}", lambda step=step: _lab_subject(home, plan, step, **options))  # type: ignore[misc]
        for step in snapshots
    ]
    return [
        *found,
        Checkpoint(plan["steps"], f"{name} step {plan['steps']}", lambda: _lab_subject(home, plan, None, **options)),
    ]


def _lab_subject(home: Path, plan: dict[str, Any], step: int | None, *, dtype: str, device: str | None) -> Subject:
    import torch

    from probe.lab.llava import LlavaSettings, build, load, load_processor

    if step == 0:
        processor = load_processor(home)
        # The same seed and settings give the weights that the training began with.
        model = build(processor, settings=LlavaSettings(**plan["model"]), seed=plan["seed"]).eval()
    else:
        model, processor = load(home, step=step)
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype, None)
    if not isinstance(wanted, torch.dtype):
        raise ModelError(f"dtype={dtype!r} is not a number type of torch; try 'float32', 'bfloat16' or 'auto'.")
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(model.to(device=target, dtype=wanted), processor)


def _loader(name: str, *, dtype: str, device: str | None) -> Callable[[], Subject]:
    # A bare name with one slash, such as runs/step-10, must be read as a folder and not as a name on the hub.
    place = os.path.abspath(name)
    return lambda: load_model(place, dtype=dtype, device=device)


def _step_of(folder: Path) -> int:
    numbers = re.findall(r"\d+", folder.name)
    if not numbers:
        raise InputError(
            f"The folder {str(folder)!r} has no number in its name, so its step is unknown; name it like 'checkpoint-500', or give "
            "a glob that leaves it out."
        )
    return int(numbers[-1])


def _require_one_shape(folders: list[Path]) -> None:
    """Nothing, if all are saved models of one shape whose weight files are whole."""
    first: dict[str, Any] = {}
    for folder in folders:
        try:
            found = _shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{str(folder)!r} has no readable config.json ({type(error).__name__}), so it is not a saved model; give a glob "
                "that leaves it out."
            ) from None
        _require_whole(folder)
        first = first or found
        odd = [key for key in dict.fromkeys([*first, *found]) if first.get(key) != found.get(key)]
        if odd:
            raise InputError(
                f"{str(folder)!r} has another shape than {str(folders[0])!r}: {odd[0]} is {found.get(odd[0])} instead of "
                f"{first.get(odd[0])}. Checkpoints of one curve must come from one training; give a narrower glob."
            )


def _shape(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of everything in a configuration that shapes weights."""
    found = {prefix + key: value for key, value in config.items() if key in _SHAPE_KEYS}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _shape(value, f"{prefix}{key}.")
    return found


def _require_whole(folder: Path) -> None:
    """Nothing, if every safetensors file is as long as its own header says; other formats are read when their turn comes."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except Exception as error:  # its own error type is not exported
            raise ModelError(f"{str(file)!r} cannot be read ({error}); was it cut short while it was saved?") from None
