"""``probe train llava`` and ``probe train difflmm``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.commands.converting import quiet
from probe.reports import Report, make_table, output_folder, plain_console, progress, tracked
from probe.training.plans import Kind, TrainingPlan

if TYPE_CHECKING:
    from probe.training.outlooks import Outlook

__all__ = ["train_difflmm", "train_llava"]


def train_llava(plan: TrainingPlan, *, out: str = "runs/llava", dry_run: bool = False) -> Report:
    """Train a LLaVA from a language model and CLIP in LLaVA-1.5's two stages, without a grounding label.

    A run that was stopped goes on where it was when the same command is given again. With several processes:
    torchrun --nproc-per-node 8 -m probe.cli train ...

    Parameters
    ----------
    out
        Folder for the weights, loss.csv and training.json.
    dry_run
        Check the settings and every record, show what would be trained, and stop before any weight is loaded.
    """
    return _train("llava", plan, out, dry_run=dry_run)


def train_difflmm(plan: TrainingPlan, *, out: str = "runs/difflmm", dry_run: bool = False) -> Report:
    """Train a DiffLMM from a language model, CLIP and Stable Diffusion in the paper's two stages, without a grounding label.

    A run that was stopped goes on where it was when the same command is given again. With several processes:
    torchrun --nproc-per-node 8 -m probe.cli train ...

    Parameters
    ----------
    out
        Folder for the weights, loss.csv and training.json.
    dry_run
        Check the settings and every record, show what would be trained, and stop before any weight is loaded.
    """
    return _train("difflmm", plan, out, dry_run=dry_run)


def _train(kind: Kind, plan: TrainingPlan, out: str, *, dry_run: bool) -> Report:
    target = output_folder(out)
    plan.require_kind(kind)
    from probe.lab.storage import without_progress_bars

    with quiet(), without_progress_bars():
        if dry_run:
            from probe.training.outlooks import look_ahead

            outlook = look_ahead(kind, plan, offline=True, tracked=_followed)
            return Report({"dry_run": True} | outlook.data(), [*_parts(outlook), "dry run      no weight was loaded"])
        from probe.lab.trainers import read_curve, snapshot_steps
        from probe.training.courses import train

        with ExitStack() as shown:
            advance: Callable[..., None] = lambda *given, **more: None  # noqa: E731 - until there is a bar

            def start(outlook: Outlook) -> None:
                nonlocal advance
                _announce(outlook)
                # Not before: the checks of the records have bars of their own, and two at a time are one too many.
                advance = shown.enter_context(progress("training", outlook.steps))

            def step(number: int, loss: float) -> None:
                advance(number, what=f"training (loss {loss:.3f})")

            outlook = train(kind, plan, target, on_start=start, on_step=step, tracked=_followed)
    if not (target / "loss.csv").is_file():
        return Report({})  # one of several processes, on a machine that the first one is not on
    rows = [row for row in read_curve(target / "loss.csv") if row["step"] in (1, *snapshot_steps(outlook.steps))]
    curve = make_table("loss of single steps", "step", "loss", "learning rate", "gradient norm")
    for row in rows:
        curve.add_row(str(row["step"]), f"{row['loss']:.4f}", f"{row['learning_rate']:.2e}", f"{row['grad_norm']:.3f}")
    data = outlook.data() | {"out": str(target), "curve": rows}
    return Report(data, [*_parts(outlook), curve, f"results      {target}"])


def _followed(what: str, items: list[Any]) -> Iterable[Any]:
    return tracked(items, what=what, total=len(items))


def _announce(outlook: Outlook) -> None:
    """Show a person what is about to be trained; the report says it again when it is."""
    if sys.stderr.isatty():
        console = plain_console(stderr=True)
        for part in _parts(outlook):
            console.print(part)


def _parts(outlook: Outlook) -> list[Any]:
    """What is trained as a table, and from what as lines."""
    from probe.training.assembly import TRAINED

    data, plan = outlook.data(), outlook.plan
    table = make_table(
        f"stage {plan.stage} of {outlook.kind}", "module", "parameters", "trained", "share", "learning rate"
    )
    for row in outlook.table:
        rate = f"{row.learning_rate:g}" if row.trained else "-"
        share = f"{row.trained / row.parameters:.0%}"
        table.add_row(row.module, f"{row.parameters:,}", f"{row.trained:,}", share, rate)
    whole, trained = (sum(getattr(row, name) for row in outlook.table) for name in ("parameters", "trained"))
    table.add_row("all", f"{whole:,}", f"{trained:,}", f"{trained / whole:.1%}", "")
    lines = [
        f"records      {data['records']:,} from {plan.data}, {data['with_image']:,} with an image",
        f"left out     {', '.join(f'{number:,} with {reason}' for reason, number in data['left_out'].items()) or 'none'}",
        f"lengths      {_lengths(outlook)}",
        f"batch        {plan.batch_size} = {plan.device_batch_size} x {outlook.accumulation} accumulated x {outlook.processes} "
        f"process{'' if outlook.processes == 1 else 'es'}",
        f"steps        {outlook.steps:,}, each record seen {data['rounds']:.2f} times",
    ]
    if plan.projector and not (Path(plan.projector) / TRAINED).is_file():
        lines.append(f"projector    {plan.projector} holds no trained stage 1 yet")
    return [table, *lines]


def _lengths(outlook: Outlook) -> str:
    plan = outlook.plan
    if outlook.longer is None:
        return f"not checked: the tokenizer of {plan.language_model or plan.model} is not on this machine"
    done = {"refuse": "refused", "truncate": "cut off", "skip": "left out"}[plan.long_texts]
    return f"{outlook.longer:,} longer than {plan.max_length:,} tokens" + (f", {done}" if outlook.longer else "")
