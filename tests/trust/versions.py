"""``python -m tests.trust.versions oldest`` or ``newest``: the tests of capture in an environment of their own.

Of the oldest, transformers and diffusers are the lowest that ``pyproject.toml`` allows, without torch's newest pulled in by others;
of the newest, whatever pip finds. It needs a network, and takes minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: The libraries whose oldest supported version is tried; the others move freely.
FLOORS = ("transformers", "diffusers")
TESTS = ("tests/capture", "tests/trust/test_versions.py", "tests/test_models.py")


def requirements(which: str) -> list[str]:
    """What pip is asked for beside the package."""
    if which == "newest":
        return ["--upgrade", *FLOORS]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lowest = dict(one.split(">=") for one in declared if one.split(">=")[0] in FLOORS)
    # The last mended release of that series.
    return [f"{name}~={lowest[name]}.0" for name in FLOORS]


def main(argv: list[str] | None = None) -> int:
    """pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust.versions", description=__doc__)
    parser.add_argument("which", choices=("oldest", "newest"))
    which = parser.parse_args(argv).which
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "--editable", f"{ROOT}[test]", *requirements(which)], check=True)
        shown = (
            "import torch, transformers as t, diffusers as d; print(torch.__version__, t.__version__, d.__version__)"
        )
        subprocess.run([python, "-c", shown], check=True)
        return subprocess.run(
            [python, "-m", "pytest", *TESTS, "-p", "no:cacheprovider"], cwd=ROOT, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
