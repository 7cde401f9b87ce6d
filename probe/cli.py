"""The command line: it reads arguments, calls a command, and prints what comes back."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from probe.errors import ProbeError, did_you_mean
from probe.quoting import terminal_text
from probe.settings_files import read_settings

__all__ = ["main"]

_DESCRIPTION = "See where a vision-language model looks when it says a word."
_EVALUATE = "A model under a published protocol: maps, then masks, then scores with intervals and controls."
_LAB = "Small models and scenes that make everything runnable offline."
_SWEEP = "Which heads carry the grounding: every one of them taken away, over many images; PLAN is a YAML file."
_TRAIN = "Models that are trained, or made from weights that others trained."


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all went well, 1 if a check failed, 2 with one clear line on bad input, 130 after Ctrl-C."""
    # Nothing here needs the network but a model from the hub, and a notice about it would hide the one line that matters.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=UserWarning)
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except ProbeError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `probe score ... | head`; Python must not complain while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = _lack(error)
        if line is None:
            raise  # a fault of ours: its traceback is what a report needs
        _complain(line)
        return 2


def _complain(text: str) -> None:
    """Print one line that no terminal obeys: it may quote a caption, a file name or a model's configuration."""
    print(f"probe: {terminal_text(' '.join(text.split()))}", file=sys.stderr)


def _lack(error: Exception) -> str | None:
    """One line, if what failed is the machine: its disk or its memory."""
    reason = _one_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"There is not enough memory ({reason[:150]}); try --dtype bfloat16, a smaller model, or --device cpu."
    # Weights are written by safetensors, whose errors are no OSError.
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return f"A file could not be read or written ({reason[:150]}); free some space or choose another place."
    return None


def _run(argv: list[str]) -> int:
    from jsonargparse import ArgumentError

    from probe.reports import plain

    argv = _with_sweep_run(argv)
    parser, verbs = _parser(argv)
    given = _with_recipes([_with_underscores(one) for one in argv])
    for plan in _plan_files(given):
        read_settings(plan)  # the library would wait for a pipe, read a device, and follow references without end
    try:
        settings = parser.parse_args(given)
    except (ArgumentError, TypeError, ValueError) as error:
        words = _words(argv, verbs)
        reason = _reason(error, given, verbs.get(" ".join(words)))
        help_command = " ".join(["probe", *words, "--help"])
        _complain(f"{_usage(reason, verbs, words)} (see `{help_command}`)")
        return 2
    chosen, named = settings, []
    while isinstance(name := chosen.get("subcommand"), str):
        named.append(name)
        chosen = chosen[name]
    options = chosen.as_dict()
    for extra in ("config", "subcommand"):
        options.pop(extra, None)
    as_json = options.pop("json")
    verb = verbs[" ".join(named)]
    report = verb.function(**_with_plan(verb, options))
    if os.environ.get("RANK", "0") != "0":
        return report.exit_code  # of several processes under torchrun the first one speaks
    if as_json:
        print(json.dumps(plain(report.data), ensure_ascii=True))
    else:
        report.show()
    return report.exit_code


@dataclass(frozen=True)
class _Verb:
    """A command: what it calls, and the parser of its arguments."""

    function: Callable[..., Any]
    parser: Any

    def plan(self) -> Any:
        """The dataclass whose fields are options of their own, where the function takes one as `plan`; else ``None``."""
        return get_type_hints(self.function).get("plan")

    def kind(self, key: str) -> Any:
        """The type of an option or argument."""
        hints = get_type_hints(self.function)
        return (get_type_hints(hints["plan"]) if "plan" in hints else hints).get(key, hints.get(key))

    def options(self) -> list[str]:
        """Its options as they are typed."""
        found = [one for action in self.parser._actions for one in action.option_strings if one.startswith("--")]
        return [one.replace("_", "-") for one in found]


