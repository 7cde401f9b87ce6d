"""How often each promise was tried, and how often it fell.

A test asks for a line, counts on it, and settles it::

    @pytest.mark.promises("R10")
    def test_planted_token(line, full):
        planted = line("R10", target="0 misses of 10,000", least=10_000 if full else 600)
        for ...:
            planted.trial(found == expected, silent=True, what=f"token {j}, patch {p}")
        planted.settle()

A test that asks for no line is one trial itself, by how it ends: ``@pytest.mark.promises("R16", target="right or refused")``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Every line, in order; what each one promises, in a few words.
PROMISES = {
    "R1": "recorded weights equal an eager reference, in every family that has one",
    "R2": "the model's output is bit-identical with recording on",
    "R3": "the certificate: recomputed weights rebuild the kernel's output",
    "R4": "planted faults of capture are caught",
    "R5": "a request that cannot be met is a typed error before the forward pass",
    "R6": "rows sum to 1, masked keys are 0, fully masked rows are flagged",
    "R7": "generating with a cache equals one teacher-forced pass",
    "R8": "a batch equals its singles, images keep their order, padding gets nothing",
    "R9": "both reductions of attend-and-segment equal an independent line",
    "R10": "a token that looks at one patch is found looking at that patch",
    "R11": "words and phrases find their tokens, in every tokenizer and script",
    "R12": "patches cover the pixels that change them, under every preparation and size",
    "R13": "eight EXIF orientations of one picture give one score",
    "R14": "whatever is raised, wherever, the model is as it was",
    "R15": "the user's own hooks, registry entries and processors keep working",
    "R16": "copies, half precision, inference mode, checkpointing, compilation: right or refused",
    "R17": "a thousand images leave no tensor and no memory behind",
    "R18": "peak memory while recording stays near the rows asked for",
    "R19": "hostile image files: one typed error or the right pixels",
    "R20": "pixels are true: 16 bit, CMYK, palette, alpha, frames",
    "R21": "malformed annotations: typed errors that name file and record",
    "R22": "scores equal pycocotools and an independent implementation",
    "R23": "malformed records, plans, checkpoints, tokenizers: typed errors, nothing half-written",
    "R24": "no pickle is executed",
    "R25": "no network and no subprocess unless asked for",
    "R26": "remote code is trusted only where the caller writes so",
    "R27": "hostile packs execute nothing and write nothing outside",
    "R28": "paths inside data files cannot leave their root, devices do not hang",
    "R29": "captions and labels inject nothing into what is written",
    "R30": "a sweep killed at any moment resumes with nothing lost, doubled or torn",
    "R31": "a full or failing disk: typed error, readable store, exact resume",
    "R32": "several processes on one store commit each cell once",
    "R33": "a flipped byte or a cut is detected or harmless",
    "R34": "a result is keyed by all that it depends on",
    "R35": "the same command twice writes identical bytes",
    "R36": "oldest and newest libraries pass; a changed signature is refused",
    "R37": "the numbers in a figure are the numbers stored",
}


@dataclass
class Line:
    """One promise as one test tried it: trials, failures, and how many of those were silent.

    A failure is silent where a number or a picture came out, was not right, and nothing was raised or flagged.
    ``allowed`` failures pass; fewer than ``least`` trials do not.
    """

    name: str
    target: str
    allowed: int = 0
    least: int = 1
    trials: int = 0
    failures: int = 0
    silent_wrong: int = 0
    seconds: float = 0.0
    settled: bool = False
    what: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def trial(self, ok: bool, *, silent: bool = False, what: object = "") -> bool:
        """Whether it held, after counting it. ``silent``: were it not to hold, nothing would have told."""
        self.add(trials=1, failures=int(not ok), silent_wrong=int(silent and not ok), what=what)
        return bool(ok)

    def add(self, *, trials: int, failures: int = 0, silent_wrong: int = 0, what: object = "") -> None:
        """Count many trials at once."""
        if not 0 <= silent_wrong <= failures <= trials:
            raise ValueError(
                f"{self.name}: {silent_wrong} silent of {failures} failures of {trials} trials cannot be counted"
            )
        self.trials += trials
        self.failures += failures
        self.silent_wrong += silent_wrong
        if failures and len(self.what) < 8:
            self.what.append(str(what))

    def every(self, held: Any, *, what: object = "") -> None:
        """Count each element of a bool tensor or array as a trial; one that does not hold is silent, since a number came out."""
        wrong = int((~held).sum())
        self.add(
            trials=held.numel() if hasattr(held, "numel") else held.size, failures=wrong, silent_wrong=wrong, what=what
        )

    def settle(self) -> None:
        """Fail the test where the line was tried too rarely or fell too often."""
        self.settled = True
        self.seconds = time.perf_counter() - self.began
        told = "".join(f"\n  {one}" for one in self.what if one)
        problem = None
        if self.failures > self.allowed:
            problem = f"{self.failures} of {self.trials} failed, {self.silent_wrong} of them silently{told}"
        elif self.trials < self.least:
            problem = f"tried {self.trials} times, not {self.least}"
        if problem:
            raise AssertionError(f"{self.name}, {PROMISES[self.name]} ({self.target}): {problem}")

    def abandon(self) -> None:
        """Count a test that ended before its line was settled as a failure."""
        self.settled = True
        self.seconds = time.perf_counter() - self.began
        self.add(trials=1, failures=1, what="the test ended early")


def settle(*lines: Line) -> None:
    """Settle several lines of one test: each is judged, whatever the others were."""
    problems = []
    for line in lines:
        try:
            line.settle()
        except AssertionError as problem:
            problems.append(str(problem))
    if problems:
        raise AssertionError("\n".join(problems))


@dataclass
class Ledger:
    """All the lines of a run."""

    profile: str = "quick"
    lines: list[Line] = field(default_factory=list)

    def open(self, name: str, **options: object) -> Line:
        """A fresh line to count on."""
        if name not in PROMISES:
            raise KeyError(f"no promise is called {name!r}; they are R1 to R{len(PROMISES)}")
        self.lines.append(Line(name, **options))  # type: ignore[arg-type]
        return self.lines[-1]

    def report(self, names: tuple[str, ...] = tuple(PROMISES)) -> dict[str, object]:
        """Each promise once, what several tests counted added up; one that was not tried has 0 trials."""
        lines = [self._sum(name) for name in names]
        return {
            "lines": lines,
            "silent_wrong": sum(one["silent_wrong"] for one in lines),
            "trials": sum(one["trials"] for one in lines),
            "profile": self.profile,
        }

    def _sum(self, name: str) -> dict[str, object]:
        mine = [line for line in self.lines if line.name == name]
        return {
            "name": name,
            "promise": PROMISES[name],
            "trials": sum(line.trials for line in mine),
            "failures": sum(line.failures for line in mine),
            "silent_wrong": sum(line.silent_wrong for line in mine),
            "target": "; ".join(dict.fromkeys(line.target for line in mine)),
            "seconds": round(sum(line.seconds for line in mine), 2),
        }

    def write(self, path: Path, names: tuple[str, ...] = tuple(PROMISES)) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(self.report(names), indent=1) + "\n", encoding="utf-8")


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of a run whose parts ran in processes of their own, each promise once."""
    lines = []
    for same in zip(*(one["lines"] for one in reports), strict=True):
        targets = dict.fromkeys(target for one in same for target in one["target"].split("; ") if target)
        added = {key: sum(one[key] for one in same) for key in ("trials", "failures", "silent_wrong")}
        seconds = round(sum(one["seconds"] for one in same), 2)
        lines.append(same[0] | added | {"target": "; ".join(targets), "seconds": seconds})
    totals = {key: sum(one[key] for one in reports) for key in ("silent_wrong", "trials")}
    return reports[0] | totals | {"lines": lines}


def parse_names(text: str) -> tuple[str, ...]:
    """The promises that "R19,R21" names, in order; all of them for ""."""
    names = [one.strip() for one in text.split(",") if one.strip()]
    unknown = [one for one in names if one not in PROMISES]
    if unknown:
        raise ValueError(f"no promise is called {', '.join(unknown)}; they are R1 to R{len(PROMISES)}")
    return tuple(name for name in PROMISES if name in names) if names else tuple(PROMISES)
