"""Whether what was read from a file is of the types that its dataclass declares."""

from __future__ import annotations

import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from probe.errors import InputError

__all__ = ["require_types"]


def require_types(found: Any) -> None:
    """Nothing, if every field of a dataclass holds what it declares, and every tensor floating-point numbers.

    Raises
    ------
    InputError
        One does not, with its name.
    """
    kinds = get_type_hints(type(found))
    for one in fields(found):
        value = getattr(found, one.name)
        if not _fits(value, kinds[one.name]):
            shown = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.60}"
            raise InputError(f"{type(found).__name__}.{one.name} is {shown}, which it cannot be")


def _fits(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    match get_origin(kind):
        case None if kind is Tensor:
            return isinstance(value, Tensor) and value.is_floating_point()
        case None if kind is float:
            return type(value) in (int, float)
        case None:
            # A class of our own has its fields looked at by itself.
            return type(value) is kind
        case origin if origin is Literal:
            return any(type(value) is type(one) and value == one for one in parts)
        case origin if origin in (Union, types.UnionType):
            return any(_fits(value, one) for one in parts)
        case origin if origin is dict:
            return isinstance(value, dict) and all(
                _fits(key, parts[0]) and _fits(one, parts[1]) for key, one in value.items()
            )
        case origin if origin is tuple:
            if not isinstance(value, tuple):
                return False
            wanted = (parts[0],) * len(value) if parts[1:] == (...,) else parts
            return len(wanted) == len(value) and all(map(_fits, value, wanted))
    raise TypeError(f"no rule for {kind}")
