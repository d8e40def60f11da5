"""Text from files and names, made safe to show: escaped for terminals, pages and spreadsheets, and cut to a length."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""C0, DEL, C1, line and paragraph separators, what turns the direction of text, and what no XML may hold."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""The beginning of a cell that a spreadsheet would calculate, after any apostrophes."""
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
"""What a spreadsheet takes for a number: it calculates nothing."""
FOUND = 100
"""Characters of a value that a sentence shows."""


def escape_controls(text: str, keep: str = "") -> str:
    r"""``text`` with what a terminal obeys or a page cannot hold written out: ESC as ``\x1b``, a newline as ``\n``.

    Args:
        text: any string.
        keep: characters that stay, such as ``"\n"`` in a text of several lines.
    """

    def written(sign: re.Match[str]) -> str:
        c = sign[0]
        if c in keep:
            return c
        return _SHORT.get(c) or (f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}")

    return _UNSEEN.sub(written, text)


def shortened(text: str, most: int) -> str:
    """``text`` on one line of at most ``most`` characters, its middle left out where it is longer."""
    if len(text) > 2 * most:  # escaping a text of megabytes to show its ends takes seconds
        text = f"{text[:most]}...{text[-most:]}"
    text = escape_controls(text)
    if len(text) <= most:
        return text
    tail = (most - 3) // 4
    return f"{text[: most - 3 - tail]}...{text[len(text) - tail :]}"


def found(value: Any, most: int = FOUND) -> str:
    """``repr(value)`` for a sentence, of at most ``most`` characters, whatever the value."""
    try:
        text = repr(value)
    except Exception:  # a number of too many digits, too deep a nesting, a repr that is broken
        text = f"a value of the type {type(value).__name__}"
    return shortened(text, most)


def guard_cell(text: str) -> str:
    """A text cell that no spreadsheet calculates: an apostrophe before ``=``, ``+``, ``-``, ``@``, tab and CR.

    Numbers such as ``-1.5`` stay. Where apostrophes already stand before one of these, one more is put, so that
    :func:`unguard_cell` is exact.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unguard_cell(text: str) -> str:
    """The inverse of :func:`guard_cell`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def guard_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of which no text cell or column name is calculated by a spreadsheet; numbers stay as they are."""
    return _mapped(frame, guard_cell)


def unguard_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The inverse of :func:`guard_frame`."""
    return _mapped(frame, unguard_cell)


def _mapped(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    import pandas as pd  # here: errors are raised long before any table is made

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    columns = {}
    for at in range(frame.shape[1]):
        column = frame.iloc[:, at]
        if not (pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_datetime64_any_dtype(column.dtype)):
            values = list(column)
            cells = [changed(value) for value in values]
            if any(new is not old for new, old in zip(cells, values, strict=True)):
                column = pd.Series(cells, index=column.index, dtype=object)
        columns[at] = column
    made = pd.DataFrame(columns, index=frame.index)
    made.columns = pd.Index([changed(name) for name in frame.columns], name=frame.columns.name)
    return made
