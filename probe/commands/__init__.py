"""What each command of the shell does: it computes, writes into ``--out`` and gives back a report."""

from __future__ import annotations

from collections.abc import Callable

from probe.commands.checking import check
from probe.commands.comparing import compare
from probe.commands.converting import convert_difflmm
from probe.commands.demonstration import demo
from probe.commands.emerging import emergence
from probe.commands.evaluating import evaluate_gcg, evaluate_pacc, evaluate_png, evaluate_res
from probe.commands.exploring import html
from probe.commands.lab import lab_scenes, lab_train
from probe.commands.recording import record
from probe.commands.scoring import score
from probe.commands.segmenting import segment
from probe.commands.sweeping import sweep_export, sweep_heads, sweep_run, sweep_status
from probe.commands.training import train_difflmm, train_llava
from probe.reports import Report

__all__ = ["EVALUATE_VERBS", "LAB_VERBS", "SWEEP_VERBS", "TRAIN_VERBS", "VERBS"]

#: Name at the shell -> the function whose signature and docstring make its options and help.
VERBS: dict[str, Callable[..., Report]] = {
    "demo": demo,
    "record": record,
    "segment": segment,
    "score": score,
    "compare": compare,
    "emergence": emergence,
    "check": check,
    "html": html,
}
EVALUATE_VERBS: dict[str, Callable[..., Report]] = {
    "gcg": evaluate_gcg,
    "pacc": evaluate_pacc,
    "res": evaluate_res,
    "png": evaluate_png,
}
LAB_VERBS: dict[str, Callable[..., Report]] = {"train": lab_train, "scenes": lab_scenes}
TRAIN_VERBS: dict[str, Callable[..., Report]] = {
    "llava": train_llava,
    "difflmm": train_difflmm,
    "convert-difflmm": convert_difflmm,
}
SWEEP_VERBS: dict[str, Callable[..., Report]] = {
    "run": sweep_run,
    "status": sweep_status,
    "heads": sweep_heads,
    "export": sweep_export,
}
