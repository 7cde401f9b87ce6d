"""The only file that registers hooks: they watch, and all of them are gone when the context ends, however it ends."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from probe.errors import CaptureError

__all__ = ["Observer", "hook_tables", "require_uncompiled", "watch_forward", "watch_generate"]

Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[nn.Module, Any], None]


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
_observers: WeakKeyDictionary[nn.Module, list[Observer]] = WeakKeyDictionary()


@contextmanager
def watch_generate(model: Any, observer: Observer) -> Iterator[None]:
    """Tells ``observer`` of every ``model.generate`` call; the method is shadowed on the instance for the length of the context."""
    with _lock:
        listening = _observers.setdefault(model, [])
        listening.append(observer)
        if len(listening) == 1:
            _shadow_generate(model, listening)
    try:
        yield
    finally:
        with _lock:
            listening.remove(observer)
            if not listening:
                _observers.pop(model, None)
                _unshadow_generate(model)


class _Shadow:
    """``model.generate`` with observers told before and after."""

    def __init__(self, model: Any, listening: list[Observer]) -> None:
        self.model, self.listening = model, listening
        self.users_own, self.generate = model.__dict__.get("generate"), model.generate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        told = list(self.listening)
        output = None
        try:
            for one in told:
                one.generation_begins(args, kwargs)
            output = self.generate(*args, **kwargs)
        finally:
            for one in told:
                one.generation_ends(output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the model made inside the context must generate by itself, not through the original.
        twin = memo.get(id(self.model), self.model)
        return MethodType(type(twin).generate, twin) if self.users_own is None else copy.deepcopy(self.users_own, memo)


def _shadow_generate(model: Any, listening: list[Observer]) -> None:
    model.__dict__["generate"] = _Shadow(model, listening)


def _unshadow_generate(model: Any) -> None:
    shadow = model.__dict__.get("generate")
    if not isinstance(shadow, _Shadow):
        return  # the user replaced it meanwhile; theirs stays
    if shadow.users_own is None:
        del model.__dict__["generate"]
    else:
        model.__dict__["generate"] = shadow.users_own
