"""``probe train convert-difflmm`` from the shell."""

from __future__ import annotations

import json

import pytest

from tests.difflmm.released import write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"))


def test_the_command_writes_a_folder_that_loads(shell, release, tmp_path):
    out = tmp_path / "difflmm"
    code, printed, noise = shell("train", "convert-difflmm", release["adapter"], release["base"], out, "--json")
    assert (code, noise) == (0, "")
    found = json.loads(printed)
    assert found["out"] == str(out)
    assert found["settings"]["dtype"] == "auto"
    assert json.loads((out / "config.json").read_text())["normalisation"] == "as-released"


def test_help_says_what_each_argument_is(shell):
    code, printed, _ = shell("train", "convert-difflmm", "--help")
    assert code == 0
    for word in ("ADAPTER", "BASE", "OUT", "--clip", "--diffusion", "--dtype", "non_lora_trainables"):
        assert word.casefold() in printed.casefold(), word
    code, printed, _ = shell("train", "--help")
    assert code == 0
    assert "convert-difflmm" in printed


def test_bad_input_is_one_line(refused, release, tmp_path):
    assert "has no adapter_config.json" in refused(
        "train", "convert-difflmm", tmp_path, release["base"], tmp_path / "x", writes=False
    )
    assert not (tmp_path / "x").exists()
    line = refused("train", "convert-difflmm", release["adapter"], writes=False)
    assert line.startswith("Missing: BASE, OUT.")
    others = ("train", "convert-difflmm", release["adapter"], release["base"], tmp_path / "x")
    line = refused(*others, "--diffusion", release["clip"], writes=False)
    assert line.startswith(f"Stable Diffusion could not be loaded from '{release['clip']}' (Error no file named")
    assert ".safetensors" in line
    # Said after most of the loading is done.
    line = refused(*others, "--clip", release["base"], writes=False)
    assert line.startswith(f"CLIP could not be loaded from '{release['base']}'")
    line = refused("train", "convert-diffllm", writes=False)
    assert "Did you mean 'convert-difflmm'" in line
