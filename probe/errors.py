"""What can go wrong, as types: one clear line each, saying what was asked, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CaptureError", "CertificateError", "FileError", "InputError", "ModelError", "ProbeError", "did_you_mean"]


class ProbeError(Exception):
    """Anything that `probe` refuses; at the shell it is one line and exit code 2."""


class InputError(ProbeError, ValueError):
    """An argument, image, mask, phrase or selection that cannot be used as given."""


class FileError(ProbeError, OSError):
    """A file that cannot be read or written; nothing half-written is left behind."""


class ModelError(ProbeError):
    """A model or processor that cannot be read: not found, not a vision-language model, or of an unknown family."""


class CaptureError(ProbeError):
    """A recording that was not possible, or not complete, for the model as it is."""


class CertificateError(CaptureError):
    """A recording that could be made but does not reproduce what the model itself computed."""


def did_you_mean(wanted: str, known: Iterable[str], *, limit: int = 3) -> str:
    """A hint such as ``" Did you mean 'red circle'?"``, or an empty string when nothing is close.

    The hint starts with a blank, so that it can be appended to any message.
    """
    candidates = list(dict.fromkeys(known))
    lowered = {name.casefold(): name for name in candidates}
    close = difflib.get_close_matches(wanted.casefold(), lowered, n=limit, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + " or ".join(repr(lowered[name]) for name in close) + "?"
