"""Digests of the files of a pack, and what says that its arrays were compared with them.

The digest of an array is SHA-256 over its header and the SHA-256 of each of its rows: threads hash rows while they
decode them, in any order, and none is read again for it. That of any other file is its SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from balancebench_udi.data.pack.format import VERIFIED, array_names
from balancebench_udi.data.pack.source import Stored
from balancebench_udi.errors import UserError

_CHUNK = 8 << 20  # bytes that one thread reads at a time
_THREADS = 4
_DELAY = 1.0  # seconds before a bar is drawn
_trusted: set[str] = set()  # stamps of arrays that this process verified, for where they cannot be written down


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def row_digest(row: np.ndarray) -> str:
    """SHA-256 of the bytes of one row, hex."""
    return hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()


def array_digest(path: Path, rows: Iterable[bytes], row_bytes: int, count: int) -> str:
    """The digest of an array of ``count`` rows of ``row_bytes`` bytes with the digests ``rows``; its header is read."""
    with path.open("rb") as handle:
        digest = hashlib.sha256(handle.read(max(0, path.stat().st_size - count * row_bytes)))
    for row in rows:
        digest.update(row)
    return digest.hexdigest()


def compute_digests(folder: Path, manifest: Mapping[str, Any], names: Iterable[str], quiet: bool) -> dict[str, str]:
    """Read files of a pack in full: name -> digest, or why there is none (no digest looks like it).

    Args:
        quiet: no progress bar; without it there is one where it takes more than a second.
    """
    names = list(names)
    total = sum(manifest["bytes"][name] for name in names)
    found = {}
    with (
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        tqdm(
            total=total, desc="verify", unit="B", unit_scale=True, delay=_DELAY, disable=True if quiet else None
        ) as bar,
    ):
        for name in names:
            try:
                if name in array_names(manifest):
                    found[name] = _whole_array(folder / name, manifest, pool, bar)
                else:
                    found[name] = file_digest(folder / name)
                    bar.update(manifest["bytes"][name])
            except OSError as error:
                found[name] = error.strerror or str(error)
    return found


def _whole_array(path: Path, manifest: Mapping[str, Any], pool: ThreadPoolExecutor, bar: tqdm) -> str:
    """The digest of an array, all of it read."""
    stored = manifest["stored"][path.name.removesuffix(".npy")]
    size, count = Stored(tuple(stored["shape"]), stored["dtype"]).nbytes, manifest["samples"]
    at_once = max(1, _CHUNK // max(1, size))
    with path.open("rb") as handle:
        start = max(0, os.fstat(handle.fileno()).st_size - count * size)

        def digests(first: int) -> list[bytes]:
            """Of a chunk of rows; read, not mapped: a damaged disk is an error here, not a signal."""
            rows = min(at_once, count - first)
            data = memoryview(os.pread(handle.fileno(), rows * size, start + first * size))
            bar.update(len(data))
            return [hashlib.sha256(data[i * size : (i + 1) * size]).digest() for i in range(rows)]

        chunks = pool.map(digests, range(0, count, at_once))
        return array_digest(path, (row for chunk in chunks for row in chunk), size, count)


def damaged_files(folder: Path, manifest: Mapping[str, Any], names: Iterable[str], quiet: bool) -> list[str]:
    """Those of ``names`` that are not what the manifest says, read in full."""
    found = compute_digests(folder, manifest, names, quiet)
    return [name for name, digest in found.items() if digest != manifest["digests"][name]]


def refuse_damaged(folder: Path, names: list[str]) -> None:
    """Refuse a pack, some files of which are damaged.

    Raises:
        UserError: there are any.
    """
    if names:
        raise UserError(
            f"every file of {folder} must have the SHA-256 digest of its manifest, found another one of "
            f"{', '.join(names)}; remove {folder} and prepare again"
        )


# -- what was verified ------------------------------------------------------------------------------------------------


def verify_once(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the arrays of a pack with their digests, unless that was done since they were last written.

    What was done is noted in the pack; where it cannot be written, this process remembers it.

    Raises:
        UserError: a damaged array.
    """
    now = stamps(folder, manifest)
    if now in _trusted or now == _noted(folder):
        return
    refuse_damaged(folder, damaged_files(folder, manifest, array_names(manifest), quiet=False))
    _trusted.add(now)
    with contextlib.suppress(OSError):  # a data root that is read-only, or full
        write_verified(folder, manifest, now)


def write_verified(folder: Path, manifest: Mapping[str, Any], at: str | None = None) -> None:
    """Note that the arrays are what the manifest says: as they are now, or as they were at the stamps ``at``."""
    fresh = folder / f"{VERIFIED}.{os.getpid()}"
    try:
        fresh.write_text(stamps(folder, manifest) if at is None else at)
        os.replace(fresh, folder / VERIFIED)
    finally:
        fresh.unlink(missing_ok=True)


def stamps(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Size, modification time (ns) and inode of every array, and the digests that they are compared with, as JSON."""
    found: dict[str, Any] = {}
    for name in array_names(manifest):
        try:
            file = (folder / name).stat()
        except OSError:
            found[name] = None
            continue
        found[name] = [manifest["digests"][name], file.st_size, file.st_mtime_ns, file.st_ino]
    return json.dumps(found, indent=1) + "\n"


def _noted(folder: Path) -> str | None:
    try:
        return (folder / VERIFIED).read_text()
    except (OSError, ValueError):
        return None
