"""What the interpreter does while tests run, and what it must not: unpickle, reach the network, start programs, read elsewhere.

Python tells of every such act before it happens (PEP 578). The hook cannot be taken off again, and forked processes inherit it;
what libraries do in C without telling Python, and what programs do that are started, it does not see.
"""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

#: Programs that may be started, and why.
PROGRAMS = {
    os.path.realpath(sys.executable): "tests of imports, hash seeds and several processes start Python anew",
    "java": "METEOR and its tokenizer are Java programs",
    "fc-list": "matplotlib lists the fonts of a machine once",
    "system_profiler": "the same, on macOS",
    "uname": "asks for the kind of processor, as the standard library's platform does; seen on a machine with a GPU",
    "file": "asks for the word size of Python, likewise",
}
#: Files outside of all roots that the standard library looks at by itself.
FILES = ("/etc/mime.types", "/etc/os-release", "/etc/localtime", "/etc/timezone")


def _roots() -> tuple[str, ...]:
    """Folders that may be read: Python and its packages, this project, its data, temporary files, caches, and the system."""
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *filter(None, sys.path)}
    paths |= {
        str(REPOSITORY),
        str(REPOSITORY.parent / "shared"),
        tempfile.gettempdir(),
        os.environ.get("TMPDIR", "/tmp"),
    }
    caches = ("XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "PYTHONPYCACHEPREFIX")
    paths |= {str(Path.home() / ".cache"), *(os.environ[one] for one in caches if os.environ.get(one))}
    paths |= {"/usr", "/lib", "/lib64", "/proc", "/sys", "/dev"}
    return tuple(sorted({f"{form}/" for one in paths for form in (os.path.abspath(one), os.path.realpath(one))}))


ROOTS = _roots()
#: Trusted to hold no link that leads elsewhere, so that its files need not be resolved one by one.
INSTALLED = tuple(f"{one}/" for one in (sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev"))

NETWORK = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
STARTING = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")

#: Which test is running, and whether it said that it talks to this machine.
running: dict[str, Any] = {"test": "", "local": False}
#: The tests that were watched, and what each did that it must not.
seen: dict[str, list[str]] = {}


def _drives_a_browser(program: str) -> bool:
    """Playwright's own driver, which starts Chromium."""
    return running["local"] and program.endswith("/playwright/driver/node")


def wrong(event: str, given: tuple[Any, ...], frame: FrameType | None = None) -> str:
    """What is wrong with an act; empty where it may happen. ``frame`` is where it was done."""
    if event == "open":
        return _wrong_path(given[0])
    if event == "pickle.find_class":
        # Tensors come back from a training's own worker processes as pickles.
        return "" if _within(frame, "/multiprocessing/", "/torch/utils/data/") else f"unpickled {given[0]}.{given[1]}"
    if event in NETWORK:
        return _wrong_address(event, given, frame)
    if event == "subprocess.Popen":
        program = os.fsdecode(given[0])
        known = PROGRAMS.keys() & {program, os.path.realpath(program)} or _drives_a_browser(program)
        return "" if known else f"started {program}"
    if event in STARTING:
        return f"{event} {given[:1]}"
    return ""


def _wrong_address(event: str, given: tuple[Any, ...], frame: FrameType | None) -> str:
    if event.startswith("socket.get"):
        host = given[0]
    else:
        link, address = given[:2]
        if link.family == getattr(socket, "AF_UNIX", None) and _within(frame, "/multiprocessing/"):
            return ""
        host = address[0] if isinstance(address, tuple) else address
    here = host in ("localhost", "127.0.0.1", "::1")
    return "" if here and running["local"] else f"{event} {host!r}"


def _wrong_path(path: Any) -> str:
    if isinstance(path, int):
        return ""
    name = os.path.abspath(os.fsdecode(path))
    if name.startswith(INSTALLED) or name in FILES:
        return ""
    name = os.path.realpath(name)
    return "" if f"{name}/".startswith(ROOTS) else f"opened {name}"


def _within(frame: FrameType | None, *places: str) -> bool:
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in places):
            return True
        frame = frame.f_back
    return False


_watched = frozenset({"open", "pickle.find_class", "subprocess.Popen", *NETWORK, *STARTING})
# Forked processes write to the same file, and its place is kept here, since they do not share variables.
_told = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process lives)
_read = 0


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if event not in _watched:
        return
    if problem := wrong(event, given, sys._getframe(1)):
        os.write(_told.fileno(), f"{running['test']}: {problem}".encode("utf-8", "backslashreplace") + b"\n")


def install() -> None:
    """Begin to watch, for as long as this process lives."""
    sys.addaudithook(_hook)


def news() -> list[str]:
    """What was wrong since this was asked last, a line each."""
    global _read
    size = os.fstat(_told.fileno()).st_size
    data = os.pread(_told.fileno(), size - _read, _read)
    _read = size
    return data.decode("utf-8", "replace").splitlines()
