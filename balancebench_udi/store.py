"""Records on disk: written once, claimed while they are made, never half there.

Layout below the results folder::

    records/<dataset>/<method>/<key>.json    one finished run
    failures/<key>.txt                       the traceback of a run that broke
    claims/<key>.lock                        held by the process that works on it
    checkpoints/<key>.pt                     where an interrupted run goes on
    weights/<key>.pt, <key>.sha256           trained networks, where they were asked for, and their checksum
    stages/<stage key>.pt                    finished phases that several methods share

Checkpoints and stages end with a checksum; one that is damaged is set aside as ``*.damaged``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import torch
from torch import Tensor

from balancebench_udi import files
from balancebench_udi.errors import UserError
from balancebench_udi.files import Locks, explained
from balancebench_udi.spec import RunSpec, canonical, keys_of

FORMAT = 2
"""Of the records that are written: from 2 on they hold a checksum of everything in them, ``sha256``."""
STATE = b"\nbalancebench state 1 "
"""What comes between a checkpoint or a stage and its checksum."""
SUMS = "SHA256SUMS"
"""List of checksums that may lie in the folder of the records."""
AGAIN = "delete it to train again"


class Store:
    """The results folder ``root``; with ``weights`` a run is only done when its trained networks are kept, too."""

    def __init__(self, root: Path, weights: bool = False) -> None:
        self.root = root
        self.weights = weights
        self.say: Callable[[str], None] = print

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
        return read_record(path) if os.path.lexists(path) else None

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
        with explained(path):
            files.create(path, text.encode())
        checkpoint = self.checkpoint_path(spec)
        killed = checkpoint.parent.glob(f".{checkpoint.name}.*")  # what processes that were killed left
        for leftover in (self.failure_path(spec), checkpoint, *killed):
            with contextlib.suppress(OSError):
                leftover.unlink()
        return path

    def write_failure(self, spec: RunSpec, text: str) -> Path:
        """Keep why a run broke; the next call tries it again."""
        path = self.failure_path(spec)
        self.replace(path, lambda handle: handle.write(text.encode()))
        return path

    def replace(self, path: Path, write: Callable[[BinaryIO], Any]) -> None:
        """Replace ``path`` by what ``write(handle)`` writes, all or nothing."""
        with explained(path):
            files.replace(path, write)

    # -- states ------------------------------------------------------------------------------------------------------

    def save_state(self, path: Path, state: Mapping[str, Any]) -> None:
        """:func:`save_state`; a refusal is a sentence."""
        with explained(path):
            save_state(path, state)

    def load_state(self, path: Path, fits: Callable[[Any], bool], instead: str) -> Any | None:
        """A checkpoint or a stage; None where there is none.

        One that is damaged, or that is not what ``fits``, is set aside, and a line says so.

        Args:
            instead: what happens then, such as "the run starts again".
        """
        if not os.path.lexists(path):
            return None
        state = load_state(path)
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # of another version
            if isinstance(state, dict) and fits(state):
                return state
        aside = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.damaged")
        with explained(path), contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(path, aside)
            self.say(f"{path} is damaged or of another version: it is now {aside.name}, and {instead}")
        return None

    def save_weights(self, spec: RunSpec, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep trained networks: a plain file of torch, and its checksum beside it."""
        path = self.weights_path(spec)

        def write(handle: BinaryIO) -> None:
            passed: Any = _Summed(handle)
            torch.save(tensors, passed)
            digest = passed.sum.hexdigest()
            files.replace(path.with_suffix(".sha256"), lambda beside: beside.write(f"{digest}  {path.name}\n".encode()))

        self.replace(path, write)

    def load_weights(self, spec: RunSpec) -> dict[str, dict[str, Tensor]]:
        """``{reading: {tensor name: value}}`` as they were kept.

        Raises:
            UserError: they cannot be read, or are not what was kept.
        """
        path = self.weights_path(spec)
        with _readable(path):
            data, beside = path.read_bytes(), path.with_suffix(".sha256")
            digest = beside.read_bytes()[:64].decode(errors="replace") if os.path.lexists(beside) else None
        tensors = _loaded(io.BytesIO(data)) if digest in (None, hashlib.sha256(data).hexdigest()) else None
        if not isinstance(tensors, dict) or not all(
            isinstance(values, dict) and all(isinstance(value, Tensor) for value in values.values())
            for values in tensors.values()
        ):
            raise UserError(f"{path} must hold the weights that were kept, found a damaged file: {AGAIN}")
        return tensors

    # -- claims ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def locks(self) -> Locks:
        """Of the folder of the claims, which is made.

        Raises:
            UserError: nothing can be written there.
        """
        folder = self.root / "claims"
        with explained(folder):
            return Locks(folder)

    def prepare(self, say: Callable[[str], None] = print) -> None:
        """Find out whether anything can be written, and say what the file system cannot do.

        Raises:
            UserError: nothing can be written.
        """
        self.say = say
        if "locks" in vars(self):
            return
        locks, lost = self.locks, []
        if not locks.flock:
            minutes = round(files.LEASE_SECONDS / 60)
            lost.append(
                f"no flock: claims are leases of {minutes} minutes, and a run that is killed on another machine is "
                "free again after that"
            )
        if not locks.links:
            lost.append("no hard links: only its claim keeps a record from being written twice")
        if lost:
            say(f"the file system of {self.root} has {'; and '.join(lost)}")

    @contextlib.contextmanager
    def claim(self, spec: RunSpec) -> Iterator[bool]:
        """True while this process holds ``spec``, False where another one does. A process that dies lets go."""
        path = self.root / "claims" / f"{spec.key}.lock"
        self._check_places(spec)
        with contextlib.ExitStack() as stack:
            with explained(path):
                mine = stack.enter_context(self.locks.hold(path))
            yield mine

    def _check_places(self, spec: RunSpec) -> None:
        """Refuse, before anything is trained, files where folders should be, and a folder where a file should be."""
        for path in (self.record_path(spec), self.failure_path(spec), self.weights_path(spec), self.stage_path("")):
            for folder in path.relative_to(self.root).parents:
                with explained(self.root / folder):
                    if os.path.lexists(self.root / folder) and not (self.root / folder).is_dir():
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with explained(self.failure_path(spec)):
            if self.failure_path(spec).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def read_record(path: Path) -> dict[str, Any]:
    """One record file.

    Raises:
        UserError: not JSON (which has no NaN), not a record, or not the one that its name and its folders promise.
    """
    try:
        with _readable(path):
            record = orjson.loads(path.read_bytes())
        spec, (key, cell) = record["spec"], keys_of(record["spec"])
        record["result"]["readings"], record["result"]["modalities"], record["cost"], record["machine"]
        told, version = (record["key"], record["cell"]), record["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} must be a record, found a damaged file ({error}): {AGAIN}") from None
    if version not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} must be of a format up to {FORMAT}, found {version!r}: update balancebench, or {AGAIN}"
        )
    if told != (key, cell):
        raise UserError(f"{path} must hold the specification of {told[0]}, found that of {key}: {AGAIN}")
    if path.stem != key:
        raise UserError(f"{path} must hold the record {path.stem}, found {key}: {AGAIN}")
    if path.parts[-3:-1] != (spec["dataset"], spec["method"]):
        raise UserError(f"{path} must lie in {spec['dataset']}/{spec['method']}, found another folder: move it there")
    return record


