"""``python -m tests.trust``: every promise, how often it was tried and how often it fell."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.trust.ledger import parse_names

ROOT = Path(__file__).resolve().parents[2]


def run_tests(*, full: bool, only: str) -> tuple[dict, int]:
    """What the tests wrote into their ledger, and pytest's exit code. Their own output goes to standard error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.json"
        options = ["--trust", "full" if full else "quick", "--trust-ledger", str(path), "--trust-only", only]
        command = [sys.executable, "-m", "pytest", "tests/trust", "-p", "no:cacheprovider", *options]
        code = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode
        if not path.exists():
            raise SystemExit(f"tests.trust: pytest ended with {code} before it wrote its ledger")
        return json.loads(path.read_text(encoding="utf-8")), code


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
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args(argv)
    try:
        parse_names(chosen.only)
    except ValueError as problem:
        parser.error(str(problem))
    report, code = run_tests(full=chosen.full, only=chosen.only)
    if chosen.json:
        print(json.dumps(report, indent=1))
    else:
        print_table(report)
    held = code == 0 and not report["silent_wrong"] and all(one["trials"] for one in report["lines"])
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
