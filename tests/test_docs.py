"""The documentation: nothing public is left out, and what it shows can be typed."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

import probe
from probe import cli, commands

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {str(page.relative_to(DOCS)): page.read_text(encoding="utf-8") for page in PAGES}
GROUPS = {
    "evaluate": commands.EVALUATE_VERBS,
    "lab": commands.LAB_VERBS,
    "sweep": commands.SWEEP_VERBS,
    "train": commands.TRAIN_VERBS,
}
VERBS = [*commands.VERBS, *(f"{group} {verb}" for group, verbs in GROUPS.items() for verb in verbs)]


def _blocks(text, language):
    """The contents of the fenced blocks of a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)


PYTHON = [(name, block) for name, text in TEXTS.items() for block in _blocks(text, "python")]
COMMANDS = sorted(
    {
        line.split("  #")[0].removeprefix("$ ").strip()
        for text in TEXTS.values()
        for language in ("sh", "text")
        for block in _blocks(text, language)
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"(\$ )?probe ", line)
    }
)


@pytest.fixture(scope="module")
def contents():
    """The module that writes the generated parts."""
    sys.path.insert(0, str(DOCS / "extensions"))
    try:
        import contents as found
    finally:
        sys.path.pop(0)
    return found


# What is there ---------------------------------------------------------------------------------------------------------


def test_every_public_name_has_one_entry():
    entries = [
        name for text in TEXTS.values() for one in re.findall(r"{public-entries} (.*)", text) for name in one.split()
    ]
    assert sorted(entries) == sorted(probe._PUBLIC)


def test_every_room_has_a_page():
    rooms = {one for text in TEXTS.values() for one in re.findall(r"{modules} (\S+)", text)}
    assert {f"probe.{name}" for name in probe._SUBPACKAGES} <= rooms


def test_every_command_has_a_how_to_with_its_options():
    shown = {
        one for name, text in TEXTS.items() if name.startswith("how-to") for one in re.findall(r"{command} (.*)", text)
    }
    # One that takes what another takes need not be shown again.
    assert set(VERBS) - shown <= {"train difflmm"}
    assert shown <= set(VERBS)
    for group in {verb.split()[0] for verb in VERBS}:
        assert f"how-to/{group}.md" in TEXTS


def test_every_family_is_in_the_table(contents):
    rows = re.findall(r"^\| \*\*(\w+)\*\*<br>(.*?) \|", contents.family_table(), flags=re.MULTILINE)
    assert [name for name, _ in rows] == [one.name for one in sorted(probe.families.FAMILIES, key=_kind_order)]
    assert "Qwen2-VL" in dict(rows)["qwen2_vl"]
    assert "Diffusion pipelines" in contents.family_table()


def _kind_order(family):
    kinds = list(dict.fromkeys(one.kind for one in probe.families.FAMILIES))
    return kinds.index(family.kind)


def test_every_figure_has_a_caption(contents):
    gallery = contents.gallery()
    for picture in (ROOT / "figures").glob("*.png"):
        assert f"(../figures/{picture.name})" in gallery
        assert len(contents.caption(picture)) > 60


def test_every_type_of_error_has_its_cure():
    from probe import errors

    types = [name for name in errors.__all__ if name.endswith("Error") and name != "ProbeError"]
    assert re.findall(r"^## (\w+)$", TEXTS["errors.md"], flags=re.MULTILINE) == sorted(types, key=_order_of_page)


def _order_of_page(name):
    return ["InputError", "FileError", "ModelError", "CaptureError", "CertificateError"].index(name)


# What it shows ---------------------------------------------------------------------------------------------------------


def test_there_are_examples():
    assert len(PYTHON) > 15
    assert len(COMMANDS) > 25


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page}-{i}" for i, (page, _) in enumerate(PYTHON)])
def test_python_compiles_and_names_what_there_is(page, block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "probe":
            assert node.attr in probe.__all__, f"{page}: probe.{node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("probe"):
            exec(compile(ast.Module([node], []), page, "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command):
    words = shlex.split(command)[1:]
    typed = cli._with_sweep_run(words)
    _, verbs = cli._parser(typed)
    path = " ".join(cli._words(typed, verbs))
    assert path in verbs, command
    known = {*verbs[path].options(), "--help", "--json"}
    for word in typed:
        assert not word.startswith("--") or word.split("=")[0] in known, f"{word} of {command}"


def test_first_steps_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(TEXTS["first-steps.md"], "python")
    ours = {}
    # The last one loads a model of 14 GB.
    for block in blocks[:-1]:
        exec(
            compile(block.replace("count(20)", "count(4)").replace("masks(20)", "masks(4)"), "first-steps.md", "exec"),
            ours,
        )
    assert ours["heat"].shape == (256, 256)
    assert ours["record"].text == ours["run"].text
    assert {one.name for one in tmp_path.iterdir()} == {"first-steps.png", "first-steps.pdf", "first-steps.safetensors"}
    assert str(ours["run"].record).splitlines()[0] == _blocks(TEXTS["first-steps.md"], "text")[0].splitlines()[0]


# What it says of messages ----------------------------------------------------------------------------------------------

MESSAGES = re.findall(r"```{code-block} text\n:class: message\n\n(.*?)\n```", TEXTS["errors.md"], flags=re.DOTALL)


def test_quoted_messages_are_those_of_the_code():
    patterns = [re.compile(one, flags=re.DOTALL) for one in _message_patterns()]
    assert len(MESSAGES) > 20
    for message in MESSAGES:
        whole = re.sub(r" Did you mean .*\?$", "", message)  # a hint is a text of its own
        assert any(pattern.fullmatch(whole) for pattern in patterns), message


def _message_patterns():
    """Every text of the source that has fifteen letters or more of its own, with whatever stands in its gaps."""
    for path in Path(probe.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(one.value) if isinstance(one, ast.Constant) else ".*" for one in node.values]
                own = sum(len(one.value) for one in node.values if isinstance(one, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts, own = [re.escape(node.value)], len(node.value)
            else:
                continue
            if own >= 15:
                yield "".join(parts)
