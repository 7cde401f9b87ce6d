"""What every recorder is: a context that watches one thread's use of a model, and leaves nothing behind."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from probe.attention import AttentionRecord
from probe.errors import CaptureError

__all__ = ["Recording", "Watching"]


class Watching(ABC):
    """A context in which one thread's use of a model is watched; open once at a time."""

    def __init__(self) -> None:
        self._open: ExitStack | None = None
        # Only the thread that opened the context is followed: what others do with the model is none of this record's.
        self._thread: int | None = None

    @abstractmethod
    def _attach(self, attached: ExitStack) -> None:
        """Enters what watches the model; left again in reverse order, however the context ends."""

    def __enter__(self) -> Self:
        if self._open is not None:
            raise CaptureError("This recorder is already open; make another with record().")
        self._thread = threading.get_ident()
        with ExitStack() as attached:
            self._attach(attached)
            self._open = attached.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def _mine(self) -> bool:
        """True in the thread that is followed."""
        return self._thread == threading.get_ident()


class Recording(Watching):
    """What ``record()`` gives out: a context in which one pass is watched, and then its record."""

    @abstractmethod
    def result(self, *, image: Any = None) -> AttentionRecord:
        """The record of the pass, after its certificate has been checked."""
