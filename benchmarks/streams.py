"""Standard output and error that never stop the work: what cannot be written is dropped, and the first reason kept."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any


class Lossy(io.FileIO):
    """A file for writing that drops what cannot be written.

    Attributes:
        problem: why something was dropped first; None so far.
    """

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or pretend to; a stream that another program made non-blocking is waited for."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as problem:
            self.problem = self.problem or problem
            return memoryview(data).nbytes


@contextlib.contextmanager
def lossy() -> Iterator[Lossy | None]:
    """Replace the process's own stdout and stderr, for as long as this lasts; yields the file below stdout.

    Streams that someone else has put in their place, as tests do, stay: then it yields None. What has no character in
    their encoding is escaped: names of files are bytes.
    """
    if os.name != "posix" or sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        yield None
        return
    before = sys.stdout, sys.stderr
    out, sys.stdout = _over(1, sys.stdout)
    _, sys.stderr = _over(2, sys.stderr)
    try:
        yield out
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _over(number: int, stream: Any) -> tuple[Lossy, io.TextIOWrapper]:
    """A stream in place of ``stream`` of that number, which is None where the caller has closed it."""
    if stream is None:
        file = Lossy(os.devnull, "w")
        file.problem = OSError(errno.EBADF, os.strerror(errno.EBADF))
        return file, io.TextIOWrapper(io.BufferedWriter(file), "utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        stream.flush()
    file = Lossy(number, "w", closefd=False)
    by_line = stream.line_buffering or stream.write_through
    return file, io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, "backslashreplace", line_buffering=by_line)
