"""Many inputs tried in a forked process, where a crash, a hang and memory can be seen and cost nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A hang is this much work on one input; waiting shows as time alone, of which other processes may take much.
WORK, WAIT = 5.0, 60.0
#: What one input may take beside what the process held before.
MEMORY = 512 * 2**20


@dataclass(frozen=True)
class Outcome:
    """What became of one input: "done" with what the action gave, or "crash" or "hang"; ``peak`` is in bytes."""

    item: Any
    kind: str
    value: Any = None
    peak: int = 0


def outcomes(action: Callable[[Any], Any], items: Sequence[Any], *, work: float = WORK) -> Iterator[Outcome]:
    """What ``action`` gave for each of the inputs, in order; what it gives must be JSON. ``work`` in seconds is no hang yet.

    One process, forked anew after a crash or a hang, tries one after the other. Its address space may grow by `MEMORY`.
    """
    place = 0
    while place < len(items):
        child, reading = _fork(action, items, place)
        try:
            for line in _lines(reading):
                if line is None:  # nothing was heard for too long
                    yield Outcome(items[place], "hang")
                    place += 1
                    break
                found = json.loads(line)
                yield Outcome(items[place], "hang" if found["work"] > work else "done", found["value"], found["peak"])
                place += 1
            else:
                if place < len(items):
                    yield Outcome(items[place], "crash")
                    place += 1
        finally:
            os.close(reading)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _fork(action: Callable[[Any], Any], items: Sequence[Any], place: int) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        held = _status("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
        with os.fdopen(writing, "w") as told:
            for item in items[place:]:
                before, began = _reset_peak(), time.process_time()
                value = action(item)
                work, peak = time.process_time() - began, _status("VmHWM") - before
                told.write(json.dumps({"value": value, "work": work, "peak": peak}) + "\n")
                told.flush()
        os._exit(0)
    finally:
        os._exit(1)  # whatever escaped the action counts as a crash


def _lines(reading: int) -> Iterator[bytes | None]:
    rest = b""
    while True:
        ready, _, _ = select.select([reading], [], [], WAIT)
        if not ready:
            yield None
            return
        data = os.read(reading, 2**16)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _reset_peak() -> int:
    """The memory that is held now, from which the peak is counted again."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")
