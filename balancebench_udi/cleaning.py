"""What lies in a results folder that nothing uses any more."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from balancebench_udi import files
from balancebench_udi.store import Store

FOLDERS = ("records", "failures", "claims", "checkpoints", "weights", "stages", "tables", "figures")
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")
"""Names of files that a process writes before it gives them their own."""
HOUR, DAY = 3600.0, 86400.0


@dataclass
class Kind:
    """Files of one kind that nothing uses."""

    name: str
    paths: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        whole = [inner for path in self.paths for inner in (path, *([] if path.is_symlink() else path.rglob("*")))]
        return sum(path.lstat().st_size for path in whole if os.path.lexists(path))


def unused(store: Store) -> list[Kind]:
    """What can be removed: records, weights, and what belongs to a run that a process holds are never among it.

    A stage only saves the next run of the same kind the time to train it; stages are left alone for a day, and as long
    as any run is held.
    """
    root = store.root
    recorded = {path.stem for path in store.record_paths()}
    claims = sorted((root / "claims").glob("*.lock"))
    held = {path.stem for path in claims if not path.is_dir() and files.held(path)}
    inside = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*"))]
    stages = [] if held else (root / "stages").glob("*.pt")
    return [
        Kind("temporary files of processes that were killed", [p for p in inside if _temporary(p)]),
        Kind("claims that nobody holds", [p for p in claims if p.stem not in held and not p.is_dir()]),
        Kind("failures of runs that have a record since", _of(root / "failures", "*.txt", recorded - held)),
        Kind("checkpoints of runs that have a record", _of(root / "checkpoints", "*.pt", recorded - held)),
        Kind("damaged checkpoints and stages that were set aside", [p for p in inside if p.suffix == ".damaged"]),
        Kind("stages, older than a day, which only save time", [p for p in sorted(stages) if _age(p) > DAY]),
    ]


def remove(store: Store, kinds: list[Kind]) -> list[Path]:
    """Remove what :func:`unused` found; returns what is gone. What a process has taken since stays.

    Raises:
        UserError: nothing can be written in the folder of the claims.
    """
    gone = []
    for path in (path for kind in kinds for path in kind.paths):
        claim = store.root / "claims" / f"{path.stem}.lock"  # of the run, if it belongs to one
        with contextlib.suppress(OSError), store.locks.hold(claim) as mine:
            if mine and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif mine and path != claim:
                path.unlink()
        if not os.path.lexists(path):
            gone.append(path)
    return gone


def _temporary(path: Path) -> bool:
    return bool(TEMPORARY.fullmatch(path.name)) and path.is_file() and _age(path) > HOUR


def _of(folder: Path, pattern: str, keys: set[str]) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if path.stem in keys]


def _age(path: Path) -> float:
    """Seconds since it was written."""
    return time.time() - path.lstat().st_mtime
