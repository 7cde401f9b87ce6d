"""Every test here draws without a screen, and leaves no figure and no setting behind."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")  # figures that a function made because it was given no Axes
    assert dict(matplotlib.rcParams) == before
