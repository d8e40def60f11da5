"""The first thing that a command does, before the seconds in which libraries are imported. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
from types import FrameType


def begin() -> None:
    """Give the process the three standard streams, and one sentence to a Ctrl-C while libraries are imported.

    A stream that the caller closed (``2>&-``) becomes the null device: else the next file that is opened, a record
    perhaps, would take its number, and what libraries print would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        which = getattr(signal, name, None)
        if which is not None and signal.getsignal(which) is not signal.SIG_IGN:  # as under nohup
            signal.signal(which, _leave)


def _leave(number: int, _: FrameType | None) -> None:
    """At once: an exception could be swallowed by an import, and there is nothing to tidy."""
    try:
        os.write(2, b"\ninterrupted\n")
    finally:
        os._exit(128 + number)
