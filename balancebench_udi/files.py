"""Files that several processes write: whole or absent, and locks that end with their holder, on any file system.

Where ``flock`` is missing (Lustre mounted without it, NFS without a lock daemon, Windows) a lock is a lease: a file
that only one process can create, and that it renews. Where hard links are missing (exFAT, many FUSE file systems) only
the lock keeps two processes from writing the same file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from balancebench_udi.errors import UserError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

LEASE_SECONDS = 600.0
"""A lease that was not renewed for so long is free."""
RENEWALS = 10
"""Times that a lease is renewed within LEASE_SECONDS."""
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What fsync says where it can do nothing."""
NO_LINK = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.EINVAL)
"""What link says where there are no hard links."""


# -- refusals ----------------------------------------------------------------------------------------------------------


def reason(error: OSError) -> str:
    """Why the operating system refused, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "it is not writable"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file lies where a folder should be"
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY):
        return "a folder lies where a file should be"
    if error.errno == errno.EIO:
        return "the disk reports an error"
    return f"the system says: {error.strerror or error}"


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``path`` into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written because {reason(error)}: choose another --out or make room; "
            "finished runs are kept"
        ) from error


# -- whole or absent ---------------------------------------------------------------------------------------------------


class _Watched(io.FileIO):
    """A file that remembers the system's refusal: torch and others replace it by an error of their own."""

    refusal: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refusal = error
            raise


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file ``.NAME.xxxxxxxx`` beside ``path``, with the mode of any new file there; removed at the end.

    Raises:
        OSError: it cannot be written, also where what was written inside hid that behind another error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    watched = _Watched(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb")
    try:
        with io.BufferedWriter(watched) as handle:
            yield name, handle
    except Exception as error:
        if watched.refusal is not None and error is not watched.refusal:
            raise watched.refusal from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace ``path`` by what ``write(handle)`` writes, all or nothing.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with temporary(path) as (name, handle):
        write(handle)
        _sync(handle)
        os.replace(name, path)
    _sync_folder(path.parent)


def create(path: Path, data: bytes) -> None:
    """Write ``path`` once, whole; a file that is there already stays as it is.

    Without hard links, two processes that do so in the same instant both write it, whole: hold its lock meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    with temporary(path) as (name, handle):
        handle.write(data)
        _sync(handle)
        try:
            os.link(name, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            if not os.path.lexists(path):
                os.replace(name, path)
    _sync_folder(path.parent)


def _sync(handle: BinaryIO) -> None:
    handle.flush()
    try:
        os.fsync(handle.fileno())
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _sync_folder(folder: Path) -> None:
    """Have the folder itself on disk, where that is possible: the file in it is."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- locks -------------------------------------------------------------------------------------------------------------


class Locks:
    """Locks that are files of ``folder``, which is made; what its file system can do is tried out once.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        with temporary(folder / "probe") as (name, handle):
            self.flock = _can_flock(handle)
            self.links = _can_link(name)

    @contextlib.contextmanager
    def hold(self, path: Path) -> Iterator[bool]:
        """True while this process holds ``path``, False where another one does; the file is removed at the end.

        Raises:
            OSError: the file cannot be made.
        """
        if self.flock:
            descriptor = _lock(path)
            try:
                yield descriptor is not None
            finally:
                if descriptor is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(path)  # before it is free: whoever waits for this file sees that it is gone
                    os.close(descriptor)
            return
        token = _lease(path)
        ended = threading.Event()
        if token is not None:
            threading.Thread(target=_renew, args=(path, token, ended), daemon=True).start()
        try:
            yield token is not None
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                if token is not None and path.read_bytes() == token:
                    os.unlink(path)


def held(path: Path) -> bool:
    """Whether some process holds the lock ``path``, as far as can be told without writing anything.

    Raises:
        OSError: it cannot be read.
    """
    try:
        if path.read_bytes():
            return _live(path)
        if fcntl is not None:
            with path.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return True
        if error.errno == errno.EISDIR:
            raise
    return _live(path)


def _can_flock(handle: BinaryIO) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _can_link(name: Path) -> bool:
    other = name.with_name(f"{name.name}2")
    try:
        os.link(name, other)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False
    os.unlink(other)
    return True


def _lock(path: Path) -> int | None:
    """The descriptor of the locked file; None where another process has it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError as refused:  # made by another user
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:
                raise refused from None
        kept = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                said = path.read_bytes()
                kept = not said
                if kept:
                    return descriptor
                if _live(path):  # a lease, of a machine on which this folder has no flock
                    return None
                _take_away(path, said)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # its last holder has removed it: once more
                raise
        finally:
            if not kept:
                os.close(descriptor)


def _lease(path: Path) -> bytes | None:
    """What the lease says that this process has got; None where another one has it."""
    token = json.dumps({**_this_process(), "lease": secrets.token_hex(8)}).encode()
    for _ in range(100):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            try:
                said, live = path.read_bytes(), _live(path)
            except FileNotFoundError:
                continue
            if live:
                return None
            _take_away(path, said)
            continue
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(token)
                _sync(handle)
        except OSError:
            os.unlink(path)
            raise
        return token
    return None


def _renew(path: Path, token: bytes, ended: threading.Event) -> None:
    """Write the lease again and again, which changes its time, as long as it is still this process's."""
    while not ended.wait(LEASE_SECONDS / RENEWALS):
        try:
            with path.open("r+b") as handle:
                if handle.read() != token:
                    return
                handle.seek(0)
                handle.write(token)
                _sync(handle)
        except FileNotFoundError:
            return
        except OSError:  # the next time, perhaps
            continue


def _take_away(path: Path, said: bytes) -> None:
    """Remove a lease that is free, unless another process has just done so and taken it."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        os.rename(path, aside)
        if aside.read_bytes() == said:
            os.unlink(aside)
        else:
            os.rename(aside, path)
    except FileNotFoundError:
        pass


def _live(path: Path) -> bool:
    """Whether the lease ``path`` was renewed of late, and its process is not known to be dead."""
    said, renewed = path.read_bytes(), path.stat().st_mtime
    try:
        holder = json.loads(said)
        here = {name: holder[name] == value for name, value in _this_process().items()}
        if here["host"] and here["processes"] and not here["pid"] and not _runs(holder["pid"]):
            return False
    except (ValueError, KeyError, TypeError):  # of a process that died before it wrote anything
        pass
    return _now(path.parent) - renewed <= LEASE_SECONDS


def _this_process() -> dict[str, Any]:
    """Host, number, and the list of processes that the number belongs to: a container has one of its own."""
    try:
        processes = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        processes = 0
    return {"host": platform.node(), "processes": processes, "pid": os.getpid()}


def _runs(pid: int) -> bool:
    if os.name != "posix":  # pragma: no cover - there kill(pid, 0) is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _now(folder: Path) -> float:
    """The time by the clock that the folder's files are dated with, which may be that of a server."""
    try:
        with temporary(folder / "now") as (name, handle):
            handle.write(b"now")
            handle.flush()
            return name.stat().st_mtime
    except OSError:
        return time.time()
