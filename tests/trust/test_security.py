"""Nothing is unpickled, fetched, started or run that nobody asked for: read from the source, and watched in processes."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import probe
from probe.errors import ModelError

ROOT = Path(probe.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
TESTS = Path(__file__).resolve().parents[2]

#: Modules that run what a file holds, open connections, or start programs.
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
REACHING = {"subprocess", "urllib", "http", "requests", "httpx", "ftplib", "smtplib", "webbrowser", "pty", "telnetlib"}
#: Names a socket only for the name of the machine, which marks what a process has half written.
HOST_NAME = {"sweep/disk.py": {"socket"}}
#: Builtins and functions that run text, and what must be said where it is said at all.
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "input"}
SAID = {"trust_remote_code": "False", "allow_pickle": "False", "weights_only": "True"}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name.split(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def calls(tree):
    """Each call as the function's text and its keywords' texts; ``**name`` is under the key None."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}


def unpickles(tree):
    found = [*(UNPICKLING & set(imported(tree)))]
    for function, given in calls(tree):
        if function == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        found += [
            f"{name}={given[name]}"
            for name in ("allow_pickle", "weights_only")
            if given.get(name, SAID[name]) != SAID[name]
        ]
    return found


def trusts(tree):
    found = [function for function, _ in calls(tree) if function in RUNNING]
    for function, given in calls(tree):
        if given.get("trust_remote_code", "False") not in ("False", "trust_remote_code"):
            found.append(f"{function} trusts remote code")
        # Left out, the library asks whoever sits at the keyboard whether to run what came with the model.
        automatic = re.search(r"\b(Auto(Model\w*|Config|Processor|Tokenizer)|loader)\.from_pretrained$", function)
        if automatic and not {"trust_remote_code", None} & given.keys():
            found.append(f"{function} does not say whom it trusts")
    return found


@pytest.mark.promises("R24", "R25", "R26")
def test_the_source_neither_unpickles_nor_reaches_nor_trusts(line):
    pickles = line("R24", target="0 files of the package that unpickle", least=100)
    reaching = line("R25", target="0 files of the package that open a connection or start a program", least=100)
    trusting = line("R26", target="0 calls that run what came with a model", least=100)
    for path, tree in TREES.items():
        name = path.relative_to(ROOT).as_posix()
        pickles.trial(not unpickles(tree), what=f"{name}: {unpickles(tree)}")
        reached = (set(imported(tree)) & (REACHING | {"socket"})) - HOST_NAME.get(name, set())
        reaching.trial(not reached, what=f"{name}: {reached}")
        trusting.trial(not trusts(tree), what=f"{name}: {trusts(tree)}")
    default = inspect.signature(probe.load_model).parameters["trust_remote_code"].default
    trusting.trial(default is False, what="load_model trusts by default")
    for one in (pickles, reaching, trusting):
        one.settle()


def test_the_rules_find_what_breaks_them():
    for source in (
        "import pickle",
        "from dill import x",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
    ):
        assert unpickles(ast.parse(source)), source
    for source in (
        "eval(x)",
        "AutoConfig.from_pretrained(x)",
        "f(trust_remote_code=True)",
        "transformers.AutoModel.from_pretrained(x)",
    ):
        assert trusts(ast.parse(source)), source
    assert not unpickles(ast.parse("torch.load(p, weights_only=True)"))
    assert not trusts(ast.parse("AutoConfig.from_pretrained(x, **remote); re.compile(x)"))


def in_python(code: str, **environment: str) -> dict:
    """What a fresh Python says in its last line, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PLANTED = """
import contextlib, json, os, pathlib, pickle, socket, subprocess, sys, tempfile
from tests import watch
watch.install()
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "link").symlink_to("/etc/hostname")
def fork():
    child = os.fork()
    if not child:
        with contextlib.suppress(OSError): open("/etc/passwd")
        os._exit(0)
    os.waitpid(child, 0)
acts = {
    "unpickled": lambda: pickle.loads(b"cos\\nsystem\\n."),
    "socket.getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "socket.connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "started": lambda: subprocess.run(["true"]),
    "os.system": lambda: os.system("true"),
    "opened": lambda: open("/etc/passwd"),
    "opened ": lambda: open(folder / "link"),
    "opened  ": lambda: open("../../../../../../etc/passwd"),
    "opened in a fork": fork,
}
harmless = [
    lambda: pickle.loads(pickle.dumps([1, "a", {}])), lambda: subprocess.run([sys.executable, "-c", ""]),
    lambda: open(folder / "new", "w").close(), lambda: open(watch.__file__).close(), lambda: open(os.devnull).close(),
]
told = {}
for name, act in acts.items():
    with contextlib.suppress(OSError): act()
    told[name] = watch.news()
