"""Training the twins from scratch on captions alone: the same language model, scenes and steps in front of other features."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probe.difflmm import DiffLMMProjector
from probe.difflmm.configuration import block_shape
from probe.errors import InputError
from probe.lab.arms import ARMS, Arm, TwinSettings, build_twin, towers_of
from probe.lab.captions import Collator
from probe.lab.features import CachedScenes, EncodedScene, cache_features
from probe.lab.towers import Towers, save_without_towers
from probe.lab.trainers import Course, fit

__all__ = ["FromFeatures", "TwinRun", "train_twin", "train_twins"]

STEPS = 750
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class TwinRun:
    """One training: which arm, from which seed, and the folder that it is in."""

    arm: Arm
    seed: int
    folder: Path


#: What of the cached features each arm is given.
SEEN: dict[Arm, tuple[str, ...]] = {
    "llava-clip": ("patches",), "difflmm": ("patches", "features"), "diffusion": ("features",), "clip": ("patches",)
}  # fmt: skip

OnRunSnapshot = Callable[[TwinRun, int, Any, Any, float], None]
OnRunStep = Callable[[TwinRun, int, float], None]
OnFeatures = Callable[[int, int, int], None]


class FromFeatures(nn.Module):
    """A model that is given what its frozen towers would have made of pictures; its output is the model's own.

    Only what is trained is part of this module: the projector, and the language model with its tied head. So neither
    optimiser nor checkpoint knows of the towers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.language_model = model.model.language_model
        self._whole = (model,)  # in a tuple, which keeps it from becoming a part

    @property
    def model(self) -> Any:
        """The whole model, which takes pictures and shares the weights."""
        return self._whole[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        patches: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Any:
        """The model's output.

        Parameters
        ----------
        patches : (batch, patch, width), CLIP's; without them the model is as blind to CLIP as "diffusion" is.
        features : (batch, channel, row, col), the U-Net's; for a DiffLMM alone, and not for "clip".
        """
        tokens = self.visual_tokens(patches, features)
        embeddings = self.model.get_input_embeddings()(input_ids)
        places = (input_ids == self.model.config.image_token_id).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(places, tokens.to(embeddings))
        return self.model(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels)

    def visual_tokens(self, patches: Tensor | None, features: Tensor | None) -> Tensor:
        """The projector's visual tokens (batch, patch, text width)."""
        if not isinstance(self.projector, DiffLMMProjector):
            plain: Tensor = self.projector(patches)
            return plain
        # Zeros in place of what an arm is blind to: the weights on that side get no gradient and stay zero themselves.
        config, given = self.model.config, patches if features is None else features
        assert given is not None  # for the type checker: every arm sees something
        if patches is None:
            patches = given.new_zeros(len(given), config.image_seq_length, config.vision_config.hidden_size)
        if features is None:
            features = given.new_zeros(len(given), *block_shape(config.diffusion_config))
        found: Tensor = self.projector(features, patches)
        return found


class FeatureBatch:
    """A batch as `FromFeatures` takes it, with what the arm sees, in single precision."""

    def __init__(self, processor: Any, arm: Arm) -> None:
        self.texts = Collator(processor).texts
        self.seen = SEEN[arm]

    def __call__(self, examples: Sequence[EncodedScene]) -> dict[str, Tensor]:
        stacked = {name: torch.stack([getattr(example, name) for example in examples]).float() for name in self.seen}
        return self.texts(examples) | stacked


def train_twins(
    out: str | Path,
    *,
    arms: Sequence[Arm] = ARMS,
    seeds: Sequence[int] = SEEDS,
    keep_features: bool = False,
    on_features: OnFeatures | None = None,
    on_snapshot: OnRunSnapshot | None = None,
    on_step: OnRunStep | None = None,
    **options: Any,
) -> list[TwinRun]:
    """All runs, finished: ``out/seed-0/llava-clip`` and so on, each as `train_twin` leaves it.

    >>> train_twins("runs/twins", on_step=lambda run, step, loss: print(run.arm, run.seed, step, loss))  # doctest: +SKIP

    One seed after the other. Killed runs go on, finished ones are left alone, and features are computed when the first
    training of their seed needs them and removed when the last is finished.

    Parameters
    ----------
    keep_features : Leave them in ``out/seed-0/features``: 1 GB a seed at the default length.
    on_features : Called with the seed, the number of scenes whose features are there, and that there will be.
    on_snapshot, on_step : As those of `train_twin`, with the run before the rest.
    options : As for `train_twin`.

    Raises
    ------
    InputError
        No arm or seed, or one twice; else as `train_twin`.
    """
    for name, given in (("arms", arms), ("seeds", seeds)):
        if not given or len(set(given)) < len(given):
            raise InputError(f"{name} must be one or more that differ, not {list(given)}.")
    runs = []
    for seed in seeds:
        home = Path(out) / f"seed-{seed}"
        for arm in arms:
            run = TwinRun(arm, seed, home / arm)
            train_twin(
                run.folder,
                arm,
                seed=seed,
                features=home / "features",
                on_features=on_features,
                on_snapshot=on_snapshot and (lambda *rest, run=run: on_snapshot(run, *rest)),
                on_step=on_step and (lambda *rest, run=run: on_step(run, *rest)),
                **options,
            )
            runs.append(run)
        if not keep_features:
            shutil.rmtree(home / "features", ignore_errors=True)
    return runs


def train_twin(
    out: str | Path,
    arm: Arm,
    *,
    features: str | Path,
    steps: int = STEPS,
    seed: int = 0,
    batch_size: int = 64,
    towers: Towers | None = None,
    settings: TwinSettings | None = None,
    on_features: OnFeatures | None = None,
    on_snapshot: Callable[[int, Any, Any, float], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    save_every: int = 50,
) -> Path:
    """The folder `out`, with the trained model in the Hugging Face layout less its frozen towers, and the curve ``loss.csv``.

    `probe.load_model` puts the towers in again. The seed is that of the language model's and the projector's weights, of the
    scenes and of the noise; every arm meets the same scenes in the same order. Killed runs and ``OMP_WAIT_POLICY`` are as in
    `probe.lab.training.train_llava`.

    Parameters
    ----------
    features : The folder for features of frozen towers, which every arm of the same seed shares; see `cache_features`.
    towers : Where CLIP and the diffusion model come from.
    settings : Another size of model, for tests.
    on_snapshot : Called with the step, the whole model in eval mode, its processor and the loss of that step's batch,
        at the steps of `snapshot_steps` that this call passes.
    on_step : Called with the step and its loss after every step.
    save_every : Steps between two checkpoints.

    Raises
    ------
    InputError
        An unknown arm, no steps or an empty batch, or a folder that holds something else.
    ModelError
        A tower is not there, or they do not fit each other.

    References
    ----------
    Cao, Gui, Wang, arXiv 2410.08209, section 3.3, for how diffusion features and CLIP's patches are put together.
    """
    if arm not in ARMS:
        raise InputError(f"There is no arm {arm!r}; there is {', '.join(ARMS)}.")
    out, towers, settings = Path(out), towers or Towers(), settings or TwinSettings()
    course = Course(steps=steps, seed=seed, batch_size=batch_size, save_every=save_every)
    frozen = {tower: towers.source(tower) for tower in ("clip", "diffusion")}
    hashes = {tower: source["sha256"] for tower, source in frozen.items()}

    def make() -> tuple[Any, Any]:
        cache_features(
            features,
            *build_twin("difflmm", towers, settings=settings, seed=seed),
            count=steps * batch_size,
            seed=seed,
            draws=settings.draws,
            frozen=hashes,
            on_scenes=on_features and (lambda done, total: on_features(seed, done, total)),
        )
        model, processor = build_twin(arm, towers, settings=settings, seed=seed)
        return FromFeatures(model), processor

    def save(module: Any, processor: Any) -> None:
        save_without_towers(out, module.model, processor, {tower: frozen[tower] for tower in towers_of(arm)})

    return fit(
        out,
        course,
        plan={
            "arm": arm,
            "steps": steps,
            "seed": seed,
            "batch_size": batch_size,
            "model": asdict(settings),
            "frozen": hashes,
        },
        make=make,
        examples=lambda start: CachedScenes(features, start=start),
        collator=lambda processor: FeatureBatch(processor, arm),
        save=save,
        on_snapshot=on_snapshot and (lambda step, module, *rest: on_snapshot(step, module.model, *rest)),
        on_step=on_step,
    )
