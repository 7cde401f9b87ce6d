from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import probe.plots
from probe.errors import FileError
from tests.plots.scores import make_frame
from tests.records import make_record

IMAGE = np.zeros((32, 32, 3), dtype=np.uint8)


@probe.plots.style()
def draw() -> Figure:
    figure = probe.plots.new_figure((2.0, 6.9))
    left, right = figure.subplots(1, 2)
    probe.plots.overlay(make_record()["red circle"], IMAGE, mask=IMAGE[..., 0] == 0, ax=left)
    probe.plots.heads(make_frame(np.eye(3)), ax=right)
    return figure


def test_style_is_context_and_decorator_and_ends() -> None:
    @probe.plots.style()
    def inside() -> float:
        return matplotlib.rcParams["font.size"]

    before = matplotlib.rcParams["font.size"]
    assert (inside(), matplotlib.rcParams["font.size"]) == (8, before)
    with probe.plots.style():
        assert matplotlib.rcParams["pdf.fonttype"] == 42
    with pytest.raises(ZeroDivisionError), probe.plots.style():
        1 / 0  # noqa: B018
    assert matplotlib.rcParams["font.size"] == before


def test_style_does_not_depend_on_the_sessions_settings(tmp_path: Path) -> None:
    plain = [path.read_bytes() for path in probe.plots.save_figure(draw(), tmp_path / "plain")]
    with matplotlib.rc_context({"font.size": 20, "text.color": "red", "figure.facecolor": "black", "savefig.dpi": 30}):
        changed = [path.read_bytes() for path in probe.plots.save_figure(draw(), tmp_path / "changed")]
    assert changed == plain


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    figure = draw()
    first = [path.read_bytes() for path in probe.plots.save_figure(figure, tmp_path / "a")]
    again = [path.read_bytes() for path in probe.plots.save_figure(figure, tmp_path / "b")]
    anew = [path.read_bytes() for path in probe.plots.save_figure(draw(), tmp_path / "c")]
    assert first == again == anew
    assert b"/Type42" in first[0] or b"/CIDFontType2" in first[0]
    assert b"CreationDate" not in first[0]
    assert b"Matplotlib" not in first[0] + first[1]


def test_two_files_are_written_beside_and_renamed(tmp_path: Path) -> None:
    paths = probe.plots.save_figure(draw(), tmp_path / "new" / "photo.v1")
    assert [path.name for path in paths] == ["photo.v1.pdf", "photo.v1.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["photo.v1.pdf", "photo.v1.png"]


def test_a_failed_save_keeps_the_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = draw()
    kept = [path.read_bytes() for path in probe.plots.save_figure(figure, tmp_path / "a")]
    save = figure.savefig

    def full(path: Path, **options: object) -> None:
        save(path, **options)
        if path.suffix == ".png":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(FileError, match=r"a' cannot be written: No space left"):
        probe.plots.save_figure(figure, tmp_path / "a")
    assert [(tmp_path / name).read_bytes() for name in ("a.pdf", "a.png")] == kept
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(FileError, match="cannot be written"):
        probe.plots.save_figure(draw(), tmp_path / "a.png" / "inside")


def test_importing_plots_loads_no_matplotlib() -> None:
    code = "import sys, probe.plots; assert 'matplotlib' not in sys.modules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_loads() -> None:
    assert all(callable(getattr(probe.plots, name)) for name in probe.plots.__all__)
    with pytest.raises(AttributeError, match="no attribute 'header'"):
        probe.plots.header  # noqa: B018
