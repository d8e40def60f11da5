"""The two ways a run can end badly."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from unicodedata import category

_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, undecodable bytes, and ends of lines and paragraphs."""


class UserError(Exception):
    """Something the user can mend. Its text is one sentence: what should hold, what was found, what to do.

    The command line prints the sentence and exits with 2, without a traceback. It stays one line whatever the names of
    files are that it quotes: control characters are shown as escapes.
    """

    def __str__(self) -> str:
        return "".join(repr(c)[1:-1] if category(c) in _CONTROL else c for c in super().__str__())


class RunFailed(Exception):
    """One run of a sweep broke (a loss that is not finite, say). It is stored as a failure and the sweep goes on."""


def near_misses(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'ogm'?"`` for a name that resembles a known one, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; known: " + ", ".join(known)
