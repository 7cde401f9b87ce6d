"""The folder of a training: its record, its curve, and what it leaves when it is finished."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probe.errors import FileError, InputError
from probe.lab.trainers import save_curve
from probe.ordinary_files import require_file
from probe.training.assembly import RECORD, TRAINED, write_trained
from probe.training.outlooks import Outlook
from probe.training.stages import Stage
from probe.writing import write_beside

__all__ = ["is_finished", "write_curve", "write_record", "write_results"]

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "diffusers")


def is_finished(out: Path, outlook: Outlook) -> bool:
    """Whether this very training is finished in `out`; an error if another one is there."""
    path = out / RECORD
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder to train in.")
    if not path.is_file():
        if out.is_dir() and any(not one.name.startswith(".") for one in out.iterdir()):
            raise InputError(f"{out} holds something that is no training; give a new folder.")
        return False
    try:
        require_file(path, largest=2**24)
        record = json.loads(path.read_text(encoding="utf-8"))
        found, finished = dict(record["identity"]), bool(record["finished"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(
            f"{path} cannot be read as the record of a training ({type(error).__name__}); give a new folder."
        ) from error
    wanted = _identity(outlook)
    other = [
        f"{name}={found.get(name)!r} (now {value!r})" for name, value in wanted.items() if found.get(name) != value
    ]
    if other:
        raise InputError(
            f"{out} holds a training with {', '.join(other)}. Give another folder, or the same settings to go on."
        )
    return finished


def _identity(outlook: Outlook) -> dict[str, Any]:
    own = outlook.plan.identity() | {"kind": outlook.kind, "data": outlook.data_sha256}
    return json.loads(json.dumps(own))


def write_record(out: Path, outlook: Outlook, parts: dict[str, str], *, finished: bool) -> None:
    """Nothing; ``training.json`` then says what is trained here, with what, from which records."""
    record = {
        "finished": finished,
        "identity": _identity(outlook),
        "plan": asdict(outlook.plan),
        "outlook": outlook.data(),
        "left_out": outlook.left_out,
        "parts": parts,
        "versions": {name: version(name) for name in LIBRARIES if importlib.util.find_spec(name)},
    }
    text = json.dumps(record, indent=2) + "\n"
    write_beside(out / RECORD, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_curve(out: Path, history: list[dict[str, float]]) -> None:
    """Nothing; ``loss.csv`` then holds the steps of a history of transformers' `Trainer`."""
    write_beside(out / "loss.csv", lambda beside: save_curve(beside, history))


def write_results(
    out: Path, outlook: Outlook, stage: Stage, history: list[dict[str, float]], parts: dict[str, str]
) -> None:
    """Nothing; what was trained is in `out`, and the checkpoints are gone."""
    plan = outlook.plan
    write_curve(out, history)
    if plan.stage == 1:
        write_trained(out / TRAINED, dict(stage.trained()))
    if plan.stage == 2 or plan.whole_model:
        _write_model(out, stage.finish().cpu(), outlook.blueprint.processor)
    write_record(out, outlook, parts, finished=True)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _write_model(out: Path, model: Any, processor: Any) -> None:
    """Nothing; model and processor are written beside and moved, file by file: a run killed meanwhile writes them again."""
    beside = Path(tempfile.mkdtemp(prefix=".model-", dir=out))
    try:
        model.save_pretrained(beside)
        processor.save_pretrained(beside)
        for one in beside.iterdir():
            one.chmod(0o644)  # safetensors writes for the owner alone
            one.replace(out / one.name)
    except OSError as error:
        raise FileError(f"The model cannot be written to {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
