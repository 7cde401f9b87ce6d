"""What frozen towers make of training scenes, computed once and kept in files that are mapped into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import IterableDataset

from probe.errors import InputError, ModelError
from probe.lab.autoencoding import canvases
from probe.lab.captions import pixels
from probe.lab.scenes import Scene, SceneSettings, scenes

__all__ = ["CachedScenes", "EncodedScene", "cache_features", "encode"]

OnScenes = Callable[[int, int], None]

SHARD = 1024  # scenes in a file: 20 MB, which takes seconds to write and is lost at most when a run is killed
SETTINGS = "settings.json"
ABOUT = "about"  # in a file's header: the settings that it was made with, and the scenes' captions


@dataclass(frozen=True, eq=False)
class EncodedScene:
    """What is kept of one scene: its index and caption, CLIP's patches, and the U-Net's features, both in half precision."""

    index: int
    caption: str
    patches: Tensor
    """(patch, width)."""
    features: Tensor
    """(channel, row, col)."""


def cache_features(
    out: str | Path,
    model: Any,
    processor: Any,
    *,
    count: int,
    seed: int,
    draws: int,
    frozen: dict[str, Any],
    on_scenes: OnScenes | None = None,
) -> Path:
    """The folder `out`, with patches and features of at least the first `count` training scenes of a seed.

    Whole files that are there are kept, so that a run that was killed goes on where it was, and a longer one starts from
    what a shorter one left. A file has its place only when it is whole.

    Parameters
    ----------
    model, processor : A DiffLMM and its processor; see `encode`.
    draws : How many draws of noise the scenes go through in turn.
    frozen : What tells these towers from others, kept in ``settings.json``.
    on_scenes : Called with the number of scenes that are there, and that there will be.

    Raises
    ------
    InputError
        `out` holds features of other towers or settings.
    ModelError
        A feature is not finite in half precision.
    """
    out, size = Path(out), model.config.vision_config.image_size
    diffusion = model.config.diffusion_config
    noise = {name: getattr(diffusion, name) for name in ("timestep", "block", "seed", "posterior")}
    layer = model.config.vision_feature_layer
    plan = {
        "scenes": seed,
        "size": size,
        "layer": layer,
        "draws": draws,
        "noise": noise,
        "frozen": frozen,
        "shard": SHARD,
    }
    digest = _prepare(out, plan)
    files = -(-count // SHARD)
    for number in range(files):
        place = _shard(out, number)
        if not _whole(place, digest):
            first = number * SHARD
            drawn = list(scenes(SHARD, start=first, split="train", seed=seed, settings=SceneSettings(size=size)))
            _write(place, drawn, *encode(model, processor, drawn, draws=draws), digest)
        if on_scenes is not None:
            on_scenes((number + 1) * SHARD, files * SHARD)
    return out


@torch.no_grad()
def encode(
    model: Any, processor: Any, examples: Sequence[Scene], *, draws: int, batch: int = 64
) -> tuple[Tensor, Tensor]:
    """CLIP's patches (scene, patch, width) and the U-Net's features (scene, channel, row, col) of scenes, float32.

    They are what a DiffLMM's own towers give, the noise of scene `i` being that of draw ``i % draws``: the noise that the
    model itself takes when its configuration says ``first_draw = i % draws``. Were it one draw for all scenes, as a
    DiffLMM has it when it is used, a projector could learn that draw by heart; so it learns from several, of which
    draw 0, the one in the configuration, is one.
    """
    inner, settings = model.model, model.config.diffusion_config
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    for draw in range(draws):
        same = [place for place, example in enumerate(examples) if example.index % draws == draw]
        for start in range(0, len(same), batch):
            places = same[start : start + batch]
            chosen = [examples[place] for place in places]
            seen = inner.vision_tower(pixels(processor, [one.image for one in chosen]), output_hidden_states=True)
            patches = seen.hidden_states[model.config.vision_feature_layer][:, 1:]
            before, settings.first_draw = settings.first_draw, draw
            try:
                features = inner.diffusion_tower(canvases(chosen), patches)
            finally:
                settings.first_draw = before
            kept |= dict(zip(places, zip(patches, features, strict=True), strict=True))
    ordered = [kept[place] for place in range(len(examples))]
    return torch.stack([one for one, _ in ordered]), torch.stack([one for _, one in ordered])


class CachedScenes(IterableDataset):
    """The scenes `start`, `start` + 1, ... that `cache_features` left in a folder, as `EncodedScene`.

    Raises
    ------
    InputError
        There are no whole features in the folder, or those of other settings.
    """

    def __init__(self, home: str | Path, *, start: int = 0) -> None:
        self.home, self.start = Path(home), start
        self.digest, self.shard = _read_settings(self.home)

    def __iter__(self) -> Iterator[EncodedScene]:
        number, skip = divmod(self.start, self.shard)
        while (place := _shard(self.home, number)).exists():
            if not _whole(place, self.digest, self.shard):
                raise InputError(f"{place} is cut short or of other settings; remove it and start again.")
            with safe_open(place, framework="pt") as file:
                captions = json.loads(file.metadata()[ABOUT])["captions"]
                patches, features = file.get_slice("patches"), file.get_slice("features")
                for row in range(skip, self.shard):
                    yield EncodedScene(number * self.shard + row, captions[row], patches[row], features[row])
            number, skip = number + 1, 0


def _prepare(out: Path, plan: dict[str, Any]) -> str:
    """The digest of the settings, which `out` now holds."""
    text = json.dumps(plan, indent=2, sort_keys=True) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    record = out / SETTINGS
    if record.is_file() and record.read_text(encoding="utf-8") != text:
        raise InputError(f"{out} holds features of other towers or settings. Give another folder, or remove it first.")
    record.write_text(text, encoding="utf-8")
    return _digest(text)


def _read_settings(home: Path) -> tuple[str, int]:
    """The digest of the settings in a folder, and the scenes in each of its files."""
    try:
        text = (home / SETTINGS).read_text(encoding="utf-8")
        return _digest(text), int(json.loads(text)["shard"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"There are no features in {home}: its {SETTINGS} cannot be read. Compute them first."
        ) from error


def _write(place: Path, drawn: list[Scene], patches: Tensor, features: Tensor, digest: str) -> None:
    """Nothing; the file is written beside its place and moved there when it is whole."""
    tensors = {
        "patches": patches.half().contiguous(),
        "features": features.half().contiguous(),
    }
    for name, values in tensors.items():
        if not values.isfinite().all():
            raise ModelError(f"The {name} of scenes {drawn[0].index} and on are not finite in half precision.")
    beside = place.with_suffix(".part")
    about = {"settings": digest, "captions": [example.caption for example in drawn]}
    # Under one key: the library writes several in any order, and the same scenes would make another file.
    save_file(tensors, beside, metadata={ABOUT: json.dumps(about)})
    beside.replace(place)


def _whole(place: Path, digest: str, shard: int | None = None) -> bool:
    """Whether a file holds the features of a shard's scenes, made with these settings."""
    with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError), safe_open(place, framework="pt") as file:
        kept = {file.get_slice(name).get_shape()[0] for name in ("patches", "features")}
        about = json.loads(file.metadata()[ABOUT])
        return {*kept, len(about["captions"])} == {shard or SHARD} and about["settings"] == digest
    return False


def _shard(home: Path, number: int) -> Path:
    return home / f"scenes-{number:05d}.safetensors"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
