"""Opening a pack: everything small is checked in full, arrays by size, header and count of rows."""

from __future__ import annotations

import json
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

from balancebench_udi.data.pack.digests import damaged_files, refuse_damaged
from balancebench_udi.data.pack.format import INDEX, LABEL, MANIFEST, PROBLEMS, array_names, read_manifest
from balancebench_udi.data.pack.tables import read_table, stored_text
from balancebench_udi.errors import UserError

if TYPE_CHECKING:
    from balancebench_udi.data.pack.dataset import Packed


@dataclass(frozen=True)
class Pack:
    """An open pack: ``inputs {m: [N, ...]}`` memory-mapped by ``maps``, ``target [N]``, the two tables and
    ``manifest``."""

    folder: Path
    manifest: Mapping[str, Any]
    index: pd.DataFrame
    problems: pd.DataFrame
    inputs: Mapping[str, Tensor]
    target: Tensor
    maps: Sequence[mmap.mmap] = ()

    @classmethod
    def open(cls, folder: Path, dataset: Packed) -> Pack:
        """Open the pack of ``dataset``.

        Raises:
            UserError: absent, of another dataset, or not what its manifest says.
        """
        manifest = find_manifest(folder, dataset)
        stored = {m: {"shape": list(s.shape), "dtype": s.dtype} for m, s in dataset.stored().items()}
        wanted = {"dataset": dataset.name, "version": dataset.version, "options": dataset.prepared_options()}
        for name, value in json.loads(json.dumps({**wanted, "stored": stored})).items():
            if manifest[name] != value:
                raise UserError(
                    f"{folder} must be the pack of these options of {dataset.name}, found another {name}; remove it "
                    "and prepare again"
                )
        return cls.read(folder, manifest)

    @classmethod
    def read(cls, folder: Path, manifest: Mapping[str, Any]) -> Pack:
        """Open the pack of ``manifest``, whatever dataset it is of.

        Raises:
            UserError: not what its manifest says.
        """
        for name, size in manifest["bytes"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                raise UserError(
                    f"{folder / name} must have {size} bytes, found {'no file' if found is None else found}; remove "
                    f"{folder} and prepare again"
                )
        if "digests" in manifest:
            refuse_damaged(folder, damaged_files(folder, manifest, (LABEL, INDEX, PROBLEMS), quiet=True))
        # copy-on-write: nothing is ever written, and torch asks for writable memory
        arrays = {name: open_array(folder / name, "c") for name in (LABEL, *array_names(manifest))}
        for name, array in arrays.items():
            if array is None:
                raise UserError(f"{folder / name} must be an array, it is not; remove {folder} and prepare again")
        target = torch.from_numpy(np.array(arrays.pop(LABEL)))
        inputs = {name.removesuffix(".npy"): torch.from_numpy(array) for name, array in arrays.items()}
        tables = read_table(folder / INDEX), read_table(folder / PROBLEMS)
        pack = cls(folder, manifest, *tables, inputs, target, [array.base for array in arrays.values()])
        pack.check()
        return pack

    def check(self) -> None:
        """Compare the parts of the pack with each other.

        Raises:
            UserError: they do not belong together.
        """
        count, classes = self.manifest["samples"], [stored_text(c) for c in self.manifest["classes"]]
        wrong = [
            f"{m}.npy"
            for m, s in self.manifest["stored"].items()
            if tuple(self.inputs[m].shape) != (count, *s["shape"]) or self.inputs[m].dtype != getattr(torch, s["dtype"])
        ]
        known = self.target.dtype == torch.int64 and self.target.shape == (count,)
        if not known or not ((self.target >= 0) & (self.target < len(classes))).all():
            wrong.append(LABEL)
        elif "class" not in self.index or self.index["class"].tolist() != [classes[i] for i in self.target.tolist()]:
            wrong.append(INDEX)
        kept = self.problems["kept"] if list(self.problems) == ["id", "problem", "kept"] else None
        found = None if kept is None else (int((~kept).sum()), int(kept.sum()))
        if found != (self.manifest["left_out"], self.manifest["remarked"]):
            wrong.append(PROBLEMS)
        if wrong:
            raise UserError(
                f"{self.folder} must hold {count} samples of {len(classes)} classes as its manifest says, it does not "
                f"in {', '.join(wrong)}; remove it and prepare again"
            )


def open_array(path: Path, mode: Any) -> Any:
    """Map an array of numbers in C order; None where there is none."""
    try:
        array = np.lib.format.open_memmap(path, mode)
    except Exception:  # what reading a damaged header may raise has no end
        return None
    return array if array.flags.c_contiguous and array.dtype.isnative and array.dtype.kind in "biuf" else None


def find_manifest(folder: Path, dataset: Packed) -> dict[str, Any]:
    """The manifest of the pack of ``dataset``.

    Raises:
        UserError: absent (with the command that makes it), or damaged.
    """
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        settings = "".join(f" --set {dataset.name}.{o}={text_of(v)}" for o, v in dataset.prepared_changes().items())
        root = shlex.quote(str(folder.parents[2].resolve()))
        command = f"prepare.py {dataset.name} --source DIR --data-root {root}{settings}"
        raise UserError(
            f"dataset {dataset.name} must be prepared with these options, found no pack in "
            f"{folder}{others(folder)}: call python benchmarks/{command}"
        ) from None


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
