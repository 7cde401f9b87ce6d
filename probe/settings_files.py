"""Settings in YAML files, which may come from anybody: plain values of a bounded size, or one clear error."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from probe.errors import FileError
from probe.ordinary_files import require_file

__all__ = ["read_settings"]

#: How deep lists may stand in one another; the settings that there are need two.
DEEPEST = 8
#: The largest file that is read, in bytes: thousands of times as much as there are settings.
LARGEST = 2**20


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a YAML file by name; none are an empty dictionary. Nothing in it is run, and nothing is said by reference.

    Raises
    ------
    FileError
        If it cannot be read, is no ordinary file or a large one, or holds anything but settings, one ``name: value`` a line.
    """
    import yaml

    name = repr(os.fspath(path))
    try:
        require_file(path, largest=LARGEST)
        text = Path(path).read_text(encoding="utf-8")
        _require_plain(yaml.parse(text, Loader=yaml.SafeLoader), name)
        settings = yaml.safe_load(text)
    except FileError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise FileError(f"The plan {name} cannot be read ({reason[:300]}); give a YAML file.") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise FileError(f"{name} is not a plan: it must hold settings, one 'name: value' a line.")
    return settings


def _require_plain(events: Iterable[Any], name: str) -> None:
    """Nothing, unless what is small in the file would be endless in memory or to look at."""
    import yaml

    depth = 0
    for one in events:
        if isinstance(one, yaml.AliasEvent):
            raise FileError(f"The plan {name} says values by reference (*name); write them where they belong.")
        depth += isinstance(one, yaml.CollectionStartEvent) - isinstance(one, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise FileError(f"The plan {name} is nested too deeply; settings are one 'name: value' a line.")
