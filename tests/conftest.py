"""Fixtures for tests that go through the shell: a checkpoint folder, photographs, and `probe` itself, in this process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests import watch

# Before anything is imported that reads them: no test may reach for the network or a screen.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

watch.install()
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser):
    promises = parser.getgroup("trust", "how often the promises of tests/trust are tried")
    promises.addoption(
        "--trust", choices=("quick", "full"), default="quick", help="a sample, or the counts of the list"
    )
    promises.addoption("--trust-ledger", default="", metavar="FILE", help="write trials and failures there, as JSON")
    promises.addoption("--trust-only", default="", metavar="R19,R21", help="of tests/trust, try these promises alone")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "promises(*names, target): the promises of tests/trust/ledger.py that a test tries; it is one trial, or counts its own",
    )
    config.addinivalue_line("markers", "local_sockets(reason): a test that talks to programs on this machine")


@pytest.fixture(autouse=True)
def _watched(request):
    """Fails the test that unpickles, reaches for the network, starts a program or reads where nothing of ours lies."""
    watch.running.update(test=request.node.nodeid, local=request.node.get_closest_marker("local_sockets") is not None)
    yield
    watch.running.update(local=False)
    problems = watch.seen[request.node.nodeid] = watch.news()
    if problems:
        pytest.fail("\n".join(problems))


def pytest_sessionfinish(session):
    """What was done outside of any test, such as while modules were imported, fails the run."""
    if problems := watch.news():
        print("\n" + "\n".join(problems))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def coco_mini():
    """The folder of real photographs with masks and captions."""
    folder = DATA / "coco-mini"
    if not (folder / "instances.json").is_file():
        pytest.skip(f"the photographs are not here: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """``checkpoint("crop")``: a LLaVA folder as `save_pretrained` makes it; random weights, real processor and chat template."""
    from tests.tiny import tiny_llava

    made = {}

    def make(preparation="crop"):
        if preparation not in made:
            subject = tiny_llava(preparation=preparation)
            made[preparation] = tmp_path_factory.mktemp("checkpoints") / preparation
            subject.model.save_pretrained(made[preparation])
            subject.processor.save_pretrained(made[preparation])
        return made[preparation]

    return make


@pytest.fixture
def shell(capsys):
    """``shell("score", "--limit", 3)``: exit code, standard output and standard error of that command, in this process."""
    import torch

    from probe.cli import main

    torch.set_num_threads(1)

    def run(*argv):
        capsys.readouterr()
        try:
            code = main([str(one) for one in argv])
        except SystemExit as ended:  # --help and --version end the process
            code = ended.code
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def refused(shell, tmp_path):
    """``refused("score", "--limit", 0)``: the one line, certain to be all there is, with nothing written into ``--out``."""
    out = tmp_path / "out"

    def run(*argv, writes=True):
        code, printed, noise = shell(*argv, *(["--out", out] if writes else []))
        assert (code, printed) == (2, ""), noise
        assert noise.startswith("probe: ")
        assert noise.count("\n") == 1, noise
        assert "Traceback" not in noise
        assert not out.exists() or not list(out.rglob("*.*"))
        return noise[len("probe: ") : -1]

    return run


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth, so that JPEG keeps it, and unlike any of its own turns and mirror images."""
    row, col = np.mgrid[:40, :64]
    return np.stack([row * 6, col * 4, 60 + row + col], axis=2).astype(np.uint8)
