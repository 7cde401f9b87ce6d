"""The ledger counts what it is told, and a promise that falls fails its test."""

from __future__ import annotations

import json

import pytest

from tests.trust.__main__ import main
from tests.trust.ledger import PROMISES, Ledger, merge, parse_names, settle

pytest_plugins = ["pytester"]


def test_thirty_seven_promises():
    assert list(PROMISES) == [f"R{number}" for number in range(1, 38)]


def test_counts_of_several_tests_add_up():
    ledger = Ledger()
    ledger.open("R10", target="0 misses").add(trials=5, failures=2, silent_wrong=1)
    ledger.open("R10", target="0 misses").trial(True)
    ledger.open("R11", target="0 wrong").trial(False, silent=True)
    report = ledger.report()
    assert [one["name"] for one in report["lines"]] == list(PROMISES)
    counted = {one["name"]: (one["trials"], one["failures"], one["silent_wrong"]) for one in report["lines"]}
    assert (counted["R10"], counted["R11"], counted["R12"]) == ((6, 2, 1), (1, 1, 1), (0, 0, 0))
    assert (report["trials"], report["silent_wrong"]) == (7, 2)


def test_what_falls_fails():
    line = Ledger().open("R10", target="0 misses", least=2)
    line.trial(True)
    with pytest.raises(AssertionError, match="tried 1 times, not 2"):
        line.settle()
    line.trial(False, silent=True, what="token 3")
    with pytest.raises(AssertionError, match=r"1 of 2 failed, 1 of them silently\n  token 3"):
        line.settle()
    other = Ledger().open("R11", target="0 wrong")
    with pytest.raises(AssertionError, match=r"(?s)R10.*R11.*tried 0 times"):
        settle(line, other)
    with pytest.raises(ValueError, match="cannot be counted"):
        line.add(trials=1, silent_wrong=1)


def test_names():
    assert parse_names("R21, R19") == ("R19", "R21")
    assert parse_names("") == tuple(PROMISES)
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "R99"])


def test_reports_of_several_processes_are_one():
    reports = []
    for trials, failures, target in ((3, 1, "0 misses; more"), (5, 2, "0 misses"), (0, 0, "")):
        ledger = Ledger()
        if trials:
            ledger.open("R2", target=target).add(trials=trials, failures=failures, silent_wrong=failures)
        reports.append(ledger.report(("R1", "R2")))
    found = merge(reports)
    assert [(one["name"], one["trials"], one["failures"], one["target"]) for one in found["lines"]] == [
        ("R1", 0, 0, ""),
        ("R2", 8, 3, "0 misses; more"),
    ]
    assert (found["trials"], found["silent_wrong"], found["profile"]) == (8, 3, "quick")
    assert merge(reports[:1]) == reports[0]


TESTS = """
import pytest

@pytest.mark.promises("R1")
def test_kept(line):
    kept = line("R1", target="0 of 3")
    kept.add(trials=3)
    kept.settle()

@pytest.mark.promises("R2")
def test_ends_early(line):
    line("R2", target="0").trial(True)
    raise RuntimeError

@pytest.mark.promises("R3")
def test_never_settled(line):
    line("R3", target="0").trial(True)

def test_unmarked(line):
    line("R4", target="0")

@pytest.mark.promises("R4", target="0")
@pytest.mark.parametrize("number", range(3))
def test_itself(number):
    assert number != 1
"""


def test_a_test_that_ends_early_or_never_settles_is_a_failure(pytester, request):
    here = request.path.parent
    pytester.makeconftest((here.parent / "conftest.py").read_text(encoding="utf-8"))
    folder = pytester.mkdir("trust")
    (folder / "conftest.py").write_text((here / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_planted.py").write_text(TESTS, encoding="utf-8")
    found = pytester.inline_run("--trust-ledger", "ledger.json", "-p", "no:cacheprovider")
    passed, _, failed = found.listoutcomes()
    assert [one.location[2] for one in passed] == [
        "test_kept",
        "test_never_settled",
        "test_itself[0]",
        "test_itself[2]",
    ]
    assert [(one.location[2], one.when) for one in failed] == [
        ("test_ends_early", "call"),
        ("test_never_settled", "teardown"),
        ("test_unmarked", "call"),
        ("test_itself[1]", "call"),
    ]
    lines = json.loads((pytester.path / "ledger.json").read_text())["lines"]
    assert [(one["trials"], one["failures"]) for one in lines[:5]] == [(3, 0), (2, 1), (2, 1), (3, 1), (0, 0)]
    pytester.inline_run("--trust-ledger", "ledger.json", "--trust-only", "R1", "-p", "no:cacheprovider").assertoutcome(
        passed=1
    )
    lines = json.loads((pytester.path / "ledger.json").read_text())["lines"]
    assert [(one["name"], one["trials"]) for one in lines] == [("R1", 3)]
