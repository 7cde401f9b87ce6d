"""The frozen towers of the twins, which their folders do without: they are put in from ``lab/clip`` and ``lab/diffusion``.

A twin's folder is what `save_pretrained` wrote, less CLIP, VAE and U-Net, and beside it ``frozen.json``, which says where
those come from and what their files hash to. `probe.load_model` completes such a folder by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probe.difflmm.encoder import cut_unet, cut_vae
from probe.difflmm.parts import DiffusionParts, load_diffusion
from probe.errors import ModelError
from probe.lab.storage import MODELS, WEIGHTS_FILE, folder, halved, readable, without_progress_bars

__all__ = ["FROZEN", "Towers", "complete", "load_vision", "save_without_towers"]

FROZEN = "frozen.json"
# The files that the weights of a tower are in.
FILES = {
    "clip": (WEIGHTS_FILE,),
    "diffusion": tuple(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
}
# Modules whose weights a twin's folder does not have.
LEFT_OUT = {"clip": ("vision_tower.",), "diffusion": ("diffusion_tower.vae.", "diffusion_tower.unet.")}


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Where CLIP and the diffusion model come from: names of shipped models, or folders."""

    clip: str = "lab/clip"
    diffusion: str = "lab/diffusion"

    def source(self, tower: str) -> dict[str, str]:
        """Where a tower ("clip" or "diffusion") comes from, and the SHA-256 of its weights.

        Raises
        ------
        ModelError
            There is no such model, or no weights in its folder.
        """
        given = getattr(self, tower)
        name = given if given in MODELS else str(Path(given).resolve())
        return {"name": name, "sha256": _digest(tower, _home(given))}

    def home(self, tower: str) -> str:
        """The folder that a tower lies in."""
        return str(_home(getattr(self, tower)))


def save_without_towers(out: str | Path, model: Any, processor: Any, frozen: dict[str, dict[str, str]]) -> None:
    """Nothing; writes model and processor to `out`, weights in half precision, with a note in place of frozen towers.

    `frozen` has the `Towers.source` of each tower that the model needs.
    """
    own = {name: value for name, value in halved(model).items() if not _left_out(name, FILES)}
    with without_progress_bars():
        model.save_pretrained(out, state_dict=own)
    readable(out)
    processor.save_pretrained(out)
    (Path(out) / FROZEN).write_text(json.dumps(frozen, indent=2) + "\n", encoding="utf-8")


def complete(model: Any, home: str | Path, found: dict[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` reported as `found`, without the weights that are now there: the model has its towers.

    Raises
    ------
    ModelError
        A tower is not there, or is not the one that the model was trained on.
    """
    place = Path(home) / FROZEN
    sources = _sources(place)
    for tower, folder_of_it in sources.items():
        try:
            if tower == "clip":
                model.model.vision_tower.load_state_dict(load_vision(folder_of_it).state_dict())
            else:
                _fill(model.model.diffusion_tower, load_diffusion(folder_of_it))
        except (RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(f"the {tower} that {place} names does not fit its config.json: {reason}") from error
    return found | {"missing_keys": {name for name in found["missing_keys"] if not _left_out(name, sources)}}


def load_vision(home: str) -> Any:
    """The image encoder of a CLIP in a folder, as a `CLIPVisionModel` in float32."""
    from transformers import CLIPModel, CLIPVisionModel

    with without_progress_bars():
        # The whole of it: asked for its image encoder alone, the library reports every other weight as left over.
        whole = CLIPModel.from_pretrained(home, dtype=torch.float32)
    vision = CLIPVisionModel(whole.config.vision_config)
    vision.load_state_dict(whole.vision_model.state_dict())
    return vision.eval()


def _fill(tower: Any, parts: DiffusionParts) -> None:
    """Nothing; puts the weights of VAE and U-Net into a diffusion tower, cut as it is."""
    tower.vae.load_state_dict(cut_vae(parts.vae).state_dict())
    tower.unet.load_state_dict(cut_unet(parts.unet, tower.config.block).state_dict())


def _sources(place: Path) -> dict[str, str]:
    """The folder of each tower named in a ``frozen.json``."""
    try:
        frozen = {tower: (note["name"], note["sha256"]) for tower, note in json.loads(place.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{place} does not say where the frozen towers are ({error}); save the model again."
        ) from error
    if frozen.keys() - FILES.keys():
        raise ModelError(f"{place} names a tower that is none; there is {' and '.join(FILES)}.")
    for tower, (name, expected) in frozen.items():
        if _digest(tower, _home(name)) != expected:
            raise ModelError(
                f"the {tower} in {_home(name)} is not the one that this model was trained on; put that one back, or train again."
            )
    return {tower: str(_home(name)) for tower, (name, _) in frozen.items()}


def _home(name: str) -> Path:
    return folder(name) if name in MODELS else Path(name)


def _digest(tower: str, home: Path) -> str:
    """The SHA-256 of a tower's weights as they lie on disk."""
    total = hashlib.sha256()
    for name in FILES[tower]:
        if not (home / name).is_file():
            raise ModelError(f"There is no {tower} model in {home}: {name} is missing. Give a folder with its weights.")
        total.update((home / name).read_bytes())
    return total.hexdigest()


def _left_out(name: str, towers: Iterable[str]) -> bool:
    """Whether a weight is of one of these towers."""
    return any(part in name for tower in towers for part in LEFT_OUT[tower])