for act in harmless:
    act()
print(json.dumps([told, watch.news()]))
"""


@pytest.mark.promises("R24", "R25", "R28")
def test_planted_acts_are_seen(line):
    told, harmless = in_python(PLANTED)
    assert harmless == []
    lines = {"unpickled": "R24", "opened": "R28"}
    opened = {name: line(name, target="each planted act is seen") for name in ("R24", "R25", "R28")}
    for name, seen in told.items():
        word = name.split()[0]
        found = any(f": {word}" in one for one in seen)
        opened[lines.get(word, "R25")].trial(found, what=f"{name}: {seen}")
    for one in opened.values():
        one.settle()


# The library decides while it is imported whether there is a network, so that this needs a process of its own. No packet leaves it.
NETWORK = """
import json, pathlib, sys, tempfile, time
time.sleep = lambda seconds: None  # between the tries of the hub's client
reached = []
def refuse(event, given):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.gethostbyname"):
        reached.append(event)
        raise OSError("there is no network in this test")
sys.addaudithook(refuse)
from probe.cli import main
out = tempfile.mkdtemp()
codes = {}
for name, argv in {
    "record": ["record", "--out", out + "/record", "--json"],
    "score": ["score", "--limit", "2", "--json"],
    "hub": ["check", "nobody/such-a-model"],
}.items():
    if name == "record":
        from PIL import Image
        picture = out + "/picture.png"
        Image.new("RGB", (64, 64), "red").save(picture)
        argv[1:1] = [picture, "Describe the image.", "--model", "lab/llava", "--answer", "a red circle"]
    before = len(reached)
    codes[name] = [main(argv), len(reached) - before]
print(json.dumps(codes))
"""


@pytest.mark.promises("R25")
def test_a_network_is_asked_for_by_a_hub_name_alone(line, tmp_path):
    network = line("R25", target="0 network events without a hub name, with a network allowed")
    codes = in_python(NETWORK, HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0", HF_HOME=str(tmp_path))
    hub = codes.pop("hub")
    assert hub[0] == 2
    assert hub[1] > 0, "a hub name must reach for the hub, or the test sees nothing"
    for name, (code, events) in codes.items():
        network.trial(code in (0, 1) and events == 0, what=f"{name}: exit {code}, {events} network events")
    network.settle()


REMOTE = """
from pathlib import Path
Path({place!r}).write_text("executed")
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
class OwnConfig(LlavaConfig): model_type = "own"
class OwnModel(LlavaForConditionalGeneration): config_class = OwnConfig
class OwnProcessor(LlavaProcessor): pass
"""


@pytest.mark.promises("R26")
def test_code_beside_a_model_runs_only_where_the_caller_says_so(line, tmp_path, checkpoint, shell, monkeypatch):
    """A folder whose configuration, processor and tokenizer each name code of their own."""
    import shutil

    remote = line("R26", target="0 executed unless trust_remote_code=True is written", least=6)
    canary = tmp_path / "canary"
    monkeypatch.setattr("builtins.input", lambda *given: "y")  # whoever is asked would agree
    where = {
        "config.json": {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"},
        "processor_config.json": {"AutoProcessor": "own.OwnProcessor"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
    }
    for name, auto in where.items():
        for unknown in (True, False):
            folder = tmp_path / f"model {name} {unknown}"
            shutil.copytree(checkpoint(), folder)
            (folder / "own.py").write_text(REMOTE.format(place=str(canary)))
            settings = json.loads((folder / name).read_text())
            settings |= {"auto_map": auto} | ({"model_type": "own"} if unknown and name == "config.json" else {})
            (folder / name).write_text(json.dumps(settings))
            try:
                probe.load_model(folder)  # a kind that the library knows may be loaded without the code
                typed = True
            except ModelError as error:
                typed = "\n" not in str(error)
            code, _, _ = shell("check", folder)
            remote.trial(
                typed and not canary.exists() and code in (0, 1, 2), what=f"{name}: {typed}, {canary.exists()}"
            )
    with pytest.raises(ModelError):  # what it makes is of no known family, but by then it has been run
        probe.load_model(tmp_path / "model config.json True", trust_remote_code=True)
    assert canary.exists(), "with trust the code runs, or the test sees nothing"
    remote.settle()
