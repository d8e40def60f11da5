"""The journal of a pack in the making: which rows are done, a line each, so that the next call goes on from there.

The first line is the hash of what is being built; of anything else the journal is of no use. Every other line carries
a checksum of its own: one that is cut, changed or foreign is passed over, and its row is decoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from balancebench_udi.data.pack.source import Item, stamp

Entry = dict[str, Any]
"""``row``; ``files``: SHA-256 of each file read; ``stamps`` of them; ``values``: modality -> SHA-256 of the stored row;
``remarks``; ``problem``: why there are no values, or None."""


def journal_line(entry: Entry) -> str:
    """One line, with its end."""
    return json.dumps({**entry, "check": _check(entry)}) + "\n"


def append(path: Path, entries: Iterable[Entry]) -> None:
    """Add lines, on disk when this returns."""
    with path.open("a") as handle:
        handle.writelines(map(journal_line, entries))
        handle.flush()
        os.fsync(handle.fileno())


def rewrite(path: Path, plan: str, entries: Iterable[Entry]) -> None:
    """Replace the journal by one of ``entries``."""
    fresh = path.with_suffix(".new")
    fresh.write_text("".join([plan + "\n", *map(journal_line, entries)]))
    os.replace(fresh, path)


def read(path: Path, plan: str, items: Sequence[Item], modalities: Collection[str]) -> tuple[dict[int, Entry], int]:
    """Rows that are done and as they should be, of files untouched since; and how many lines are of another plan."""
    try:
        first, *lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}, 0
    if first != plan.encode():
        return {}, sum(map(bool, lines))
    found = (_entry(line, items, modalities) for line in lines)
    return {entry["row"]: entry for entry in found if entry is not None}, 0


def _check(entry: Entry) -> str:
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _entry(line: bytes, items: Sequence[Item], modalities: Collection[str]) -> Entry | None:
    """What a line says, where it is whole and its row needs no decoding."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.pop("check", None) != _check(entry):
        return None
    row = entry.get("row")
    if type(row) is not int or not 0 <= row < len(items) or entry.get("problem", "") is not None:
        return None
    values, files = entry.get("values"), entry.get("files")
    whole = (
        entry.get("remarks") == []
        and isinstance(values, dict)
        and set(values) == set(modalities)
        and isinstance(files, list)
        and len(files) == len(items[row].files)
        and all(isinstance(digest, str) for digest in [*values.values(), *files])
        and entry.get("stamps") == [stamp(path) for path in items[row].files]
    )
    return entry if whole else None
