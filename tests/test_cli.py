"""The shell: what commands print and write, and one clear line with exit code 2 for everything that is asked wrongly."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from dataclasses import replace

import pytest

import probe
from probe import cli
from tests.tiny import picture

COMMANDS = (
    "demo", "record", "segment", "score", "compare", "emergence", "check", "html", "figures", "evaluate gcg", "evaluate pacc",
    "evaluate res", "evaluate png", "lab train", "lab scenes", "sweep run", "sweep status", "sweep heads", "sweep export",
)  # fmt: skip
ANSWER = "a small red circle and a large blue square"


@pytest.fixture
def photo(tmp_path):
    """A picture's file."""
    path = tmp_path / "photo.png"
    picture().save(path)
    return path


def _as_file(content, path):
    path.write_bytes(content)
    return path


# Images ---------------------------------------------------------------------------------------------------------------


def test_a_missing_image(refused, tmp_path):
    message = refused("record", tmp_path / "none.jpg", "What?")
    assert str(tmp_path / "none.jpg") in message
    assert "does not exist" in message


def test_a_broken_image(refused, photo, tmp_path):
    cut = _as_file(photo.read_bytes()[:600], tmp_path / "cut.png")
    assert "broken or incomplete" in refused("record", cut, "What?")


def test_a_text_file_with_an_images_name(refused, tmp_path):
    message = refused("record", _as_file(b"hello, I am text", tmp_path / "note.jpg"), "What?")
    assert "note.jpg" in message
    assert "text file" in message
    assert "JPEG" in message


def test_a_folder_and_an_empty_file_as_image(refused, tmp_path):
    assert "is a folder" in refused("record", tmp_path, "What?")
    assert "0 bytes" in refused("record", _as_file(b"", tmp_path / "none.png"), "What?")


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["record", "score", "check"])
def test_a_model_that_sees_no_images_or_is_of_another_family(refused, photo, tmp_path, command):
    for kind, expected in (("llama", "is not a vision-language model"), ("florence2", "known families: llava")):
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        start = {"record": ["record", photo, "What?", "--model"], "score": ["score", "--model"], "check": ["check"]}
        assert expected in refused(*start[command], folder, writes=command != "check")


def test_a_lab_model_that_is_not_there(refused, photo):
    assert "Did you mean 'lab/llava'" in refused("record", photo, "What?", "--model", "lab/lava")


def test_a_device_and_a_number_type_that_are_not_there(refused):
    assert "device='cuba'" in refused("check", "lab/llava", "--device", "cuba", writes=False)
    assert "dtype='float33'" in refused("check", "lab/llava", "--dtype", "float33", writes=False)


