"""The only file that registers hooks: they watch, and all of them are gone when the context ends, however it ends."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, Protocol

from torch import nn

from probe.errors import CaptureError

__all__ = ["Observer", "hook_tables", "require_uncompiled", "watch_forward", "watch_generate", "watch_method"]

Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[nn.Module, Any], None]
Told = Callable[[tuple[Any, ...], dict[str, Any]], None]


class Observer(Protocol):
    """What is told of calls to ``model.generate``."""

    def generation_begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before generation with what the user passed."""

    def generation_ends(self, output: Any) -> None:
        """Called with what ``generate`` returned, or ``None`` if it raised."""


@contextmanager
def watch_forward(
    modules: Iterable[nn.Module], *, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Calls ``before(module, args, kwargs)`` and ``after(module, output)`` around every forward of these modules."""

    def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if before is not None:
            before(module, args, kwargs)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if after is not None:
            after(module, output)

    with ExitStack() as handles:
        for module in modules:
            if before is not None:
                handles.callback(module.register_forward_pre_hook(pre_hook, with_kwargs=True).remove)
            if after is not None:
                handles.callback(module.register_forward_hook(hook).remove)
        yield


def require_uncompiled(model: nn.Module) -> None:
    """Nothing, if hooks on the model will fire.

    Raises
    ------
    CaptureError
        If a part of it was compiled: hooks added after the first compiled call never fire, without an error from torch.
    """
    for name, module in model.named_modules():
        own_forward = module.__dict__.get("forward")  # as after model.forward = torch.compile(model.forward)
        compiled = getattr(own_forward, "_torchdynamo_orig_callable", None) or getattr(
            module, "_compiled_call_impl", None
        )
        if compiled is not None or type(module).__name__ == "OptimizedModule":
            raise CaptureError(
                f"{name or type(module).__name__!r} is compiled by torch.compile, where hooks do not fire; record the model before "
                "compiling it, or its original: getattr(model, '_orig_mod', model)."
            )


def hook_tables(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Every hook on every part of a model, by "part table", to compare before and after: some models keep hooks of their own."""
    tables: dict[str, tuple[Any, ...]] = {}
    for name, module in model.named_modules():
        for table, hooks in vars(module).items():
            if "hooks" in table and isinstance(hooks, dict):
                tables[f"{name} {table}"] = tuple(hooks.items())
    return tables


# Several recorders may watch one model; one shared wrapper serves them, so they may end in any order.
_lock = threading.RLock()


@contextmanager
def watch_generate(model: Any, observer: Observer) -> Iterator[None]:
    """Tells ``observer`` of every ``model.generate`` call."""
    with watch_method(model, "generate", before=observer.generation_begins, after=observer.generation_ends):
        yield


@contextmanager
def watch_method(
    owner: Any, name: str, *, before: Told | None = None, after: Callable[[Any], None] | None = None
) -> Iterator[None]:
    """Calls ``before(args, kwargs)`` and ``after(output)`` around every call of a method that is looked up on this very object.

    The method is shadowed on the instance for the length of the context. ``after`` is given ``None`` if the method raised.
    """
    listener = (before, after)
    with _lock:
        shadow = owner.__dict__.get(name)
        if not isinstance(shadow, _Shadow):
            shadow = _Shadow(owner, name)
            owner.__dict__[name] = shadow
        shadow.listening.append(listener)
    try:
        yield
    finally:
        with _lock:
            shadow.listening.remove(listener)
            # The user may have replaced it meanwhile; theirs stays.
            if not shadow.listening and owner.__dict__.get(name) is shadow:
                if shadow.users_own is None:
                    del owner.__dict__[name]
                else:
                    owner.__dict__[name] = shadow.users_own


class _Shadow:
    """A method of one object with those who listen told before and after."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.users_own, self.method = owner.__dict__.get(name), getattr(owner, name)
        self.listening: list[tuple[Told | None, Callable[[Any], None] | None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        told = list(self.listening)
        output = None
        try:
            for before, _ in told:
                if before is not None:
                    before(args, kwargs)
            output = self.method(*args, **kwargs)
        finally:
            for _, after in told:
                if after is not None:
                    after(output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the owner made inside the context must run by itself, not through the original.
        twin = memo.get(id(self.owner), self.owner)
        return (
            MethodType(getattr(type(twin), self.name), twin)
            if self.users_own is None
            else copy.deepcopy(self.users_own, memo)
        )
