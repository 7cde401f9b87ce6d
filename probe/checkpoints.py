"""A model at several steps of its training: from a glob of folders, or from what the lab ships and saves."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import InputError, ModelError
from probe.models import Subject, load_model

if TYPE_CHECKING:
    from probe.lab.llava import LlavaSettings

__all__ = ["Checkpoint", "find_checkpoints", "lab_checkpoints"]

#: What a configuration must agree in for two checkpoints to be one training: everything that has a shape.
_SHAPE_KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "image_size", "patch_size",
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
        If a folder is no saved model, has no weights or no processor, or a weight file is incomplete; the message names it.
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
        If there is no such lab model, its training.json cannot be read, or a snapshot is incomplete or of another model.
    """
    from probe.lab.llava import folder, snapshot_folders

    home = Path(name) if Path(name).is_dir() else folder(str(name))
    snapshots = snapshot_folders(home)
    if not snapshots or not (home / "training.json").is_file():
        raise InputError(
            f"{str(name)!r} holds no snapshots of its training; give a glob of its checkpoints, such as 'runs/mine/checkpoint-*'."
        )
    steps, settings, seed = _plan(home / "training.json")
    final = _weights(home)
    for one in snapshots.values():
        _require_same(_weights(one), final, one, home)
    lab = _LabTraining(os.path.abspath(name) if Path(name).is_dir() else str(name), home, settings, seed, dtype, device)
    return [Checkpoint(step, f"{name} step {step}", partial(lab.load, step)) for step in (0, *snapshots, steps)]


@dataclass(frozen=True)
class _LabTraining:
    """A lab training and how its models are to be loaded."""

    name: str
    home: Path
    settings: LlavaSettings
    seed: int
    dtype: str
    device: str | None

    def load(self, step: int) -> Subject:
        """The model as it was at that step."""
        from probe.lab.llava import build, load, snapshot_folders

        # What it ended with comes with everything that can be asked wrongly checked: number type, device, processor.
        final = load_model(self.name, dtype=self.dtype, device=self.device)
        if step == 0:
            # The same seed and settings give the weights that the training began with.
            model = build(final.processor, settings=self.settings, seed=self.seed).eval()
        elif step in snapshot_folders(self.home):
            model, _ = load(self.home, step=step)
        else:
            return final
        return load_model(model.to(device=final.model.device, dtype=final.model.dtype), final.processor)


def _plan(file: Path) -> tuple[int, LlavaSettings, int]:
    """The number of steps, the model's settings and the seed of a lab training."""
    from probe.lab.llava import LlavaSettings

    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        return int(plan["steps"]), LlavaSettings(**plan["model"]), int(plan["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{str(file)!r} is not what a lab training writes ({type(error).__name__}: {error}), so its first weights cannot be "
            "made again; train anew, or give a glob of checkpoints."
        ) from None


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
    """Nothing, if all are whole saved models of one shape."""
    first: tuple[dict[str, Any], dict[str, Any]] | None = None
    for folder in folders:
        try:
            found = _shape(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{str(folder)!r} has no readable config.json ({type(error).__name__}), so it is not a saved model; give a glob "
                "that leaves it out."
            ) from None
        weights = _weights(folder)
        if not any((folder / one).is_file() for one in ("processor_config.json", "preprocessor_config.json")):
            raise ModelError(
                f"{str(folder)!r} holds no processor, so nothing can be asked of it; save one into each checkpoint, as "
                "Trainer(processing_class=processor) does, or processor.save_pretrained(folder)."
            )
        first = first or (found, weights)
        odd = [key for key in dict.fromkeys([*first[0], *found]) if first[0].get(key) != found.get(key)]
        if odd:
            raise InputError(
                f"{str(folder)!r} has another shape than {str(folders[0])!r}: {odd[0]} is {found.get(odd[0])} instead of "
                f"{first[0].get(odd[0])}. Checkpoints of one curve must come from one training; give a narrower glob."
            )
        _require_same(weights, first[1], folder, folders[0])


def _shape(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of everything in a configuration that shapes weights."""
    found = {prefix + key: value for key, value in config.items() if key in _SHAPE_KEYS}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _shape(value, f"{prefix}{key}.")
    return found


def _weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a folder's safetensors files; empty where weights are in another format.

    Only the files' heads are read: they say how long a file must be.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files and not list(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"{str(folder)!r} holds no weights (*.safetensors); was it cleared, or is it still being saved?"
        )
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except Exception as error:  # its own error type is not exported
            raise ModelError(f"{str(file)!r} cannot be read ({error}); was it cut short while it was saved?") from None
    return found


def _require_same(
    found: dict[str, tuple[int, ...]], first: dict[str, tuple[int, ...]], folder: Path, other: Path
) -> None:
    """Nothing, if two models have the same weights: what a file lacks would silently be filled with random numbers."""
    if not found or not first:
        return
    odd = next((name for name in (*first, *found) if found.get(name) != first.get(name)), None)
    if odd is not None:
        shapes = [" x ".join(map(str, one[odd])) if odd in one else "missing" for one in (found, first)]
        raise InputError(
            f"{str(folder)!r} has other weights than {str(other)!r}: {odd} is {shapes[0]} instead of {shapes[1]}. Checkpoints of "
            "one curve must come from one training; give a narrower glob, or save it again."
        )