def _parser(argv: Sequence[str]) -> tuple[Any, dict[str, _Verb]]:
    """The argument parser, made from the signatures and docstrings of the commands, and the commands by name.

    Only the command that is asked for gets its arguments: reading the signatures of all takes seconds.
    """
    from docstring_parser import DocstringStyle
    from jsonargparse import set_parsing_settings

    import probe
    from probe.commands import EVALUATE_VERBS, LAB_VERBS, SWEEP_VERBS, TRAIN_VERBS, VERBS

    set_parsing_settings(docstring_parse_style=DocstringStyle.NUMPYDOC)
    kind = _parser_class()
    parser = kind(prog="probe", exit_on_error=False, description=_DESCRIPTION, version=probe.__version__)
    asked = " ".join(argv[:2])
    made = lambda path, function: _arguments(kind, function, bare=not f"{asked} ".startswith(f"{path} "))  # noqa: E731
    verbs = {name: _Verb(function, made(name, function)) for name, function in VERBS.items()}
    added = parser.add_subcommands()
    for name, verb in verbs.items():
        added.add_subcommand(name, verb.parser, help=_summary(verb.function))
    groups = (
        ("evaluate", _EVALUATE, EVALUATE_VERBS),
        ("lab", _LAB, LAB_VERBS),
        ("train", _TRAIN, TRAIN_VERBS),
        ("sweep", _SWEEP, SWEEP_VERBS),
    )
    for group, about, functions in groups:
        outer = kind(exit_on_error=False, description=about)
        # The library wants a subcommand's own subcommands added after it.
        added.add_subcommand(group, outer, help=about)
        outer.prog = f"probe {group}"
        inner = outer.add_subcommands()
        for name, function in functions.items():
            verb = verbs[f"{group} {name}"] = _Verb(function, made(f"{group} {name}", function))
            inner.add_subcommand(name, verb.parser, help=_summary(function))
    for path, verb in verbs.items():
        verb.parser.prog = f"probe {path}"  # the library's own says "probe [options] lab [options] train"
    return parser, verbs


def _parser_class() -> Any:
    """jsonargparse's parser, with a help that shows choices and defaults but no Python types."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Help(DefaultHelpFormatter):
        def _get_help_string(self, action: Any) -> str:
            text = action.help or ""
            shown = action.default is not None and action.option_strings and type(action.default) in (str, int)
            return f"{text} (default: %(default)s)" if shown and action.default != "==SUPPRESS==" else text

    class Parser(ArgumentParser):
        def __init__(self, **options: Any) -> None:
            super().__init__(formatter_class=Help, **options)

        def format_help(self, *given: Any, **options: Any) -> str:
            return re.sub(r"--\w+", lambda one: one[0].replace("_", "-"), super().format_help(*given, **options))

    return Parser


def _arguments(kind: Any, function: Callable[..., Any], *, bare: bool) -> Any:
    """The parser of one command; a sequence becomes an option to be given several times, a list several words.

    A ``bare`` one has no arguments yet: it stands in the list of commands.
    """
    from docstring_parser import DocstringStyle, parse

    parser = kind(exit_on_error=False, description=_summary(function))
    if bare:
        return parser
    several = [key for key, annotation in function.__annotations__.items() if annotation == "Sequence[str]"]
    words = [key for key, annotation in function.__annotations__.items() if annotation == "Words"]
    listed = [key for key, annotation in function.__annotations__.items() if annotation == "list[str]"]
    optional = {
        key: {"OptionalWord": "?", "OptionalWords": "*"}[annotation]
        for key, annotation in function.__annotations__.items()
        if annotation in ("OptionalWord", "OptionalWords")
    }
    switches = [key for key, annotation in function.__annotations__.items() if annotation == "bool"]
    planned = {"plan"} & function.__annotations__.keys()
    skipped = {*several, *words, *listed, *optional, *switches, *planned}
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skipped)
    described = {one.arg_name: one.description for one in parse(function.__doc__ or "", DocstringStyle.NUMPYDOC).params}
    for key, count in optional.items():
        parser.add_argument(key, nargs=count, help=described.get(key))
    for key in listed:
        parser.add_argument(key, nargs="+", help=described.get(key))
    for key in several:
        help_text = f"{described.get(key)} May be given several times."
        parser.add_argument(f"--{key}", action="append", default=[], help=help_text)
    for key in words:
        parser.add_argument(f"--{key}", nargs="+", action="extend", default=[], help=described.get(key))
    for key in switches:
        parser.add_argument(f"--{key}", action="store_true", help=described.get(key))
    parser.add_argument("--json", action="store_true", help="Print the same numbers as one line of JSON.")
    if planned:
        _add_plan(parser, get_type_hints(function)["plan"])
    return parser


def _add_plan(parser: Any, plan: Any) -> None:
    """Options for every field of a plan, and one for a YAML file of them, which single options come before."""
    from probe.training.plans import TrainingPlan
    from probe.training.recipes import RECIPES

    shipped = f", or a recipe: {', '.join(RECIPES)}" if plan is TrainingPlan else ""
    parser.add_argument("--config", action="config", help=f"YAML file with any of these settings{shipped}.")
    parser.add_class_arguments(plan, None, as_group=False)


def _with_plan(verb: _Verb, options: dict[str, Any]) -> dict[str, Any]:
    """The same options, those that are a plan's as one."""
    if (plan := verb.plan()) is None:
        return options
    own = {one.name for one in fields(plan)}
    given = {name: options.pop(name) for name in list(options) if name in own}
    return options | {"plan": plan(**given)}


