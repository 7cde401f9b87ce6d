"""The ways to see the q, k, v and mask that an attention kernel is really given, without touching the model."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from probe.errors import CaptureError

__all__ = [
    "EDITS",
    "AttentionCall",
    "Edit",
    "Editor",
    "Watcher",
    "edit_registry",
    "edits_of",
    "entered",
    "forestall_registry",
    "require_known_kernel",
    "rounded_by_autocast",
    "watch_registry",
]


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of an attention kernel: what went in and what came out.

    Attributes
    ----------
    kernel : the name under which the model chose it: "sdpa", "eager", "flash_attention_2", ...; "scaled_dot_product_attention"
        where the model called torch's own function.
    query : (batch, head, query, channel), after rotary embedding.
    key, value : (batch, key head, key, channel), the cache included.
    mask : (batch or 1, head or 1, query or 1, key) bool, True where attention is allowed, or float to be added; or the
        (batch, key) padding mask of flash attention; or ``None``.
    output : (batch, query, head, channel), the kernel's own.
    options : everything else it was given: scaling, softcap, sliding_window, dropout, is_causal, ...
    """

    kernel: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    output: Tensor
    options: dict[str, Any]

    def of(self, number: int) -> AttentionCall:
        """The part of the call that is about one sequence of the batch; nothing is copied."""
        if self.query.shape[0] == 1:
            return self
        own = slice(number, number + 1)
        # A mask may be the same for all.
        mask = self.mask[own] if isinstance(self.mask, Tensor) and self.mask.shape[0] > 1 else self.mask
        query, key, value, output = (one[own] for one in (self.query, self.key, self.value, self.output))
        return replace(self, query=query, key=key, value=value, output=output, mask=mask)