def test_another_number_of_image_tokens_than_patches(refused, photo, checkpoint, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    # The processor then writes 2 x 2 placeholders for what the model sees as 4 x 4 patches.
    (folder / "processor_config.json").write_text(json.dumps(settings | {"patch_size": 16}), encoding="utf-8")
    message = refused("record", photo, "What?", "--model", folder)
    assert "4 image tokens" in message
    assert "4 x 4 = 16 patches" in message


# Texts ----------------------------------------------------------------------------------------------------------------


def test_a_phrase_that_is_not_in_the_answer(refused, photo):
    message = refused("record", photo, "What?", "--answer", ANSWER, "--phrase", "red circel")
    assert "'red circel'" in message
    assert ANSWER in message
    assert "Did you mean 'red circle'" in message


@pytest.mark.parametrize("answer", ["", "   "])
def test_an_empty_answer(refused, photo, answer):
    assert "answer to be read is empty" in refused("record", photo, "What?", "--answer", answer)


def test_an_answer_or_prompt_with_an_image_placeholder(refused, photo):
    assert "The prompt holds the image placeholder '<image>'" in refused("record", photo, "<image> What?")
    assert "The answer holds the image placeholder '<image>'" in refused("record", photo, "Hi", "--answer", "<image>")


def test_a_phrase_that_comes_twice_is_drawn_twice(shell, photo, tmp_path, monkeypatch):
    import probe.plots

    drawn, real = [], probe.plots.phrases
    monkeypatch.setattr(
        "probe.plots.phrases",
        lambda record, wanted, image, **options: drawn.extend(wanted) or real(record, wanted, image, **options),
    )
    text = "a red circle and a blue circle"
    code, _, noise = shell("record", photo, "Hi", "--answer", text, "--phrase", "circle", "--out", tmp_path / "out")
    assert (code, noise) == (0, "")
    assert drawn == [("circle", 0), ("circle", 1)]


# Data sets ------------------------------------------------------------------------------------------------------------


def test_an_unknown_lab_set_and_metric_before_a_model_is_loaded(refused, monkeypatch):
    monkeypatch.setattr("probe.models.load_model", None)
    assert "Did you mean 'lab:unseen'" in refused("score", "--data", "lab:unsen")
    assert "Did you mean 'lab:plain'" in refused("lab", "scenes", "--data", "lab:plane")
    message = refused("score", "--metric", "pointng")
    assert "'pointng'" in message
    assert "Did you mean 'pointing'" in message


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["score", "--limit", 0], "--limit must be 1 or more, found 0."),
        (["score", "--limit", -2], "--limit must be 1 or more, found -2."),
        (["lab", "scenes", "--count", 0], "--count must be 1 or more, found 0."),
        (["lab", "train", "llava", "--steps", 0], "--steps must be 1 or more, found 0."),
        (["lab", "train", "llava", "--measure", 1], "--measure must be 2 or more, found 1."),
    ],
)
def test_numbers_out_of_range(refused, argv, line):
    assert refused(*argv) == line


def test_a_negative_seed_and_no_new_tokens(refused, photo):
    assert "seed must be a whole number from 0, not -1" in refused("score", "--limit", 2, "--seed", -1)
    assert "max_new_tokens must be 1 or more, found 0" in refused("record", photo, "Hi", "--max-new-tokens", 0)


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "A command is needed, one of demo, record, segment, score, compare, emergence, check, figures, html, evaluate, "
         "lab, train, sweep. (see `probe --help`)"),
        (["lab"], "A command is needed, one of train, scenes. (see `probe lab --help`)"),
        (["scor"], "There is no command 'scor'; there are demo, record, segment, score, compare, emergence, check, figures, "
         "html, evaluate, lab, train, sweep. "
         "Did you mean 'score'"),
        (["lab", "trin"], "There is no command 'trin'; there are train, scenes. Did you mean 'train'?"),
        (["score", "--limt", "3"], "There is no option --limt. Did you mean '--limit'"),
        (["score", "--limt=3"], "There is no option --limt. Did you mean '--limit'"),
        (["score", "--limit", "x"], "--limit takes a whole number, found 'x'. (see `probe score --help`)"),
        (["score", "--limit", "2.5"], "--limit takes a whole number, found '2.5'."),
        (["score", "--reading", "mean"], "--reading takes 'minus mean' or 'attention', found 'mean'. Did you mean 'minus mean'?"),
        (["score", "--seed"], "argument --seed: expected one argument"),
        (["record"], "Missing: IMAGE, PROMPT. (see `probe record --help`)"),
        (["record", "a.png"], "Missing: PROMPT."),
        (["record", "a.png", "What", "now"], "The argument 'now' is one too many"),
        (["record", "a.png", "b", "--max-new-tokens", "x"], "--max-new-tokens takes a whole number, found 'x'."),
        (
            ["lab", "train", "lava"],
            "ORGANISM takes 'llava' or 'clip' or 'diffusion' or 'sam' or 'twins', found 'lava'. Did you mean 'llava'?",
        ),
        (["check"], "Give one of these: a MODEL, --family NAME for a tiny random model of it, or --all."),
    ],
)  # fmt: skip
def test_what_is_typed_wrongly_is_said_in_the_words_that_were_typed(refused, argv, line):
    assert refused(*argv, writes=False).startswith(line)


