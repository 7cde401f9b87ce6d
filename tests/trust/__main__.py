"""``python -m tests.trust``: every promise, how often it was tried and how often it fell."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.trust.ledger import merge, parse_names

ROOT = Path(__file__).resolve().parents[2]
#: Begun first where several files are tried side by side.
LONGEST = ("test_no_trace", "test_memory", "test_truth", "test_generation", "test_durability")


def run_tests(files: Sequence[str], *, full: bool, only: str) -> tuple[dict, int]:
    """What the tests of these files wrote into their ledger, and pytest's exit code. Their own output goes to standard error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.json"
        options = ["--trust", "full" if full else "quick", "--trust-ledger", str(path), "--trust-only", only]
        command = [sys.executable, "-m", "pytest", *files, "-p", "no:cacheprovider", *options]
        # What tests leave in pytest's own folder is kept apart, since several processes would clear each other's.
        code = subprocess.run(
            [*command, "--basetemp", f"{folder}/tests"], cwd=ROOT, stdout=sys.stderr, check=False
        ).returncode
        if not path.exists():
            raise SystemExit(f"tests.trust: pytest ended with {code} before it wrote its ledger")
        return json.loads(path.read_text(encoding="utf-8")), 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code


def run_side_by_side(jobs: int, *, full: bool, only: str) -> tuple[dict, int]:
    """The same of all files, each in a process of its own, so many at a time."""
    files = [str(one.relative_to(ROOT)) for one in Path(__file__).parent.glob("test_*.py")]
    files.sort(key=lambda one: (Path(one).stem not in LONGEST, one))
    with ThreadPoolExecutor(jobs) as workers:
        found = list(workers.map(lambda one: run_tests([one], full=full, only=only), files))
    return merge([report for report, _ in found]), max(code for _, code in found)


def print_table(report: dict) -> None:
    """Print the report for people."""
    table = Table(title=f"{report['trials']:,} trials, {report['silent_wrong']} silently wrong ({report['profile']})")
    for name in ("", "promise", "trials", "failures", "target", "seconds"):
        table.add_column(name, justify="right" if name in ("trials", "failures", "seconds") else "left")
    for one in report["lines"]:
        counts = f"{one['trials']:,}", f"{one['failures']:,}"
        table.add_row(one["name"], one["promise"], *counts, one["target"], f"{one['seconds']:.1f}")
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    """0 where everything asked for was tried and held, 1 where not, 2 where what was asked for does not exist."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("--full", action="store_true", help="reach the counts of the list; much slower")
    parser.add_argument("--only", default="", metavar="R19,R21", help="these promises alone")
    parser.add_argument("--jobs", type=int, default=1, help="so many processes at a time")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args(argv)
    try:
        parse_names(chosen.only)
    except ValueError as problem:
        parser.error(str(problem))
    options = {"full": chosen.full, "only": chosen.only}
    report, code = (
        run_side_by_side(chosen.jobs, **options) if chosen.jobs > 1 else run_tests(["tests/trust"], **options)
    )
    if chosen.json:
        print(json.dumps(report, indent=1))
    else:
        print_table(report)
    held = code == 0 and not report["silent_wrong"] and all(one["trials"] for one in report["lines"])
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
