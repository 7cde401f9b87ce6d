"""A training from its plan to its folder: transformers' Trainer, checkpoints of what is trained, and a run that goes on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from probe.errors import InputError, ModelError, ProbeError
from probe.lab.trainers import OnSnapshot, OnStep, newest, snapshot_steps
from probe.training.assembly import TRAINED, build, fingerprints, put_in, read_trained, write_trained
from probe.training.batches import Collator, Examples, plain_error
from probe.training.folders import is_finished, write_curve, write_record, write_results
from probe.training.outlooks import Outlook, Tracked, look_ahead
from probe.training.plans import Kind, TrainingPlan
from probe.training.stages import PROJECTOR_SIDE, Stage, prepare

__all__ = ["train"]


def train(
    kind: Kind,
    plan: TrainingPlan,
    out: str | Path,
    *,
    on_start: Callable[[Outlook], None] | None = None,
    on_step: OnStep | None = None,
    on_snapshot: OnSnapshot | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    tracked: Tracked = lambda _, items: items,
) -> Outlook:
    """What was trained, with the results in the folder `out`; at once if that very training is finished there.

    >>> train("llava", plan, "runs/stage-1", callbacks=[probe.GroundingCallback(examples)])      # doctest: +SKIP

    After stage 1 `out` holds ``trained.safetensors``, the projector side alone, for a stage 2's ``projector``; after stage 2 (or
    with ``whole_model``) a whole model with its processor, the LoRA merged, as ``probe.load_model`` takes it. Beside them
    ``loss.csv``, a row a step, and ``training.json``, the exact configuration.

    A run that was killed goes on from its last whole checkpoint and ends with the curve and the weights of an unbroken one. Under
    torchrun every process calls this; the first one writes, and the batch stays what the plan says.

    Parameters
    ----------
    on_start : Called when everything is checked, before weights are loaded.
    on_step : Called with the step and its loss after every step.
    on_snapshot : Called with the step, the model in eval mode, its processor and the loss, at those of `snapshot_steps` that this
        call passes.
    callbacks : More of transformers' own.
    tracked : Shows how far the checks of the records are.

    Raises
    ------
    InputError
        As in ``look_ahead``; or `out` holds another training.
    FileError
        A file that cannot be read, an image that is broken among them, or not be written.
    ModelError
        A part that cannot be loaded, or a loss that is no number any more.
    """
    out = Path(out)
    outlook = look_ahead(kind, plan, tracked=tracked)
    with warnings.catch_warnings():
        # Newer releases call gradient checkpointing by another name, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        _train(out, outlook, on_start, _Follower(out, outlook, on_step, on_snapshot), callbacks)
    return outlook


def _train(
    out: Path,
    outlook: Outlook,
    on_start: Callable[[Outlook], None] | None,
    follower: _Follower,
    callbacks: Sequence[TrainerCallback],
) -> None:
    kind, plan = outlook.kind, outlook.plan
    try:
        arguments = _arguments(out, outlook)
    except ValueError as error:  # a GPU that cannot compute in this number type
        raise InputError(f"dtype={plan.dtype} or device={plan.device} cannot be used here: {error}") from error
    first = arguments.process_index == 0
    finished = is_finished(out, outlook)
    if on_start is not None and first:
        on_start(outlook)
    if finished:
        _settle(arguments, last=True)
        return
    set_seed(plan.seed)  # the same new weights in every process
    model = build(kind, plan, outlook.blueprint)
    parts = fingerprints(model)
    stage = prepare(model, plan)
    _settle(arguments)
    if first:
        write_record(out, outlook, parts, finished=False)
    trainer = _trainer(arguments, outlook, stage, follower, callbacks)
    _run(trainer, newest(out / "checkpoints")[0])
    if first:
        write_results(out, outlook, stage, trainer.state.log_history, parts)
    _settle(arguments, last=True)


def _run(trainer: Trainer, checkpoint: str | None) -> None:
    """The training itself; configurations and the forward pass are afterwards as they were."""
    configs = [trainer.model.config, trainer.model.config.get_text_config()]
    caching = [getattr(one, "use_cache", None) for one in configs]
    for one in configs:
        one.use_cache = False  # keys and values are of no use here, and with checkpointing a warning
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except ProbeError as error:
        raise plain_error(error) from None
    finally:
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trainer.model.gradient_checkpointing_disable()
        for one, value in zip(configs, caching, strict=True):
            one.use_cache = value


def _settle(arguments: TrainingArguments, *, last: bool = False) -> None:
    """Nothing, when every process has come this far; after the last time they no longer know each other."""
    if arguments.world_size > 1:
        torch.distributed.barrier()
        if last:
            torch.distributed.destroy_process_group()


def _arguments(out: Path, outlook: Outlook) -> TrainingArguments:
    """The settings of transformers' `Trainer`."""
    plan = outlook.plan
    cpu = plan.device == "cpu" or not torch.cuda.is_available()
    schedules = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=outlook.steps,
        per_device_train_batch_size=plan.device_batch_size,
        gradient_accumulation_steps=outlook.accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=schedules[plan.schedule],
        # A share of the steps, as a whole number: the library takes numbers below 1 for shares and others for steps.
        warmup_steps=math.ceil(plan.warmup * outlook.steps),
        weight_decay=plan.weight_decay,
        max_grad_norm=1.0,
        bf16=plan.dtype == "bfloat16",
        gradient_checkpointing=plan.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=plan.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would put the average of earlier losses in the place of one that is no number
        save_steps=plan.save_every,
        save_total_limit=2,  # a run killed while it writes the newest one still has the one before
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,  # every batch touches everything, see _Trainer
        ddp_backend="gloo" if cpu and outlook.processes > 1 else None,
        remove_unused_columns=False,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        dataloader_num_workers=plan.workers,
        disable_tqdm=True,
        report_to=[],
    )
    # Several GPUs seen by one process would each get a whole batch, unasked: torchrun gives each a process.
    _ = arguments.device
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _trainer(
    arguments: TrainingArguments,
    outlook: Outlook,
    stage: Stage,
    follower: _Follower,
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    plan, processor = outlook.plan, outlook.blueprint.processor
    examples = Examples(
        outlook.conversations,
        outlook.steps * plan.batch_size,
        encoder=outlook.encoder(),
        pictures=processor.image_processor,
        seed=plan.seed,
    )
    trainer = _Trainer(
        stage=stage,
        model=stage.model,
        args=arguments,
        train_dataset=examples,
        data_collator=Collator(processor.tokenizer.pad_token_id or 0),
        processing_class=processor,
        callbacks=[follower, *callbacks],
    )
    follower.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # it prints a dictionary every step
    return trainer


class _Trainer(Trainer):
    """transformers' Trainer with two learning rates, examples in the order given, and checkpoints of what is trained alone."""

    def __init__(self, *, stage: Stage, **options: Any) -> None:
        self.optimizer: Any = None
        super().__init__(**options)
        self.stage = stage
        self.visual = [one for name, one in stage.trained().items() if name.startswith(PROJECTOR_SIDE)]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(self.stage.groups(), **options)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if "pixel_values" not in inputs:
            # Text alone leaves the projector out: its gradient is then zero and not absent, so that processes whose batches have
            # pictures and processes whose batches have none add up the same gradients.
            loss = loss + 0.0 * sum(one.sum() for one in self.visual)
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Frozen weights are in the folders that they came from.
        if self.args.should_save:
            write_trained(Path(output_dir or self.args.output_dir) / TRAINED, dict(self.stage.trained()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        put_in(self.stage.model, read_trained(Path(resume_from_checkpoint) / TRAINED), of=resume_from_checkpoint)


class _Follower(TrainerCallback):
    """The curve on disk, the caller's functions, and an end to a training whose loss is no number."""

    def __init__(self, out: Path, outlook: Outlook, on_step: OnStep | None, on_snapshot: OnSnapshot | None) -> None:
        self.out, self.outlook, self.on_step, self.on_snapshot = out, outlook, on_step, on_snapshot
        self.snapshots = snapshot_steps(outlook.steps)
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_snapshot is None or state.global_step or not state.is_world_process_zero:
            return
        examples = [self.trainer.train_dataset[place] for place in range(args.train_batch_size)]
        batch = self.trainer._prepare_inputs(self.trainer.data_collator(examples))
        with torch.no_grad():
            loss = float(self.trainer.model(**batch)["loss"])
        self._take(0, loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in (logs or {}):
            return
        step, loss = state.global_step, logs["loss"]
        if not math.isfinite(loss):
            raise ModelError(
                f"The loss is no number at step {step}; train again with a lower learning rate, in a new folder."
            )
        if not state.is_world_process_zero:
            return
        if self.on_step is not None:
            self.on_step(step, loss)
        if self.on_snapshot is not None and step in self.snapshots:
            self._take(step, loss)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_curve(self.out, state.log_history)

    def _take(self, step: int, loss: float) -> None:
        assert self.on_snapshot is not None  # for the type checker
        model = self.trainer.model
        training = model.training
        model.eval()
        # Whatever the caller draws, the training goes on as it would have.
        with torch.random.fork_rng():
            self.on_snapshot(step, model, self.outlook.blueprint.processor, loss)
        model.train(training)
