"""A browser and a JupyterLab for tests, and what they must not do."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM_FLAGS", "Watched", "chromium", "lab_server", "notebook"]

CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ROOT = Path(__file__).parents[2]


class Watched:
    """A page whose errors and requests are kept.

    Attributes
    ----------
    faults : messages of its console that are errors, and errors that nobody caught.
    requests : addresses that it asked for, but for what lies within the page itself (data and blobs).
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda one: self.faults.append(str(one)))
        page.on("request", lambda one: self._note(one.url))
        page.on("websocket", lambda one: self._note(one.url))

    def _hear(self, one: Any) -> None:
        # JupyterLab asks its server for a language server that is not there, whatever notebook is open.
        if one.type == "error" and "/lsp/status" not in one.location.get("url", ""):
            self.faults.append(one.text)

    def _note(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")):
            self.requests.append(url)

    def do(self, script: str, argument: Any = None) -> Any:
        """What a function of (explorer, argument) gives back: called when all is drawn, and what it sets off is waited for."""
        return self.page.evaluate(
            "async (argument) => {"
            "  const explorer = document.querySelector('.groundprobe').explorer;"
            "  await explorer.settled;"
            f"  const found = await ({script})(explorer, argument);"
            "  await explorer.settled;"
            "  return found;"
            "}",
            argument,
        )

    def until(self, condition: str, *, seconds: float = 60) -> None:
        """Waits for a condition in the page; the driver's own way of waiting needs `eval`, which a page forbids."""
        self.page.evaluate(
            """([condition, end]) => new Promise((done, fail) => {
              const look = () => {
                if (CONDITION) done();
                else if (performance.now() > end) fail(new Error(`never came true: ${condition}`));
                else setTimeout(look, 10);
              };
              end += performance.now();
              look();
            })""".replace("CONDITION", condition),
            [condition, 1e3 * seconds],
        )

    def wait(self) -> None:
        """Until the first map is drawn."""
        self.until("document.querySelector('.groundprobe')?.explorer?.firstPaint")


def notebook(path: Path, *cells: str) -> None:
    """Writes a notebook with these cells of code."""
    made = [
        {"cell_type": "code", "id": f"cell-{i}", "execution_count": None, "metadata": {}, "outputs": [], "source": one}
        for i, one in enumerate(cells)
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.write_text(
        json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8"
    )


@contextmanager
def lab_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Address and token of a JupyterLab of this Python that serves a folder on this machine alone, until the context ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, home = secrets.token_hex(16), folder / ".jupyter"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.collaborative=False",
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _until_it_answers(f"{address}/api?token={token}", server, folder / "server.log")
            yield address, token
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _until_it_answers(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")


def chromium() -> str | None:
    """The path of Chromium, if one is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")
