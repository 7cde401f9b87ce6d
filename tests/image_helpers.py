"""What the tests of the image reader share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HOSTILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "hostile-images"
needs_hostile = pytest.mark.skipif(not HOSTILE.is_dir(), reason=f"the hostile images are not at {HOSTILE}")


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)
