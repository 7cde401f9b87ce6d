"""Where the shipped lab models lie, and how a model is written there: half precision, readable for everybody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.errors import ModelError, did_you_mean

__all__ = ["MODELS", "TWINS", "TWIN_TABLES", "WEIGHTS_FILE", "folder", "halved", "readable", "without_progress_bars"]

WEIGHTS = Path(__file__).parent / "weights"
WEIGHTS_FILE = "model.safetensors"
MODELS = {
    "lab/llava": WEIGHTS / "llava",
    "lab/clip": WEIGHTS / "clip",
    "lab/diffusion": WEIGHTS / "diffusion",
    "lab/sam": WEIGHTS / "sam",
    "lab/llava-clip": WEIGHTS / "twins" / "llava-clip",
    "lab/difflmm": WEIGHTS / "twins" / "difflmm",
    "lab/difflmm-diffusion": WEIGHTS / "twins" / "diffusion",
    "lab/difflmm-clip": WEIGHTS / "twins" / "clip",
}
# Those that differ in what their one language model sees, and what `probe lab train twins` calls them.
TWINS = {
    "lab/llava-clip": "llava-clip",
    "lab/difflmm": "difflmm",
    "lab/difflmm-diffusion": "diffusion",
    "lab/difflmm-clip": "clip",
}
# Numbers of every seed that they were trained from; the weights of the first seed alone are shipped.
TWIN_TABLES = WEIGHTS / "twins"
# The file without which a model cannot be there, where it is not WEIGHTS_FILE.
PROOF = {"lab/diffusion": "unet/diffusion_pytorch_model.safetensors"}


def folder(name: str) -> Path:
    """The folder that the shipped model `name` lies in.

    Raises
    ------
    ModelError
        A name that is not in `MODELS`, or a model that is not there.
    """
    if name not in MODELS:
        raise ModelError(f"There is no lab model {name!r}; there is {', '.join(MODELS)}.{did_you_mean(name, MODELS)}")
    weights = MODELS[name] / PROOF.get(name, WEIGHTS_FILE)
    if not weights.is_file():
        raise ModelError(f"The weights of {name} are missing: {weights}. Install the package again.")
    return MODELS[name]


def halved(model: Any) -> dict[str, Any]:
    """The model's weights in half precision; tied ones stay one tensor, or they would be saved twice."""
    once = {value.data_ptr(): value.half() for value in model.state_dict().values()}
    return {name: once[value.data_ptr()] for name, value in model.state_dict().items()}


def readable(home: str | Path) -> None:
    """Nothing; lets everybody read the weights in `home`: safetensors writes for the owner alone, and packages keep that."""
    for path in Path(home).rglob("*.safetensors"):
        path.chmod(0o644)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Nothing; small models need no bar on the screen, and an absent torchvision or absent file times are no news."""
    from transformers.utils import logging as library

    def keep(line: logging.LogRecord) -> bool:
        return not any(word in line.getMessage() for word in ("torchvision", "mtime"))

    shown, handlers = library.is_progress_bar_enabled(), list(logging.getLogger("transformers").handlers)
    library.disable_progress_bar()
    for one in handlers:
        one.addFilter(keep)
    try:
        yield
    finally:
        for one in handlers:
            one.removeFilter(keep)
        if shown:
            library.enable_progress_bar()
