"""Words of others, such as captions and file names, written where a program would act on them: spreadsheets and terminals."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["spreadsheet_frame", "spreadsheet_table", "terminal_text"]

#: A cell that begins with one of these is a formula, or becomes one once a program has cut off what stands before it; the wide
#: forms of the signs count where the keyboard types them.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
#: What turns the direction in which text is read, so that it shows as something else than it is.
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def terminal_text(text: str) -> str:
    """The text with what a terminal would obey written out: an escape character becomes the four letters ``\\x1b``.

    Line breaks and tabs stay, and so does every letter, mark and joiner of any script.
    """
    if text.isprintable():
        return text
    return "".join(_shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter in "\n\t" or not (letter in _TURNS or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")):
        return letter
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def spreadsheet_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with an apostrophe before every text that a spreadsheet would take for a formula; numbers as they are."""
    return frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell)


def spreadsheet_table(table: Any) -> Any:
    """As ``spreadsheet_frame``, of a table of pyarrow."""
    import pyarrow as pa
    from pyarrow import compute

    for number, column in enumerate(table.schema):
        if pa.types.is_string(column.type):
            cells = table.column(number)
            quoted = compute.binary_join_element_wise("'", cells, "")
            formula = compute.is_in(compute.utf8_slice_codeunits(cells, 0, 1), pa.array(_FORMULAS))
            table = table.set_column(number, column, compute.if_else(formula, quoted, cells))
    return table
