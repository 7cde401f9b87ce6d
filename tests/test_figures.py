"""Figures of the paper: the contract of their scripts, the bytes, letters and fonts of what they draw, and ``probe figures``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.text import Text
from PIL import Image

import probe
from probe.figure_scripts import find_figures
from probe.plots.styles import DOUBLE_COLUMN, SINGLE_COLUMN

FIGURES = Path(__file__).parents[1] / "figures"
NAMES = tuple(one.name for one in find_figures(FIGURES))
#: What draws in a second and together holds text, marks and a colour bar.
LIGHT = ("localisation", "remedies")

SCRIPT = """
from pathlib import Path
import probe
READS = ("numbers.csv",)

def draw(data, out):
    values = [float(one) for one in (data / "numbers.csv").read_text().split()]
    with probe.plots.style():
        figure = probe.plots.new_figure()
        figure.subplots().plot(values)
        return probe.plots.save_figure(figure, out)

def caption(data):
    return f"{len((data / 'numbers.csv').read_text().split())} numbers."
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with one figure, its data, and a script that is none and must not be run."""
    folder = tmp_path / "paper"
    (folder / "data").mkdir(parents=True)
    (folder / "line.py").write_text(SCRIPT)
    (folder / "other.py").write_text("raise SystemExit('this script was run')\n")
    (folder / "data" / "numbers.csv").write_text("1 2 3")
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The scripts of the paper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_caption_is_what_the_data_say_and_counts(name: str) -> None:
    """Fails where data were measured again and the figure was not drawn again."""
    [figure] = find_figures(FIGURES, [name])
    figure.require_data()
    text = figure.text()
    assert text == (FIGURES / f"{name}.txt").read_text(encoding="utf-8")
    words = " ".join(text.split())
    assert re.search(r"\d[\d,]* (unseen |test )?(scenes|phrases|families|captions|such pictures)|n = 1\b", words)
    assert "interval" in words or "95 %" in words
    assert f"`probe figures {name}`" in words


@pytest.mark.parametrize("name", NAMES)
def test_what_was_drawn_has_a_columns_width_and_fonts_that_are_text(name: str) -> None:
    pdf = (FIGURES / f"{name}.pdf").read_bytes()
    [width] = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)
    assert min(abs(float(width) - 72 * one) for one in (SINGLE_COLUMN, DOUBLE_COLUMN)) < 0.5
    assert b"/Type3" not in pdf
    assert b"/CIDFontType2" in pdf  # TrueType, which is what Type 42 becomes in a PDF
    assert b"CreationDate" not in pdf
    with Image.open(FIGURES / f"{name}.png") as picture:
        assert picture.width == pytest.approx(float(width) / 72 * 300, abs=1)


@pytest.mark.parametrize("name", NAMES)
def test_letters_are_small_enough_for_a_paper_and_large_enough_to_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(probe.plots, "save_figure", lambda figure, out: drawn.append(figure), raising=False)
    [script] = find_figures(FIGURES, [name])
    script.module.draw(script.data, tmp_path / name)
    texts = [one for one in drawn[0].findobj(Text) if one.get_visible() and one.get_text().strip()]
    assert len(texts) > 10
    signs = {"\N{MINUS SIGN}", "=", "\N{RIGHTWARDS ARROW}"}  # between pictures, as large as one likes
    sizes = {one.get_text(): one.get_fontsize() for one in texts if one.get_text() not in signs}
    assert {text: size for text, size in sizes.items() if not 6 <= size <= 8} == {}


def test_two_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    for out, seed in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-m", "probe.cli", "figures", *LIGHT, "--scripts", FIGURES, "--out", tmp_path / out]
        subprocess.run(
            command, check=True, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(FIGURES.parent)}, timeout=300
        )
    first, again = files_below(tmp_path / "one"), files_below(tmp_path / "two")
    assert first == again
    kinds = {f"{name}.{suffix}" for name in LIGHT for suffix in ("pdf", "png", "txt")}
    assert set(first) == kinds | {f"data/{name}.csv" for name in LIGHT}


def test_drawing_loads_no_model(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from probe.figure_scripts import find_figures, redraw\n"
        f"for one in find_figures({str(FIGURES)!r}, ['method', 'remedies']): redraw(one, Path({str(tmp_path)!r}))\n"
        "assert not {'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(FIGURES.parent)}, timeout=300)


# The command ---------------------------------------------------------------------------------------------------------


def test_figures_are_drawn_checked_and_drawn_again(shell, scripts: Path) -> None:
    code, printed, noise = shell("figures", "--scripts", scripts, "--json")
    assert (code, noise) == (0, "")
    files = [{"name": f"line.{suffix}", "state": "new"} for suffix in ("pdf", "png", "txt")]
    assert json.loads(printed) == {"out": str(scripts), "figures": [{"name": "line", "files": files}]}
    assert (scripts / "line.txt").read_text().startswith("3 numbers.\n\nDrawn from data/numbers.csv")
    assert shell("figures", "--scripts", scripts, "--check")[0] == 0

    before = (scripts / "line.png").read_bytes()
    (scripts / "data" / "numbers.csv").write_text("1 2 3 5")
    code, printed, _ = shell("figures", "line", "--scripts", scripts, "--check", "--json")
    assert (code, json.loads(printed)["passed"]) == (1, False)
    assert {one["state"] for one in json.loads(printed)["figures"][0]["files"]} == {"different"}
    assert (scripts / "line.png").read_bytes() == before  # a check writes nothing
    assert shell("figures", "--scripts", scripts)[0] == 0
    assert (scripts / "line.png").read_bytes() != before
    code, printed, _ = shell("figures", "--scripts", scripts, "--check")
    assert code == 0
    assert "byte for byte" in printed


def test_another_folder_gets_the_data_too(shell, scripts: Path, tmp_path: Path) -> None:
    assert shell("figures", "--scripts", scripts, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "data" / "numbers.csv").read_text() == "1 2 3"
    assert not (scripts / "line.pdf").exists()
    (tmp_path / "out" / "data" / "numbers.csv").write_text("1 2 4")
    code, printed, _ = shell("figures", "--scripts", scripts, "--out", tmp_path / "out", "--check")
    assert code == 1
    assert "not as drawn now: line" in printed


def test_what_cannot_be_drawn_is_one_line(
    refused, scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no folder of figures
    assert "come with the source and not with the installed package" in refused("figures")
    assert "There is no figure 'lime'; there are line. Did you mean 'line'?" in refused(
        "figures", "lime", "--scripts", scripts
    )
    (scripts / "data" / "numbers.csv").write_text("1 two 3")
    assert "cannot be drawn from its data (ValueError" in refused("figures", "--scripts", scripts)
    (scripts / "data" / "numbers.csv").unlink()
    assert f"drawn from {scripts / 'data' / 'numbers.csv'}, which is not there" in refused(
        "figures", "--scripts", scripts
    )
    (scripts / "line.py").write_text(SCRIPT.replace("def caption", "def note"))
    assert "lacks caption" in refused("figures", "--scripts", scripts)
    (scripts / "line.py").write_text("def draw(:")
    assert "is not Python" in refused("figures", "--scripts", scripts)


def test_nothing_is_written_unless_all_of_a_figure_is(shell, scripts: Path) -> None:
    assert shell("figures", "--scripts", scripts)[0] == 0
    before = files_below(scripts)
    (scripts / "line.py").write_text(SCRIPT.replace("return f", "raise KeyError('n')\n    return f"))
    (scripts / "data" / "numbers.csv").write_text("3 2 1")
    assert shell("figures", "--scripts", scripts)[0] == 2
    after = files_below(scripts)
    assert {name for name in before if before[name] != after.get(name)} == {"line.py", "data/numbers.csv"}


def test_a_script_measures_and_draws_by_itself(scripts: Path) -> None:
    more = '\ndef measure(data):\n    (data / "numbers.csv").write_text("7 8")\n'
    run = '\nif __name__ == "__main__":\n    from probe.figure_scripts import run_script\n    run_script(__file__)\n'
    (scripts / "line.py").write_text(SCRIPT + more + run)
    shutil.rmtree(scripts / "data")
    command = [sys.executable, scripts / "line.py"]
    options = {"env": {"PYTHONPATH": str(FIGURES.parent)}, "capture_output": True, "text": True, "timeout": 300}
    found = subprocess.run(command, check=False, **options)
    assert found.returncode != 0
    assert f"python {scripts / 'line.py'} --measure first" in found.stderr
    assert "Traceback" not in found.stderr
    subprocess.run([*command, "--measure"], check=True, **options)
    said = " ".join((scripts / "line.txt").read_text().split())
    assert said.startswith("2 numbers. Drawn from")
    assert "measured by `python figures/line.py --measure`" in said
