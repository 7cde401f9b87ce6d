"""The tap for attention that calls no attention function: q, k and v are what its projections give out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from probe.capture.hooks import watch_forward
from probe.capture.taps import AttentionCall, Watcher
from probe.errors import CaptureError

__all__ = ["UNSEEN", "watch_projections"]

#: The name of a kernel that may be any: a softmax written out, or an attention function.
UNSEEN = "unseen, behind its projections"
_PARTS = ("query", "key", "value")


@contextmanager
def watch_projections(modules: Iterable[nn.Module], watcher: Watcher) -> Iterator[None]:
    """Calls ``watcher(module, call)`` after each forward of modules whose parts ``query``, ``key`` and ``value`` are projections.

    What lies between the projections and the output is not seen: whether it is a plain softmax is for the certificate to say, with
    which the module's own output must be rebuilt.

    Raises
    ------
    CaptureError
        If a module has no such parts, or did not use each of them once.
    """
    listed = list(modules)
    owners: dict[nn.Module, tuple[nn.Module, str]] = {
        part: (module, name)
        for module in listed
        for name in _PARTS
        if isinstance(part := getattr(module, name, None), nn.Module)
    }
    if len(owners) != len(_PARTS) * len(listed):
        raise CaptureError(
            f"{', '.join(sorted({type(one).__name__ for one in listed}))} has no projections called {', '.join(_PARTS)}, so its "
            "attention cannot be read; this version of transformers is not supported for it."
        )
    # Several threads may use one module at a time.
    given: dict[tuple[int, nn.Module], dict[str, list[Tensor]]] = {}

    def begins(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[threading.get_ident(), module] = {name: [] for name in _PARTS}

    def projected(part: nn.Module, output: Tensor) -> None:
        module, name = owners[part]
        given[threading.get_ident(), module][name].append(output)

    def ends(module: Any, output: Any) -> None:
        found = given.pop((threading.get_ident(), module))
        if any(len(one) != 1 for one in found.values()):
            counts = ", ".join(f"{name} {len(one)} times" for name, one in found.items())
            raise CaptureError(f"{type(module).__name__} used its projections otherwise than once each: {counts}.")
        heads = module.num_attention_heads
        query, key, value = (found[name][0].unflatten(-1, (heads, -1)).transpose(1, 2) for name in _PARTS)
        own = output[0] if isinstance(output, tuple) else output
        dropout = float(module.config.attention_probs_dropout_prob) if module.training else 0.0
        options = {"is_causal": False, "dropout": dropout}
        watcher(module, AttentionCall(UNSEEN, query, key, value, None, own.unflatten(-1, (heads, -1)), options))

    with watch_forward(listed, before=begins, after=ends), watch_forward(owners, after=projected):
        yield
