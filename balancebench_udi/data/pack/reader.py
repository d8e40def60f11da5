"""Opening a pack."""

from __future__ import annotations

import mmap
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from balancebench_udi.data.pack.format import INDEX, LABEL, MANIFEST, read_manifest
from balancebench_udi.errors import UserError

if TYPE_CHECKING:
    from balancebench_udi.data.pack.dataset import Packed


@dataclass(frozen=True)
class Pack:
    """An open pack: ``inputs {m: [N, ...]}`` memory-mapped by ``maps``, ``target [N]``, ``index`` and ``manifest``."""

    folder: Path
    manifest: Mapping[str, Any]
    index: pd.DataFrame
    inputs: Mapping[str, Tensor]
    target: Tensor
    maps: Sequence[mmap.mmap] = ()

    @classmethod
    def open(cls, folder: Path, dataset: Packed) -> Pack:
        """Open the pack of ``dataset``.

        Raises:
            UserError: absent, or not what its manifest says.
        """
        try:
            manifest = read_manifest(folder)
        except FileNotFoundError:
            settings = "".join(f" --set {dataset.name}.{o}={text_of(v)}" for o, v in dataset.prepared_changes().items())
            root = shlex.quote(str(folder.parents[2].resolve()))
            command = f"prepare.py {dataset.name} --source DIR --data-root {root}{settings}"
            raise UserError(
                f"dataset {dataset.name} must be prepared with these options, found no pack in "
                f"{folder}{others(folder)}: call python benchmarks/{command}"
            ) from None
        for name, size in manifest["bytes"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                raise UserError(
                    f"{folder / name} must have {size} bytes, found {'no file' if found is None else found}; remove "
                    f"{folder} and prepare again"
                )
        try:
            # copy-on-write: nothing is ever written, and torch asks for writable memory
            arrays = {m: np.load(folder / f"{m}.npy", mmap_mode="c") for m in dataset.stored()}
            target = torch.from_numpy(np.load(folder / LABEL))
            index = pd.read_csv(folder / INDEX, dtype=str, keep_default_na=False)
        except (OSError, ValueError, pd.errors.ParserError):
            raise UserError(f"{folder} must hold a whole pack, it does not; remove it and prepare again") from None
        inputs = {m: torch.from_numpy(array) for m, array in arrays.items()}
        return cls(folder, manifest, index, inputs, target, [array.base for array in arrays.values()])


def others(folder: Path) -> str:
    """Packs of the same dataset with other options, for an error message."""
    found = []
    for path in sorted(folder.parent.glob(f"*/{MANIFEST}")):
        try:
            options = read_manifest(path.parent)["options"]
        except UserError:
            continue
        found.append(", ".join(f"{name}={text_of(value)}" for name, value in options.items()))
    return f" (there are packs with {'; '.join(found)})" if found else ""


def text_of(value: Any) -> str:
    """An option as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
