"""A device that is not the CPU, on a machine that has none: what mixes tensors of both devices fails as it would on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from probe.attention import AttentionRecord

__all__ = ["DEVICE", "elsewhere", "moved"]

#: Stands in for a GPU: a device that torch always has, and from which nothing can be read without a copy to the CPU.
DEVICE = torch.device("meta")
#: A GPU takes these with indices, or with a source, that lie on the CPU.
_MIXED = ("aten.index.Tensor", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten.copy_")


class There(Tensor):
    """A tensor that says it is elsewhere, with its numbers inside."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype, device=DEVICE
        )  # fmt: skip
        made.inside = inside
        return made

    # What torch's own code would ask the stand-in for numbers in, without passing by here:
    def tolist(self) -> Any:
        return self.inside.tolist()

    def repeat_interleave(self, repeats: There, dim: int) -> There:
        return There(self.inside.repeat_interleave(repeats.inside, dim))

    def __getitem__(self, key: Any) -> Tensor:
        return super().__getitem__(_listed(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(
            _listed(key), value if isinstance(value, Tensor) else There(torch.tensor(value).to(self.dtype))
        )

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[None]:
    """A context in which tensors can be put on the device that stands in for a GPU."""
    plain = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = plain(data, **options)
        return made if device is None or torch.device(device) != DEVICE else There(made)

    with mock.patch("torch.tensor", tensor), _Elsewhere():
        yield


class _Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved(record: AttentionRecord) -> AttentionRecord:
    """The same record with its tensors elsewhere."""

    def put(thing: Any) -> Any:
        tensors = {
            one.name: There(found) for one in fields(thing) if isinstance(found := getattr(thing, one.name), Tensor)
        }
        return replace(thing, **tensors)

    return replace(record, layers=tuple(put(layer) for layer in record.layers))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, There)]
    here = [one for one in tensors if not isinstance(one, There) and one.dim() > 0]
    if any(one.device == DEVICE and not isinstance(one, There) for one in tensors):
        raise AssertionError(
            f"{func} was given a tensor whose numbers are lost: it was made behind the stand-in's back"
        )
    asked = kwargs.get("device")
    if there and here and not str(func).startswith(_MIXED):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two: {func}")
    wrap = bool(there) if asked is None else torch.device(asked) == DEVICE
    if str(func).startswith("aten.copy_"):
        wrap = isinstance(args[0], There)
    kept = {id(one.inside): one for one in there}
    inner_args, inner = tree_map(lambda one: one.inside if isinstance(one, There) else one, (args, kwargs))
    if asked is not None:
        inner["device"] = torch.device("cpu")
    found = func(*inner_args, **inner)
    if not wrap:
        # A CPU tensor made of one that is elsewhere shares nothing with it.
        return tree_map(lambda one: one.clone() if isinstance(one, Tensor) and id(one) in kept else one, found)
    return tree_map(lambda one: _there(one, kept) if isinstance(one, Tensor) else one, found)


def _listed(key: Any) -> tuple[Any, ...]:
    return tuple(
        torch.tensor(one) if isinstance(one, list) else one for one in (key if isinstance(key, tuple) else (key,))
    )


def _there(found: Tensor, kept: dict[int, There]) -> There:
    """What an operation gave out: an argument that it wrote into, or something new."""
    return kept[id(found)] if id(found) in kept else There(found)