Watcher = Callable[[nn.Module, AttentionCall], None]
Editor = Callable[[nn.Module, AttentionCall], Tensor]
Forestaller = Callable[[nn.Module, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class Edit:
    """An editor, and what a record made under it says was done."""

    name: str
    apply: Editor
    order: int = field(default_factory=itertools.count().__next__)


# One table for the whole process: contexts may be nested, overlap, or live in several threads.
_lock = threading.RLock()
_watchers: dict[nn.Module, tuple[Watcher, ...]] = {}
_editors: dict[nn.Module, tuple[Edit, ...]] = {}
_forestallers: dict[nn.Module, tuple[Forestaller, ...]] = {}
_original: Any = None

#: The edits that are open, a table for each tap; the second adds its own.
EDITS: list[dict[nn.Module, tuple[Edit, ...]]] = [_editors]


@contextmanager
def watch_registry(modules: Iterable[nn.Module], watcher: Watcher) -> Iterator[None]:
    """Calls ``watcher(module, call)`` after each attention call that one of these transformers modules makes.

    transformers looks its attention function up at every call. For the length of the context this look-up hands out the same
    function behind a thin pass-through; no registry entry, configuration, name or mask changes, so models that branch on the
    name of their attention, and attention functions that a user registered, behave as before. "eager" passes the same way.
    """
    with entered(_watchers, modules, watcher, install=_install, uninstall=_uninstall_if_idle):
        yield


def require_known_kernel(modules: Iterable[nn.Module]) -> None:
    """Nothing, unless these modules are set to a kernel whose mask or rows cannot be read, whatever it is given.

    Raises
    ------
    CaptureError
        If they are.
    """
    for module in modules:
        kernel = str(getattr(getattr(module, "config", None), "_attn_implementation", None))
        if kernel == "flex_attention" or "paged" in kernel:
            found = "masks by a function" if kernel == "flex_attention" else "packs sequences into one"
            raise CaptureError(
                f"The attention kernel {kernel!r} {found}, which is not understood; use another: "
                'model.set_attn_implementation("sdpa").'
            )


def rounded_by_autocast(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as a kernel under autocast works with them; as they are where its output is of their own number type."""
    if output.dtype == query.dtype or not torch.is_autocast_enabled(query.device.type):
        return query, key, value
    return query.to(output.dtype), key.to(output.dtype), value.to(output.dtype)


@contextmanager
def edit_registry(modules: Iterable[nn.Module], editor: Editor, *, name: str) -> Iterator[None]:
    """Puts ``editor(module, call)`` in the place of each attention output of these modules, before the output projection.

    The same place as ``watch_registry``: those who watch see what the kernel itself gave out; of several editors each gets what the
    one before it gave. ``name`` says what is done, for ``edits_of``.
    """
    with entered(_editors, modules, Edit(name, editor), install=_install, uninstall=_uninstall_if_idle):
        yield


@contextmanager
def forestall_registry(modules: Iterable[nn.Module], forestaller: Forestaller) -> Iterator[None]:
    """Calls ``forestaller(module, key, value)`` before each attention call of these modules, which it may keep from being made by
    raising: for passes that are run for the keys and values alone.
    """
    with entered(_forestallers, modules, forestaller, install=_install, uninstall=_uninstall_if_idle):
        yield


def edits_of(modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """Names of the edits that are open on any of these modules now, through any tap, in the order in which they began."""
    tables = [table for table in EDITS if table]
    if not tables:  # the usual case, and asked at every forward pass: a large model has thousands of modules
        return ()
    here = {edit for module in modules for table in tables for edit in table.get(module, ())}
    return tuple(edit.name for edit in sorted(here, key=lambda edit: edit.order))


@contextmanager
def entered(
    table: dict[nn.Module, tuple[Any, ...]],
    modules: Iterable[nn.Module],
    function: Any,
    *,
    install: Callable[[], None],
    uninstall: Callable[[], None],
) -> Iterator[None]:
    """The function stands in the table under each of these modules, and the tap is installed, for the length of the context."""
    listed = list(modules)
    try:
        with _lock:
            for module in listed:
                table[module] = (*table.get(module, ()), function)
            install()
        yield
    finally:
        with _lock:
            for module in listed:
                # An interrupt may have come before all of them were entered.
                left = tuple(one for one in table.pop(module, ()) if one is not function)
                if left:
                    table[module] = left
            uninstall()


def _install() -> None:
    global _original
    from transformers.modeling_utils import AttentionInterface

    if _original is None:
        _original = AttentionInterface.get_interface
        AttentionInterface.get_interface = _get_interface


def _uninstall_if_idle() -> None:
    global _original
    from transformers.modeling_utils import AttentionInterface

    # Somebody may have wrapped the look-up after us; theirs then still needs ours beneath it, which passes through.
    idle = not _watchers and not _editors and not _forestallers
    if idle and _original is not None and AttentionInterface.get_interface is _get_interface:
        AttentionInterface.get_interface = _original
        _original = None


def _get_interface(interface: Any, attn_implementation: str, default: Any) -> Any:
    kernel = _original(interface, attn_implementation, default)
    return functools.partial(_pass_through, kernel, attn_implementation or "eager")


def _pass_through(kernel: Any, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    for forestaller in _forestallers.get(module, ()):
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        forestaller(module, given["key"], given["value"])
    result = kernel(module, *args, **kwargs)
    for watcher in _watchers.get(module, ()):
        watcher(module, _call(name, module, args, kwargs, result))
    for edit in _editors.get(module, ()):
        edited = edit.apply(module, _call(name, module, args, kwargs, result))
        result = (edited, *result[1:]) if isinstance(result, tuple) else edited
    return result


def _call(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> AttentionCall:
    given = dict(zip(("query", "key", "value", "attention_mask"), args, strict=False)) | kwargs
    tensors = [given.get(part) for part in ("query", "key", "value")]
    output = result[0] if isinstance(result, tuple) else result
    shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in (*tensors, output)]
    if len(args) > 4 or not _agree(shapes):
        raise CaptureError(
            f"The attention function {name!r} of {type(module).__name__} was called with a signature that is not known: expected "
            f"query, key and value as (batch, head, position, channel) and an output as (batch, position, head, channel), found "
            f"{shapes}; this version of transformers is not supported for it."
        )
    options = {key: value for key, value in given.items() if key not in ("query", "key", "value", "attention_mask")}
    query, key, value = tensors
    assert isinstance(query, Tensor)  # for the type checker: the shapes above say so
    assert isinstance(key, Tensor)
    assert isinstance(value, Tensor)
    query, key, value = rounded_by_autocast(query, key, value, output)
    return AttentionCall(name, query, key, value, given.get("attention_mask"), output, options)


def _agree(shapes: Sequence[Any]) -> bool:
    """True if query, key, value and output can be those of one attention: their layout might be another in another version."""
    if any(isinstance(shape, str) or len(shape) != 4 for shape in shapes):
        return False
    (batch, heads, rows, channels), key, value, output = shapes
    shared = key[1] > 0 and heads % key[1] == 0
    alike = key[:3] == value[:3] and key[0] == batch and key[3] == channels
    return bool(shared and alike and output == (batch, rows, heads, value[3]))