@pytest.mark.parametrize("command", ["", "lab", "sweep", *COMMANDS])
def test_every_command_explains_itself(shell, command):
    code, printed, noise = shell(*command.split(), "--help")
    assert (code, noise) == (0, "")
    assert " ".join(printed.split()).startswith(f"usage: {' '.join(['probe', *command.split()])} ")
    for jargon in ("type:", "null", "Literal", "[options]", "_new_", "==SUPPRESS=="):
        assert jargon not in printed
    if command in COMMANDS:
        assert "--json" in printed
        # Every option says what it is.
        verb = cli._parser(command.split())[1][command]
        assert all(action.help for action in verb.parser._actions)


def test_the_version(shell):
    assert shell("--version") == (0, f"probe {probe.__version__}\n", "")


def test_options_may_be_spelt_with_either_dash(shell, photo, tmp_path):
    for option in ("--max-new-tokens", "--max_new_tokens"):
        code, printed, _ = shell("record", photo, "Describe the image.", option, 3, "--out", tmp_path, "--json")
        assert code == 0
        assert len(json.loads(printed)["tokens"]) == 3
    # What is given to an option stays as it is typed.
    assert cli._with_underscores("max-new-tokens") == "max-new-tokens"
    assert cli._with_underscores("--answer=two-part words") == "--answer=two-part words"


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_where_a_folder_is_to_be_written(shell, photo):
    before = photo.read_bytes()
    for start in (["record", photo, "Hi"], ["score"], ["demo"], ["lab", "train", "llava"], ["lab", "scenes"]):
        code, printed, noise = shell(*start, "--out", photo)
        assert (code, printed, noise.count("\n")) == (2, "", 1), start
        assert str(photo) in noise
    assert photo.read_bytes() == before


def _disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "probe.files._write_in_order", "pathlib.Path.mkdir"])
def test_a_full_disk_leaves_nothing_half_written(refused, photo, monkeypatch, where):
    monkeypatch.setattr(where, _disk_full)
    message = refused("record", photo, "Hi", "--answer", ANSWER)
    assert "No space left on device" in message
    assert "Free some space" in message


def test_a_full_disk_keeps_the_record_of_before(shell, photo, tmp_path, monkeypatch):
    start = ("record", photo, "Hi", "--out", tmp_path / "out", "--answer")
    assert shell(*start, ANSWER)[0] == 0
    before = {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("os.replace", _disk_full)
    assert shell(*start, "a red ring")[0] == 2
    assert {one.name: one.read_bytes() for one in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError("cannot allocate")])
