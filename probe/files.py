"""Save and load a record: safetensors with a JSON header, no pickle, no model needed to read it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.attention import AttentionRecord, LayerAttention
from probe.errors import FileError, InputError, ProbeError
from probe.header_types import require_types
from probe.layout import PatchGrid
from probe.provenance import Certificate, Source
from probe.writing import write_beside

__all__ = ["load", "load_with_notes", "save"]

_FORMAT = 1
_PARTS = ("values", "token_mean", "rest")
_PLAIN = ("quantity", "query_kind", "text", "softmax_over", "query_row")


def save(
    record: AttentionRecord,
    path: str | os.PathLike[str],
    *,
    compact: bool = False,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """The path of the file written: one ``.safetensors`` file that holds the whole record.

    The file is written beside and renamed, so that no reader ever sees half of it.

    Parameters
    ----------
    compact : True keeps 16 bits a value with one float32 scale a row (relative to the row's largest value the error is below
        5e-4); by default values are kept exactly.
    notes : plain JSON values that belong to the record, such as what it was made for; ``load_with_notes`` gives them back.

    Raises
    ------
    FileError
        If the file cannot be written, for instance because the disk is full.
    """
    from safetensors.torch import save as to_bytes

    if not isinstance(record, AttentionRecord):
        raise InputError(
            f"save() needs an AttentionRecord, found a {type(record).__name__}; of a Run, give run.record."
        )
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(record.layers):
        for part in _PARTS:
            tensors |= _packed(f"{index}.{part}", getattr(layer, part), compact=compact)
    header = json.dumps(_header(record) | ({"notes": dict(notes)} if notes else {}), sort_keys=True)
    metadata = {"groundprobe": str(_FORMAT), "header": header, "sha256": _digest(header, tensors)}
    target = Path(path)
    content = to_bytes(tensors, metadata)
    write_beside(target, lambda beside: _write_in_order(beside, content))
    return target


def _write_in_order(path: Path, content: bytes) -> None:
    """Writes what the library made with its header in order: of its own the same record would be other bytes each time."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)  # tensors begin at multiples of eight
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(memoryview(content)[8 + length :])


def load(path: str | os.PathLike[str]) -> AttentionRecord:
    """The record kept in a file by ``save``.

    Raises
    ------
    FileError
        If there is no such file, it is no saved record, or it was damaged or changed since.
    """
    return load_with_notes(path)[0]


def load_with_notes(path: str | os.PathLike[str]) -> tuple[AttentionRecord, dict[str, Any]]:
    """The record kept in a file by ``save``, and the notes that were saved with it; none are an empty dictionary.

    Raises
    ------
    FileError
        As ``load`` does.
    """
    target = Path(path)
    try:
        metadata, tensors = _read(target)
        header = json.loads(metadata["header"])
        if metadata.get("groundprobe") != str(_FORMAT):
            raise FileError(
                f"{target} is a record of format {metadata.get('groundprobe')!r} but this version reads format {_FORMAT}; "
                "read it with the version that wrote it, or record again."
            )
        if metadata.get("sha256") != _digest(metadata["header"], tensors):
            raise FileError(
                f"{target} was damaged or changed after it was saved (its checksum does not match); record again."
            )
        return _record(header, tensors), header.get("notes", {})
    except FileError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, ProbeError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{target} is not a record saved by groundprobe ({type(error).__name__}: {reason}).") from error


def _packed(name: str, tensor: Tensor, *, compact: bool) -> dict[str, Tensor]:
    kept = tensor.detach().cpu().contiguous()
    if not compact:
        return {name: kept}
    # Plain float16 flushes a third of sharp rows to zero, so each row (the last two dimensions of a map, the last of rest)
    # is scaled to 1 first.
    dims = (-2, -1) if kept.shape[-2:] != () and not name.endswith("rest") else (-1,)
    scale = kept.abs().amax(dim=dims, keepdim=True).float()
    scaled = kept / torch.where(scale > 0, scale, 1)
    return {name: scaled.half().contiguous(), f"{name}.scale": scale.contiguous()}


def _unpacked(name: str, tensors: dict[str, Tensor]) -> Tensor:
    scale = tensors.get(f"{name}.scale")
    return tensors[name] if scale is None else tensors[name].float() * scale


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()


def _header(record: AttentionRecord) -> dict[str, Any]:
    grid_fields = [one.name for one in fields(PatchGrid)]
    return {
        **{name: getattr(record, name) for name in _PLAIN},
        "tokens": record.tokens,
        "token_ids": record.token_ids,
        "spans": record.spans,
        "image_size": record.image_size,
        "history": record.history,
        "certificate": asdict(record.certificate),
        "source": asdict(record.source),
        "layers": [
            {
                "name": one.name,
                "view": one.view,
                "heads": one.heads,
                "timesteps": one.timesteps,
                "grid": {name: getattr(one.grid, name) for name in grid_fields},
            }
            for one in record.layers
        ],
    }


def _record(header: dict[str, Any], tensors: dict[str, Tensor]) -> AttentionRecord:
    layers = []
    for index, one in enumerate(header["layers"]):
        grid: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in one["grid"].items()
        }
        parts = {part: _unpacked(f"{index}.{part}", tensors) for part in _PARTS}
        layers.append(
            LayerAttention(
                name=one["name"],
                view=one["view"],
                grid=PatchGrid(**grid),
                heads=tuple(one["heads"]),
                timesteps=tuple(one.get("timesteps", ())),  # absent in records of before they had numbers
                **parts,
            )
        )
    record = AttentionRecord(
        layers=tuple(layers),
        tokens=tuple(header["tokens"]),
        token_ids=tuple(header["token_ids"]),
        spans=tuple((start, end) for start, end in header["spans"]),
        image_size=(header["image_size"][0], header["image_size"][1]),
        history=tuple(header["history"]),
        certificate=Certificate(**header["certificate"]),
        source=Source(**header["source"]),
        **{name: header[name] for name in _PLAIN},
    )
    _require_sound(record)
    return record


def _require_sound(record: AttentionRecord) -> None:
    """Nothing, if the record is one that could have been recorded: a checksum is right for whatever was written on purpose."""
    for one in (record, record.certificate, record.source, *record.layers, *(layer.grid for layer in record.layers)):
        require_types(one)
    if any(layer.grid.image_size != record.image_size for layer in record.layers):
        raise InputError(f"a grid is of another image than the record's, of {record.image_size} (height, width)")
    if not all(0 <= start <= end <= len(record.text) for start, end in record.spans):
        raise InputError(f"a token's characters are not in the text of {len(record.text)} characters")


def _read(target: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not target.is_file():
        what = "is a folder, not a saved record" if target.is_dir() else "is no ordinary file"
        what = what if target.exists() else "does not exist"
        raise FileError(f"{target} {what}; give a file written by probe.save or `probe record`.")
    try:
        with safe_open(str(target), framework="pt") as file:
            metadata = file.metadata() or {}
            if "header" not in metadata:
                raise FileError(
                    f"{target} is a safetensors file but not a record saved by groundprobe: it has no header of ours."
                )
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, MemoryError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{target} is not a saved record, or it is damaged ({error}).") from error
