"""Records on disk: written once, claimed while they are made, never half there.

Layout below the results folder::

    records/<dataset>/<method>/<key>.json    one finished run
    failures/<key>.txt                       the traceback of a run that broke
    claims/<key>.lock                        held by the process that works on it
    checkpoints/<key>.pt                     where an interrupted run goes on
    weights/<key>.pt                         trained networks, where they were asked for
    stages/<stage key>.pt                    finished phases that several methods share
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from balancebench_udi.errors import UserError
from balancebench_udi.spec import RunSpec, canonical

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock: runs are then not protected against a second worker
    fcntl = None  # type: ignore[assignment]


REQUIRED = [f.name for f in dataclasses.fields(RunSpec) if f.default is dataclasses.MISSING]
"""What every record's specification has."""


class Store:
    """The results folder ``root``; with ``weights`` a run is only done when its trained networks are kept, too."""

    def __init__(self, root: Path, weights: bool = False) -> None:
        self.root = root
        self.weights = weights

    def record_path(self, spec: RunSpec) -> Path:
        return self.root / "records" / spec.dataset / spec.method / f"{spec.key}.json"

    def checkpoint_path(self, spec: RunSpec) -> Path:
        return self.root / "checkpoints" / f"{spec.key}.pt"

    def weights_path(self, spec: RunSpec) -> Path:
        return self.root / "weights" / f"{spec.key}.pt"

    def failure_path(self, spec: RunSpec) -> Path:
        return self.root / "failures" / f"{spec.key}.txt"

    def stage_path(self, key: str) -> Path:
        return self.root / "stages" / f"{key}.pt"

    def load(self, spec: RunSpec) -> dict[str, Any] | None:
        """The record of ``spec``, or None where it does not exist.

        Raises:
            UserError: a file that is not a record of this run.
        """
        path = self.record_path(spec)
        if not path.exists():
            return None
        record = read_record(path)
        if record["key"] != spec.key:
            raise UserError(f"{path} must hold the record {spec.key}, found {record['key']}: delete it to train again")
        return record

    def done(self, spec: RunSpec) -> bool:
        """Whether nothing is left to do for ``spec``.

        Raises:
            UserError: a file that is not a record of this run.
        """
        return self.load(spec) is not None and (not self.weights or self.weights_path(spec).exists())

    def record_paths(self, dataset: str | None = None, method: str | None = None) -> list[Path]:
        """The files of the records, sorted; of one dataset and of one method where they are named."""
        folders = [glob.escape(name) if name is not None else "*" for name in (dataset, method)]
        return sorted((self.root / "records").glob("/".join([*folders, "*.json"])))

    def records(self, dataset: str | None = None, method: str | None = None) -> Iterator[dict[str, Any]]:
        """The records in :meth:`record_paths`, in that order, each read when it is asked for.

        Raises:
            UserError: a file that is not a record.
        """
        return map(read_record, self.record_paths(dataset, method))

    def write(self, spec: RunSpec, record: dict[str, Any]) -> Path:
        """Write ``record`` once: a file that is there already stays as it is."""
        path = self.record_path(spec)
        text = json.dumps(record, sort_keys=True, indent=1, allow_nan=False) + "\n"
        with self._explained(path), _temporary(path) as (handle, temporary):
            handle.write(text.encode())
            _sync(handle)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        self.failure_path(spec).unlink(missing_ok=True)
        checkpoint = self.checkpoint_path(spec)
        for leftover in (checkpoint, *checkpoint.parent.glob(f".{checkpoint.name}.*")):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        return path

    def write_failure(self, spec: RunSpec, text: str) -> Path:
        """Keep why a run broke; the next call tries it again."""
        path = self.failure_path(spec)
        self.replace(path, lambda handle: handle.write(text.encode()))
        return path

    def replace(self, path: Path, write: Callable[[BinaryIO], Any]) -> None:
        """Replace ``path`` by what ``write(handle)`` writes, all or nothing."""
        with self._explained(path), _temporary(path) as (handle, temporary):
            write(handle)
            _sync(handle)
            os.replace(temporary, path)

    def prepare(self) -> None:
        """Make the folder of the claims, and so find out whether anything can be written.

        Raises:
            UserError: it cannot.
        """
        with self._explained(self.root / "claims"):
            (self.root / "claims").mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def claim(self, spec: RunSpec) -> Iterator[bool]:
        """True while this process holds ``spec``, False where another one does. A process that dies lets go."""
        path = self.root / "claims" / f"{spec.key}.lock"
        with self._explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a")
        with handle:
            if fcntl is not None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EACCES):
                        yield False
                        return
                    raise
            yield True

    @contextlib.contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        """Turn the operating system's refusals into a sentence."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = "the disk is full"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                what = "it is not writable"
            elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
                what = "a file lies where a folder should be"
            else:
                raise
            raise UserError(
                f"{path} could not be written because {what}: choose another --out or make room; finished runs are kept"
            ) from error


def read_record(path: Path) -> dict[str, Any]:
    """One record file.

    Raises:
        UserError: not JSON (which has no NaN), or not a record.
    """
    try:
        record = orjson.loads(path.read_bytes())
        record["key"], [record["spec"][name] for name in REQUIRED]
        record["result"]["readings"], record["result"]["modalities"], record["cost"], record["machine"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must be a record, found a damaged file ({error}): delete it to train again") from None
    return record


def check_result(path: Path) -> None:
    """Make sure that the result in a record file is the one that was written with it.

    Raises:
        UserError: it is not, or the file is not a record.
    """
    record = read_record(path)
    if hashlib.sha256(canonical(record["result"]).encode()).hexdigest() != record.get("result_sha256"):
        raise UserError(f"{path} must hold the result that was recorded, found another: delete it to train again")


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
            yield handle, name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _sync(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())