def test_a_machine_that_lacks_disk_or_memory_is_one_line(refused, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("probe.models.load_model", fail)
    message = refused("score", "--limit", 2)
    assert str(error.args[-1]) in message
    assert ("free some space" if isinstance(error, OSError) else "--dtype bfloat16") in message


def test_a_fault_of_ours_keeps_its_traceback(shell, monkeypatch):
    monkeypatch.setattr("probe.models.load_model", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shell("score", "--limit", 2)


def test_ctrl_c_is_one_line(shell, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("probe.models.load_model", interrupted)
    assert shell("score", "--limit", 2) == (130, "", "probe: interrupted\n")


# What comes out -------------------------------------------------------------------------------------------------------


def test_json_is_one_line_with_the_numbers_of_the_table_and_no_nan(shell):
    arguments = ("score", "--limit", 4, "--metric", "pointing", "--metric", "lift")
    code, printed, noise = shell(*arguments, "--json")
    assert (code, noise, printed.count("\n")) == (0, "", 1)
    found = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    _, table, noise = shell(*arguments)
    assert noise == ""
    shown = {}
    for line in table.splitlines():
        words = re.split(r"\s{2,}", line.strip())
        if line.startswith(("pointing:", "lift:")):
            metric = line.split(":")[0]
        elif words[0] in ("reading", "held-out", "difference", "control", "layer"):
            shown[metric, words[1]] = words[2:]
    assert len(shown) == 30  # two metrics of 4 readings, their difference, 6 controls and 4 layers
    seen = 0
    for (metric, name), numbers in shown.items():
        plain = name.split(" (layer")[0]
        assert name.startswith("best_") == (" (layer" in name)
        if plain in found[metric]:
            seen += 1
            expected = [found[metric][plain][key] for key in ("value", "low", "high")]
            assert numbers == ["-" if one is None else f"{one:.3f}" for one in expected]
    assert seen == 22  # all but the layers
    assert len(found["pointing"]["heads"]) == 32


def test_one_image_has_no_interval_and_says_so_in_plain_json(shell):
    code, printed, _ = shell("score", "--limit", 1, "--metric", "auroc", "--json")
    assert code == 0
    found = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["auroc"]["mean_map"]
    assert math.isfinite(found["value"])
    assert (found["low"], found["high"]) == (None, None)


def test_a_failing_check_ends_with_1_and_names_the_question(shell, monkeypatch):
    from probe.capture import checks

    code, printed, noise = shell("check", "lab/llava")
    assert (code, noise) == (0, "")
    assert printed.count("ok ") == 6
    monkeypatch.setattr(checks, "_identical", lambda *a: (False, "1.0e-03 apart", "identical"))
    code, printed, noise = shell("check", "lab/llava")
    assert (code, noise) == (1, "")
    line = next(one for one in printed.splitlines() if "FAILED" in one)
    assert "bit-identical output" in line
    assert "1.0e-03 apart" in line
    code, printed, _ = shell("check", "lab/llava", "--json")
    assert code == 1
    assert json.loads(printed)["passed"] is False
    assert [one["name"] for one in json.loads(printed)["results"] if not one["passed"]] == ["bit-identical output"]


def test_a_family_is_checked_on_a_tiny_model(shell, refused):
    code, printed, _ = shell("check", "--family", "llava_next", "--json")
    found = json.loads(printed)
    assert code == 0
    assert found["passed"] is True
    [family] = found["families"]
    assert list(family) == [
        "name", "parity", "parity_float64", "certificate", "state_differences", "geometry_wrong_cells", "passed", "why",
    ]  # fmt: skip
    assert family["parity"] <= 1e-6
    assert family["parity_float64"] <= 1e-12
    assert family["certificate"] <= 1e-5
    assert (family["state_differences"], family["geometry_wrong_cells"], family["why"]) == (0, 0, None)
    code, printed, _ = shell("check", "--family", "llava_next")
    assert code == 0
    assert printed.count("ok ") == 7
    assert "Did you mean 'llava_next'" in refused("check", "--family", "llava_nex", writes=False)
    assert refused("check", "lab/llava", "--all", writes=False).startswith("Give one of these")
    assert "--image is for a MODEL of your own" in refused("check", "--all", "--image", "photo.jpg", writes=False)
    assert "'bfloat61' is not a floating-point type" in refused("check", "--all", "--dtype", "bfloat61", writes=False)
    assert "cannot be used here" in refused("check", "--all", "--device", "cuda:99", writes=False)


def test_all_families_are_checked_and_one_that_fails_is_named(shell, monkeypatch):
    from probe import family_checks, tiny

    kept = {name: tiny.TINY[name] for name in ("llava", "clip")}
    monkeypatch.setattr(tiny, "TINY", kept)
    real = family_checks.check_family

    def failing(name, **options):
        found = real(name, **options)
        return replace(found, passed=False, why="planted") if name == "clip" else found

    monkeypatch.setattr(family_checks, "check_family", failing)
    code, printed, _ = shell("check", "--all", "--json")
    assert code == 1
    assert [(one["name"], one["passed"]) for one in json.loads(printed)["families"]] == [
        ("llava", True),
        ("clip", False),
    ]
    code, printed, _ = shell("check", "--all", "--dtype", "bfloat16", "--device", "cpu")
    assert code == 1
    assert "tiny random models in bfloat16 on cpu" in printed
    assert any("FAILED" in line and "clip" in line and "planted" in line for line in printed.splitlines())
