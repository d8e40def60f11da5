"""What a dataset says of its source: samples, classes, problems, and the shape of what is stored of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from balancebench_udi.data.base import fingerprint

SILENT = "silent"
"""What is remarked on a sample whose sound is."""


@dataclass(frozen=True)
class Stored:
    """What a pack keeps of one modality: ``[N, *shape]`` of numpy's ``dtype``."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Item:
    """One sample of a source.

    Attributes:
        id: unique name.
        label: its class.
        files: what is read; their bytes enter the fingerprint.
        columns: name -> value, columns of the index: ``train``, ``val`` or ``test`` of a list of splits, or a group;
            nothing that decoding needs, so that lists may come while a pack is being made.
        detail: anything else that decoding needs, JSON types; it enters the fingerprint.
    """

    id: str
    label: str
    files: tuple[Path, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    detail: Any = None


@dataclass(frozen=True)
class Problem:
    """A sample that is not as it should be; ``kept`` says whether the pack holds it nevertheless."""

    id: str
    reason: str
    kept: bool = False


@dataclass(frozen=True)
class Listing:
    """What a source should hold: samples that can be read, classes in order, and those that cannot be found."""

    items: Sequence[Item]
    classes: tuple[str, ...]
    problems: Sequence[Problem] = ()


def source_digest(listing: Listing) -> str:
    """Hash of classes, samples, names and sizes of their files, and what is missing, wherever the source lies."""
    samples = [
        [i.id, i.label, dict(i.columns), i.detail, [[p.name, *stamp(p)[:1]] for p in i.files]]
        for i in sorted(listing.items, key=lambda item: item.id)
    ]
    return fingerprint(
        {"classes": listing.classes, "samples": samples, "missing": sorted(p.id for p in listing.problems)}
    )


def stamp(path: Path) -> list[int]:
    """Bytes of a file, and when it was written and put in its place, ns; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
