"""The two ways a run can end badly."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from balancebench_udi.text import shortened

LONGEST = 1200
"""Characters of a sentence; the middle of a longer one is left out."""


class UserError(Exception):
    """Something the user can mend. Its text is one sentence: what should hold, what was found, what to do.

    The command line prints the sentence and exits with 2, without a traceback. Whatever it quotes, it is one line of
    bounded length without control characters.
    """

    def __str__(self) -> str:
        return shortened(super().__str__(), LONGEST)


class RunFailed(Exception):
    """One run of a sweep broke (a loss that is not finite, say). It is stored as a failure and the sweep goes on."""


def near_misses(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'ogm'?"`` for a name that resembles a known one, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(shortened(str(name), 100), known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; known: " + ", ".join(known)
