"""Which test samples belong together, so that they do not count as independent: those of one subject, video, speaker.

A dataset says so in :attr:`~balancebench_udi.data.base.Bundle.groups`, and every record of a run keeps it. For records
that were made before, the groups of some published test splits lie in ``groups/<fingerprint>.json``, written by
``benchmarks/groups.py`` from the data themselves.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from balancebench_udi.errors import UserError

FOLDER = Path(__file__).with_name("groups")
"""Of the groups of published test splits."""


@dataclass(frozen=True)
class Groups:
    """The groups of a test split; samples of different groups are exchangeable, those of one are not independent.

    Attributes:
        unit: what a group is, such as ``subject``.
        members: ``[N]`` the number of each sample's group, 0 to G - 1, in the order of the split.
    """

    unit: str
    members: tuple[int, ...]

    @classmethod
    def of(cls, unit: str, names: Iterable[Any]) -> Groups:
        """Number the groups by their names ``[N]``, in sorted order."""
        _, numbers = np.unique(np.array([str(name) for name in names]), return_inverse=True)
        return cls(unit, tuple(numbers.tolist()))

    def __len__(self) -> int:
        """The number G of groups."""
        return len(set(self.members))

    def array(self) -> npt.NDArray[np.int64]:
        """``[N]`` int64."""
        return np.array(self.members, dtype=np.int64)

    def as_dict(self) -> dict[str, Any]:
        """As a record keeps it."""
        return {"unit": self.unit, "members": list(self.members)}


def of_record(fingerprint: str, data: Mapping[str, Any], target: npt.ArrayLike) -> Groups | None:
    """The groups of the test samples of a run; None where every sample is exchangeable with every other.

    Args:
        fingerprint: of its data.
        data: what its record says of the data.
        target: ``[N]`` labels of its test samples, in order.

    Raises:
        UserError: groups that are of other samples.
    """
    labels = np.asarray(target)
    if "groups" in data:
        kept = data["groups"]
        if kept is None:
            return None
        found = Groups(kept["unit"], tuple(kept["members"]))
        source = "its record"
    else:
        read = published(fingerprint)
        if read is None:
            return None
        found, digest = read
        source = str(FOLDER / f"{fingerprint}.json")
        if digest != digest_of(labels):
            raise UserError(
                f"the groups in {source} must be of the test samples of the runs on {fingerprint}, the labels differ: "
                "write the file again with benchmarks/groups.py"
            )
    if len(found.members) != len(labels):
        raise UserError(
            f"the groups of a test split must be one a sample ({len(labels)}), found {len(found.members)} in {source}: "
            "write them again"
        )
    return found


@functools.cache
def published(fingerprint: str) -> tuple[Groups, str] | None:
    """The groups of a published test split and the digest of its labels; None where none are known.

    Raises:
        UserError: the file is damaged.
    """
    path = FOLDER / f"{fingerprint}.json"
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        groups, digest = Groups(str(read["unit"]), tuple(map(int, read["members"]))), str(read["labels_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} must hold unit, members and labels_sha256, found it damaged ({error}): "
            "write it again with benchmarks/groups.py"
        ) from error
    return groups, digest


def digest_of(target: npt.ArrayLike) -> str:
    """SHA-256 of the labels ``[N]``."""
    return hashlib.sha256(np.asarray(target).astype("<i8").tobytes()).hexdigest()