def sealed(spec: RunSpec, result: Any, cost: Any, data: Any, machine: Any) -> dict[str, Any]:
    """The record of a run, with its checksums."""
    parts = {"result": result, "result_sha256": _sha256(result), "cost": cost, "data": data, "machine": machine}
    record = {"format": FORMAT, "key": spec.key, "cell": spec.cell, "spec": spec.as_dict(), **parts}
    return {**record, "sha256": _sha256(record)}


def check_record(path: Path) -> None:
    """Make sure that a record file is as it was written; those of format 1 have a checksum of the result only.

    Raises:
        UserError: it is not, or the file is not a record.
    """
    record = read_record(path)
    if _sha256(record["result"]) != record.get("result_sha256"):
        raise UserError(f"{path} must hold the result that was recorded, found another: {AGAIN}")
    seal = record.pop("sha256", None)
    if record["format"] > 1 and seal != _sha256(record):
        raise UserError(f"{path} must be as it was recorded, found another cost, machine or data: {AGAIN}")


def listed_sums(records: Path) -> dict[Path, str]:
    """File -> SHA-256 of the records that ``SHA256SUMS`` in their folder lists, as ``sha256sum`` writes it.

    Those of format 1 have no checksum of everything in them.

    Raises:
        UserError: the list is damaged.
    """
    path = records / SUMS
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        pairs = [line.split("  ", 1) for line in lines]
        return {records / name: digest for digest, name in pairs}
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} must be a list as sha256sum writes it, found: {error}; restore it") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint or a stage, all or nothing: a file of torch, STATE, and a checksum of its name and content.

    Raises:
        OSError: it cannot be written.
    """

    def write(handle: BinaryIO) -> None:
        passed: Any = _Summed(handle, path.name.encode())
        torch.save(state, passed)
        handle.write(STATE + passed.sum.hexdigest().encode())

    files.replace(path, write)


def load_state(path: Path) -> Any | None:
    """What :func:`save_state` wrote; None where there is none, or it is damaged."""
    length = len(STATE) + 64
    try:
        with path.open("rb") as handle:
            data = handle.read(max(0, os.fstat(handle.fileno()).st_size - length))
            end = handle.read()
    except OSError:
        return None
    digest = hashlib.sha256(path.name.encode())
    digest.update(data)
    return _loaded(io.BytesIO(data)) if end == STATE + digest.hexdigest().encode() else None


class _Summed:
    """Passes what is written on to a file, and keeps the SHA-256 of it, and of ``before``."""

    def __init__(self, handle: BinaryIO, before: bytes = b"") -> None:
        self.handle = handle
        self.sum = hashlib.sha256(before)

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return self.handle.write(data)

    def flush(self) -> None:
        self.handle.flush()


def _loaded(handle: BinaryIO) -> Any | None:
    """What ``torch.save`` wrote, tensors and plain values only; None where it is damaged."""
    try:
        return torch.load(handle, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # torch raises many kinds for a damaged file, and every one means the same here
        return None


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to read into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} must be readable, found: {error.strerror or error}; move it away") from error
