"""How tables and files are spoilt: values gone, doubled or strange, and bytes changed, moved or cut."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

__all__ = ["BYTES", "STRANGE", "flipped", "places", "spoilt"]

STRANGE = (
    None, True, False, -1, 0, 1, 3, 5, 300, 2**70, 0.5, 1e308, "", "x", "5", "../x", "/dev/zero", "\x00", "\x1b[2J", "\ud800",
    "a" * 10_000, [], [[]], {}, [None], {"counts": "0"}, [[1e300] * 6], [[0.5] * 7], [[0, 0, 1, 0, 1, 1]],
    [[-1e5, 0, 1e5, 0, 0, 1e5]], {"size": [4, 6], "counts": [-1, 25]}, {"size": [4, 6], "counts": "0" * 99},
    {"size": [4, 6], "counts": [24]}, {"size": [2**40, 2**40], "counts": [2**80]}, {"size": [6, 4], "counts": [0, 24]},
)  # fmt: skip
#: What is put in the place of a table, or of a part of one.
BYTES = (
    b"",
    b"\xff\xfe",
    b"{",
    b"[" * 100_000,
    b'{"a": NaN}',
    b"\x00",
    b"\xef\xbb\xbf[]",
    b"1" * 5000,
    b'"\\ud800"',
    b'"',
)


def places(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead there."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [before, *(place for key, one in inner for place in places(one, (*before, key)))]


def spoilt(dice: np.random.Generator, table: Any) -> Any:
    """The JSON value with one to three of its values gone, doubled, or something else."""
    content = [copy.deepcopy(table)]
    for _ in range(dice.integers(1, 4)):
        every = places(content[0], (0,))
        place = every[dice.integers(len(every))]
        above: Any = content
        for key in place[:-1]:
            above = above[key]
        kind = dice.random()
        if kind < 0.2 and isinstance(above, dict):
            del above[place[-1]]
        elif kind < 0.3 and isinstance(above, list) and above is not content:
            above.append(copy.deepcopy(above[place[-1]]))
        else:
            above[place[-1]] = copy.deepcopy(STRANGE[dice.integers(len(STRANGE))])
    return content[0]


def flipped(dice: np.random.Generator, data: bytes, *, first: int | None = None) -> bytes:
    """The bytes with one to three of them changed, maybe cut off after that; ``first``: only among so many at the beginning."""
    changed = bytearray(data)
    for _ in range(dice.integers(1, 4)):
        changed[dice.integers(min(first or len(data), len(data)))] = dice.integers(256)
    if dice.random() < 0.2:
        del changed[dice.integers(len(changed)) :]
    return bytes(changed)