def _with_recipes(argv: list[str]) -> list[str]:
    """``--config llava-stage-1`` as the file of that recipe."""
    from probe.training.recipes import recipe_file

    # In two words, however it was typed.
    apart = [part for one in argv for part in (one.split("=", 1) if one.startswith("--config=") else [one])]
    return [recipe_file(one) if before == "--config" else one for before, one in zip(["", *apart], apart, strict=False)]


def _plan_files(argv: Sequence[str]) -> list[str]:
    """What is given as ``--config`` and is there."""
    return [name for before, name in itertools.pairwise(argv) if before == "--config" and os.path.exists(name)]


def _with_sweep_run(argv: list[str]) -> list[str]:
    """``sweep PLAN --out DIR`` as ``sweep run --config PLAN --out DIR``."""
    from probe.commands import SWEEP_VERBS

    if argv[:1] != ["sweep"] or len(argv) < 2 or argv[1] in (*SWEEP_VERBS, "-h", "--help"):
        return argv
    if argv[1].startswith("-"):
        return ["sweep", "run", *argv[1:]]
    # A word that is no file may be a command that was misspelt; what there is will be said.
    return ["sweep", "run", "--config", *argv[1:]] if Path(argv[1]).is_file() or "." in argv[1] else argv


def _with_underscores(argument: str) -> str:
    """``--max-new-tokens=8`` as the library knows it, ``--max_new_tokens=8``; anything but an option as it is."""
    found = re.match(r"--[a-z]+(-[a-z]+)+(?==|$)", argument)
    return "--" + found[0][2:].replace("-", "_") + argument[found.end() :] if found else argument


def _words(argv: list[str], verbs: dict[str, _Verb]) -> list[str]:
    """The words of the command that was meant, as far as there is one: [], ["score"], ["lab"] or ["lab", "train"]."""
    for length in (2, 1):
        meant = argv[:length]
        if any(path.split()[:length] == meant for path in verbs):
            return meant
    return []


def _reason(error: Exception, argv: list[str], verb: _Verb | None) -> str:
    """What was wrong, as a line; the library loses the name of an unknown setting of a YAML file where commands have commands."""
    text = _one_line(error)
    if verb is None or verb.plan() is None or not isinstance(error.__cause__, KeyError):
        return text
    known = [one.removeprefix("--").replace("-", "_") for one in verb.options()]
    for name in _plan_files(argv):
        unknown = [str(one) for one in read_settings(name) if str(one) not in known]
        if unknown:
            return f"{name} has a setting {unknown[0]!r}, which does not exist.{did_you_mean(unknown[0], known)}"
    return text


def _usage(text: str, verbs: dict[str, _Verb], words: list[str]) -> str:
    """A parser's message in words that name what one types."""
    verb = verbs.get(" ".join(words))
    known = (
        list(dict.fromkeys(path.split()[len(words)] for path in verbs if path.split()[: len(words)] == words))
        if not verb
        else []
    )
    if not verb and (found := re.search(r"invalid choice: '(.*)' \(choose", text)):
        return f"There is no command {found[1]!r}; there are {', '.join(known)}.{did_you_mean(found[1], known)}"
    if not verb and "subcommand" in text:
        return f"A command is needed, one of {', '.join(known)}."
    if found := re.match(r"unrecognized arguments: (.*)", text):
        first = found[1].split()[0].split("=")[0]
        typed = verb.options() if verb else ["--help", "--version"]
        hint = did_you_mean(first, typed)
        return (
            f"There is no option {first}.{hint or ' There are ' + ', '.join(typed) + '.'}"
            if first.startswith("-")
            else (f"The argument {first!r} is one too many; a text of several words needs quotation marks.")
        )
    if found := re.match(r'Parser key "config": (.*)', text):
        return f"--config: {found[1]}"
    if found := re.match(r"the following arguments are required: (.*)", text):
        return f"Missing: {', '.join(one.split('.')[-1].upper() for one in found[1].split(', '))}."
    if verb and (
        found := re.match(r'Parser key "(?:.*\.)?(\w+)":.*Got value: (.*)', text)
        or re.match(r'Parser key "(?:.*\.)?(\w+)":.*Given value: (.*)', text)
    ):
        return _wrong_value(verb, found[1], found[2])
    return text


def _wrong_value(verb: _Verb, key: str, value: str) -> str:
    kind = verb.kind(key)
    option = f"--{key.replace('_', '-')}"
    name = option if option in verb.options() else key.upper()
    # An option that may be left out is a choice, or nothing.
    literals = [one for one in (kind, *get_args(kind)) if get_origin(one) is Literal]
    if literals:
        choices = [str(one) for one in get_args(literals[0])]
        return f"{name} takes {' or '.join(map(repr, choices))}, found {value!r}.{did_you_mean(value, choices)}"
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    wanted = next((words for one, words in kinds.items() if one in (kind, *get_args(kind))), "text")
    return f"{name} takes {wanted}, found {value!r}."


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
