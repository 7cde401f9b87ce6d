"""The fixtures ``line`` and ``full``, and the choice of promises to try."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import watch
from tests.trust.ledger import Ledger, parse_names

#: Promises that every test of a run is watched for, and the words by which an act against them is told.
WATCHED = {"R24": (": unpickled",), "R25": (": socket.", ": started", ": os.", ": pty."), "R28": (": opened",)}
#: Words that a page must not obey.
MARKUP = (
    "<script>alert(1)</script>", "</title><script>alert(1)</script>", "<img src=x onerror=alert(1)>",
    "'\"><svg onload=alert(1)>", "</pre></details><iframe src=//evil>", "<!--", "]]>", "<style>*{display:none}</style>",
    "&lt;b&gt;", "<a href='javascript:alert(1)'>", "' onmouseover='alert(1)", '" onfocus="alert(1)" autofocus="',
    "</svg><foreignObject>", "<?xml version='1.0'?>", "<!DOCTYPE x>",
)  # fmt: skip
LEDGER = pytest.StashKey[Ledger]()
ENDED_WELL = pytest.StashKey[bool]()
HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    names = set(parse_names(config.getoption("--trust-only")))
    wanted, unwanted = [], []
    for item in items:
        if HERE not in item.path.parents or not config.getoption("--trust-only"):
            wanted.append(item)
            continue
        mine = {name for mark in item.iter_markers("promises") for name in mark.args}
        (wanted if mine & names else unwanted).append(item)
    config.hook.pytest_deselected(items=unwanted)
    items[:] = wanted


def _ledger(config):
    return config.stash.setdefault(LEDGER, Ledger(profile=config.getoption("--trust")))


def pytest_sessionfinish(session):
    path = session.config.getoption("--trust-ledger")
    if path:
        for name, words in WATCHED.items():
            wrong = [test for test, acts in watch.seen.items() if any(word in one for word in words for one in acts)]
            one = _ledger(session.config).open(name, target="0 events in any test of the run")
            one.add(trials=len(watch.seen), failures=len(wrong), what=wrong)
        _ledger(session.config).write(Path(path), parse_names(session.config.getoption("--trust-only")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[ENDED_WELL] = report.passed
        if "line" not in item.fixturenames and not report.skipped:
            _count_outcome(item, report)
    return report


def _count_outcome(item, report):
    """A marked test that counts nothing itself is one trial; were it to fail, who knows what would have told."""
    for mark in item.iter_markers("promises"):
        for name in mark.args:
            one = _ledger(item.config).open(name, target=mark.kwargs["target"])
            one.trial(report.passed, silent=True)
            one.settled, one.seconds = True, report.duration


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def full(request) -> bool:
    """Whether the counts of the list are to be reached, or only a sample of them."""
    return request.config.getoption("--trust") == "full"


@pytest.fixture
def line(request):
    """``line("R10", target="0 misses of 10,000")``: the line of the ledger that this test counts on."""
    opened = []
    marked = {name for mark in request.node.iter_markers("promises") for name in mark.args}

    def open_line(name, *, target, allowed=0, least=1):
        if name not in marked:
            pytest.fail(f"{request.node.name} counts on {name}: mark it with @pytest.mark.promises({name!r})")
        opened.append(_ledger(request.config).open(name, target=target, allowed=allowed, least=least))
        return opened[-1]

    yield open_line
    unsettled = [one for one in opened if not one.settled]
    for one in unsettled:
        one.abandon()
    if unsettled and request.node.stash.get(ENDED_WELL, False):
        pytest.fail(f"{', '.join(one.name for one in unsettled)}: counted but never settled")


@pytest.fixture(scope="session")
def evaluated(checkpoint, tmp_path_factory):
    """The folder of an evaluation over pictures whose captions, masks and file names are markup, and what it printed."""
    from probe.cli import main

    root = tmp_path_factory.mktemp("evaluated")
    data = root / "data"
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 8:30] = 255
    for number, text in enumerate(MARKUP[:9]):
        words = text.replace("/", "\u2215")
        name = f"{number} {words}"[:60]
        phrase = f"ball {number} {words}"
        (data / "masks" / name).mkdir(parents=True)
        levels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(levels).save(data / f"{name}.png")
        Image.fromarray(mask).save(data / "masks" / name / f"{phrase}.png")
        (data / f"{name}.txt").write_text(f"a {phrase} and {text}")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["evaluate", "png", "--data", str(data), "--model", str(checkpoint()), "--out", str(root / "out")])
    assert code == 0
    return root / "out", said.getvalue()
