"""The second tap: what torch's own ``scaled_dot_product_attention`` is given while a watched module runs.

For diffusers, and for any other PyTorch module that looks the function up where torch keeps it. Two decisions:

- One attribute of ``torch.nn.functional`` is replaced for the length of the context. A ``TorchFunctionMode`` sees the same calls,
  but it stands before *every* tensor operation. In ``tests/speed/test_tap_speed.py``, paired passes of a U-Net with 14
  attention calls on one core took 1.06 times as long with the attribute replaced and 1.35 times with the mode where a pass takes
  6 milliseconds, 1.02 and 1.13 where it takes 22, 1.01 and 1.06 where it takes 65.
- Which module is running is read from the calls that are under way in this very thread, innermost first. Forward hooks would have
  to keep a stack for each thread, and torch skips even the hooks that it calls "always" after an interrupt, so that a stale entry
  could claim a call that is not its own. What is not kept cannot go stale, and other threads pass through untouched.

A module that got hold of the function by name (``from torch.nn.functional import scaled_dot_product_attention``) runs unseen;
whoever watches has to count the calls, as the recorders do.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from probe.capture.taps import EDITS, AttentionCall, Edit, Editor, Watcher, entered, rounded_by_autocast
from probe.errors import CaptureError

__all__ = ["KERNEL", "edit_sdpa", "torch_kernel", "watch_sdpa"]

#: The name of the function, and of the kernel in every call that is seen here.
KERNEL = "scaled_dot_product_attention"

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
# The code of every call of a module: a frame that runs it belongs to the module that is its "self".
_MODULE_CALL = nn.Module.__call__.__code__

# One table for the whole process: contexts may be nested, overlap, or live in several threads.
_lock = threading.RLock()
_watchers: dict[nn.Module, tuple[Watcher, ...]] = {}
_editors: dict[nn.Module, tuple[Edit, ...]] = {}
EDITS.append(_editors)
# What stands in the function's place, and the function itself.
_installed: Callable[..., Tensor] | None = None
_original: Callable[..., Tensor] = torch.nn.functional.scaled_dot_product_attention


@contextmanager
def watch_sdpa(modules: Iterable[nn.Module], watcher: Watcher) -> Iterator[None]:
    """Calls ``watcher(module, call)`` after each ``scaled_dot_product_attention`` that one of these modules makes.

    A call belongs to the innermost of these modules that is running in its thread. The kernel and what it gives out stay the same,
    bit for bit. In a compiled graph nothing is seen.
    """
    with entered(_watchers, modules, watcher, install=_install, uninstall=_uninstall_if_idle):
        yield


@contextmanager
def edit_sdpa(modules: Iterable[nn.Module], editor: Editor, *, name: str) -> Iterator[None]:
    """Puts ``editor(module, call)``, (batch, query, head, channel), in the place of each attention output of these modules.

    The same place as ``watch_sdpa``: those who watch see what the kernel itself gave out; of several editors each gets what the one
    before it gave. ``name`` says what is done, for ``edits_of``.
    """
    with entered(_editors, modules, Edit(name, editor), install=_install, uninstall=_uninstall_if_idle):
        yield


def torch_kernel(*args: Any, **kwargs: Any) -> Tensor:
    """What torch's function itself gives out, seen by nobody: for an editor, which is called in the middle of such a call."""
    return _original(*args, **kwargs)


def _install() -> None:
    global _installed, _original
    if _installed is None:
        _original = torch.nn.functional.scaled_dot_product_attention
        _installed = functools.wraps(_original)(functools.partial(_pass_through, _original))
        torch.nn.functional.scaled_dot_product_attention = _installed


def _uninstall_if_idle() -> None:
    global _installed
    # Somebody may have replaced the function after us; theirs then still needs ours beneath it, which passes through.
    idle = _installed is not None and not _watchers and not _editors
    if idle and torch.nn.functional.scaled_dot_product_attention is _installed:
        torch.nn.functional.scaled_dot_product_attention = _original
        _installed = None


def _pass_through(original: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
    result = original(*args, **kwargs)
    # Somebody else's compiled model takes no notice of us; frames cannot be read while one is made.
    if torch.compiler.is_compiling():
        return result
    module = _running()
    if module is None:
        return result
    for watcher in _watchers.get(module, ()):
        watcher(module, _call(module, args, kwargs, result))
    for edit in _editors.get(module, ()):
        edited = edit.apply(module, _call(module, args, kwargs, result)).transpose(1, 2)
        result = edited if result.ndim == 4 else edited[:, 0]
    return result


def _running() -> nn.Module | None:
    """The innermost module of those entered whose call is under way in this thread."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            module: nn.Module = frame.f_locals["self"]
            if module in _watchers or module in _editors:
                return module
        frame = frame.f_back
    return None


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> AttentionCall:
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    query, key, value, mask = (given.pop(name, None) for name in _NAMES[:4])
    shapes = [tuple(one.shape) for one in (query, key, value, result) if isinstance(one, Tensor)]
    if len(shapes) == 4 and all(len(shape) == 3 and shape[0] == 1 for shape in shapes):
        # A head that is a module of its own needs no dimension of heads; what comes first is a batch of one.
        query, key, value, result = (one[:, None] for one in (query, key, value, result))
        shapes = [(*shape[:1], 1, *shape[1:]) for shape in shapes]
    if len(shapes) != 4 or any(len(shape) != 4 for shape in shapes):
        raise CaptureError(
            f"{type(module).__name__} called {KERNEL} with query, key, value and output of shapes {shapes}; expected four "
            "dimensions each, (batch, head, position, channel)."
        )
    if mask is not None:
        # It may leave out leading dimensions; elsewhere two dimensions mean a padding mask.
        mask = mask[(None,) * (4 - mask.ndim)]
    options = {
        "scaling": given.get("scale"),
        "dropout": given.get("dropout_p", 0.0),
        "is_causal": given.get("is_causal", False),
    }
    query, key, value = rounded_by_autocast(query, key, value, result)
    return AttentionCall(KERNEL, query, key, value, mask, result.transpose(1, 2), options)
