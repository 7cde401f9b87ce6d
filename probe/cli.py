"""The command line: it reads arguments, calls a command, and prints what comes back."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from probe.errors import ProbeError

__all__ = ["main"]

_DESCRIPTION = "See where a vision-language model looks when it says a word."
_LAB = "Small models and scenes that make everything runnable offline."


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all went well, 1 if a check failed, 2 with one clear line on bad input, 130 after Ctrl-C."""
    # Nothing here needs the network but a model from the hub, and a notice about it would hide the one line that matters.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=UserWarning)
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except ProbeError as error:
        print(f"probe: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("probe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `probe score ... | head`; Python must not complain while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: list[str]) -> int:
    from jsonargparse import ArgumentError

    from probe.reports import plain

    parser, functions = _parser()
    try:
        settings = parser.parse_args(argv)
    except (ArgumentError, TypeError, ValueError) as error:
        print(f"probe: {_one_line(error)} (see `probe --help`)", file=sys.stderr)
        return 2
    chosen, path = settings, []
    while isinstance(name := chosen.get("subcommand"), str):
        path.append(name)
        chosen = chosen[name]
    options = chosen.as_dict()
    for extra in ("config", "subcommand"):
        options.pop(extra, None)
    as_json = options.pop("json")
    report = functions[" ".join(path)](**options)
    if as_json:
        print(json.dumps(plain(report.data), ensure_ascii=True))
    else:
        report.show()
    return report.exit_code


def _parser() -> tuple[Any, dict[str, Callable[..., Any]]]:
    """The argument parser, made from the signatures and docstrings of the commands, and the commands by name."""
    from docstring_parser import DocstringStyle
    from jsonargparse import ArgumentParser, set_parsing_settings

    import probe
    from probe.commands import LAB_VERBS, VERBS

    set_parsing_settings(docstring_parse_style=DocstringStyle.NUMPYDOC)
    parser = ArgumentParser(prog="probe", exit_on_error=False, description=_DESCRIPTION, version=probe.__version__)
    verbs = parser.add_subcommands()
    for name, function in VERBS.items():
        verbs.add_subcommand(name, _verb(function), help=_summary(function))
    lab = ArgumentParser(exit_on_error=False, description=_LAB)
    # The library wants a subcommand's own subcommands added after it.
    verbs.add_subcommand("lab", lab, help=_LAB)
    labs = lab.add_subcommands()
    for name, function in LAB_VERBS.items():
        labs.add_subcommand(name, _verb(function), help=_summary(function))
    return parser, VERBS | {f"lab {name}": function for name, function in LAB_VERBS.items()}


def _verb(function: Callable[..., Any]) -> Any:
    """The parser of one command; a parameter that is a sequence becomes an option to be given several times."""
    from docstring_parser import DocstringStyle, parse
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, description=_summary(function))
    several = [key for key, kind in function.__annotations__.items() if kind == "Sequence[str]"]
    parser.add_function_arguments(function, as_positional=True, skip=set(several))
    described = {one.arg_name: one.description for one in parse(function.__doc__ or "", DocstringStyle.NUMPYDOC).params}
    for key in several:
        help_text = f"{described.get(key)} May be given several times."
        parser.add_argument(f"--{key}", action="append", default=[], help=help_text)
    parser.add_argument("--json", action="store_true", help="Print the same numbers as one line of JSON.")
    return parser


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
