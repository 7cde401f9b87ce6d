"""Who may import whom: the rules of the design, read from the source."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import probe

ROOT = Path(probe.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODELS = (
    "transformers",
    "diffusers",
    "probe.capture",
    "probe.families",
    "probe.models",
    "probe.pipelines",
    "probe.runs",
    "probe.protocols",
)

#: Package or module -> what nothing in it may import, also inside a function.
FORBIDDEN = {
    "probe.errors": ("probe.", "torch", "transformers"),
    "probe.layout": ("probe.attention", *MODELS),
    "probe.attention": ("probe.files", "probe.analysis", "probe.plots", *MODELS),
    "probe.files": ("probe.analysis", "probe.plots", *MODELS),
    "probe.images": ("torch", *MODELS),
    "probe.analysis": (*MODELS, "probe.plots", "matplotlib"),
    "probe.plots": (*MODELS, "probe.lab"),
    "probe.grounding": MODELS,
    "probe.widgets": MODELS,
    # A page is written without the packages that a view in a notebook needs.
    **{
        f"probe.widgets.{name}": (
            "anywidget",
            "ipywidgets",
            "traitlets",
            "probe.widgets.live",
            "probe.widgets.explorer",
        )
        for name in ("contents", "html", "packing", "scores", "sheets")
    },
    "probe.evaluation": MODELS,
    "probe.lab": ("probe.capture", "probe.analysis", "probe.runs", "probe.plots", "probe.evaluation"),
    "probe.difflmm": (
        "probe.capture",
        "probe.analysis",
        "probe.runs",
        "probe.plots",
        "probe.evaluation",
        "probe.models",
    ),
    "probe.training": (
        "probe.capture",
        "probe.analysis",
        "probe.runs",
        "probe.plots",
        "probe.models",
        "probe.families",
        "probe.commands",
    ),
    "probe.families": ("probe.capture", "probe.runs", "probe.analysis", "probe.plots", "transformers", "torch"),
    "probe.capture": ("probe.runs", "probe.analysis", "probe.plots", "probe.lab", "probe.commands"),
}
#: (module, import) that is an exception: inside a function, for what is asked for by name and can be absent. A segmenter that
#: turns a point into a mask reads no attention.
LAZY = {("probe.evaluation.similarity", "transformers"), ("probe.grounding.sam", "transformers")}


def _module(path):
    parts = ("probe", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _inside(name, package):
    return name == package.rstrip(".") or name.startswith(package.rstrip(".") + ".")


def _for_types_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _imports(node, *, package):
    """Everything imported below a node, at any depth, but not for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (one.name for one in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - child.level + 1], *filter(None, [base])]
                )
            # "from probe import capture" imports a module too.
            yield from (f"{base}.{one.name}" for one in child.names)
        elif _for_types_only(child):
            yield from _imports(ast.Module(child.orelse, []), package=package)
        else:
            yield from _imports(child, package=package)


def _imports_of(path):
    name = _module(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return set(_imports(TREES[path], package=package))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_what_lies_above_it(package):
    wrong = {
        (_module(path), name)
        for path in FILES
        if _inside(_module(path), package)
        for name in _imports_of(path)
        for forbidden in FORBIDDEN[package]
        if _inside(name, forbidden) and (_module(path), forbidden) not in LAZY
    }
    assert not wrong


def test_exceptions_are_inside_functions():
    for path, tree in TREES.items():
        at_once = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        for name in _imports(ast.Module(at_once, []), package="probe"):
            assert not any(_module(path) == module and _inside(name, lazy) for module, lazy in LAZY)


def test_the_reader_of_imports_sees_every_kind(tmp_path):
    source = (
        "import torch\nfrom probe import capture\nfrom .hooks import x\n"
        "def f():\n    import transformers.utils\n"
        "if TYPE_CHECKING:\n    import pandas\nelse:\n    import numpy\n"
    )
    found = set(_imports(ast.parse(source), package="probe.capture"))
    assert found == {"torch", "probe.capture", "probe.capture.hooks.x", "transformers.utils", "numpy"}
    assert _inside("probe.capture.hooks", "probe.capture")
    assert not _inside("probe.captures", "probe.capture")
    assert len(FILES) > 40


def test_import_probe_loads_nothing_heavy():
    heavy = ("torch", "transformers", "diffusers", "matplotlib", "pandas", "numpy", "PIL")
    code = f"import sys, probe; probe.__version__, dir(probe); print([one for one in {heavy!r} if one in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_list_of_commands_loads_nothing_heavy():
    code = (
        "import sys\nfrom probe.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'matplotlib', 'pandas', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "emergence" in found.stdout


def test_records_are_loaded_scored_and_drawn_without_the_model_libraries():
    code = (
        "import sys; sys.modules.update(transformers=None, diffusers=None, anywidget=None, ipywidgets=None, traitlets=None)\n"
        "import probe, probe.files, probe.analysis.heads, probe.plots, probe.evaluation.sources\n"
        "import probe.grounding.sam, probe.widgets.html\n"
        "probe.load, probe.save, probe.score_heads, probe.plots.phrases, probe.plots.heads, probe.read_image\n"
        "probe.attend_and_segment, probe.explore\n"
        "import tempfile, pathlib; from tests.records import make_record\n"
        "page = probe.widgets.write_html(make_record(), pathlib.Path(tempfile.mkdtemp()) / 'view.html')\n"
        "assert page.path.stat().st_size > 10_000\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_only_one_file_registers_hooks():
    found = {_module(path) for path in FILES if re.search(r"register_\w*hook", path.read_text(encoding="utf-8"))}
    assert found == {"probe.capture.hooks"}


def test_every_public_name_is_there_and_listed():
    for name in probe.__all__:
        assert getattr(probe, name) is not None, name
    assert set(dir(probe)) >= set(probe.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'recrod'"):
        probe.recrod  # noqa: B018
    # What type checkers and editors see is what is there.
    shown = {
        one.asname
        for node in TREES[ROOT / "__init__.py"].body
        if _for_types_only(node)
        for part in node.body
        for one in part.names
    }
    assert shown == set(probe._PUBLIC)


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_what_a_module_lists_is_there(path):
    if path.name == "__main__.py":
        return
    module = importlib.import_module(_module(path))
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name


def test_no_module_shares_the_name_of_a_public_function():
    functions = {name for name in probe._PUBLIC if inspect.isfunction(getattr(probe, name))}
    assert {"record", "run", "save"} <= functions
    assert not functions & {part for path in FILES for part in _module(path).split(".")[1:]}
