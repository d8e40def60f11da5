"""Signals that end a call: at once, or after the current epoch where finished epochs are not on disk yet."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

HEARD = [s for s in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")) if s is not None]
PATIENCE = 8.0
"""Most seconds that an unsaved epoch delays the end; schedulers and containers kill after ten and more."""


class Stopped(KeyboardInterrupt):
    """A signal asked the call to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    """Of this process: signals are the process's, and only its main thread hears them."""

    asked: int = 0
    """Number of the first signal; 0: none."""
    unsaved: bool = False
    postponed: bool = False


def asked() -> bool:
    """Whether the call is to end as soon as the finished epochs are saved."""
    return bool(_State.asked)


def unsaved(epochs: bool) -> None:
    """Say whether finished epochs would be lost if the process ended now.

    Raises:
        Stopped: none would, and a signal asked for the end.
    """
    _State.unsaved = epochs
    if _State.asked and not epochs:
        raise Stopped(_State.asked)


@contextlib.contextmanager
def listening(worker: bool = False) -> Iterator[None]:
    """Turn the signals that end a call into :class:`Stopped`, for as long as this lasts.

    Where finished epochs are unsaved, :func:`unsaved` raises it when they are saved, a second signal at once, and a
    timer after :data:`PATIENCE` seconds. A signal that is ignored (``nohup``) stays ignored.

    Args:
        worker: the process belongs to a call that hears Ctrl-C for it, and may get the same signal from the call and
            from its scheduler: a second one means nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(number: int, _: FrameType | None) -> None:
        again, _State.asked = bool(_State.asked), _State.asked or number
        if _State.postponed or (again and worker):
            return
        if again or not _State.unsaved or not hasattr(signal, "setitimer"):
            raise Stopped(number)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        if not worker:
            with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
                os.write(2, b"\nstopping after this epoch; a second signal stops at once\n")

    def late(_: int, __: FrameType | None) -> None:
        raise Stopped(_State.asked)

    handlers: dict[int, Any] = {number: hear for number in HEARD if signal.getsignal(number) is not signal.SIG_IGN}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = late
    _State.asked, _State.unsaved, _State.postponed = 0, False, False
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.asked, _State.unsaved = 0, False


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Raise :class:`Stopped` after the block instead of inside it."""
    _State.postponed = True
    try:
        yield
    finally:
        _State.postponed = False
    if _State.asked:
        raise Stopped(_State.asked)
