"""The base of datasets that are prepared once and then mapped."""

from __future__ import annotations

import abc
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from balancebench_udi.data.base import (
    Bundle,
    Dataset,
    Modality,
    Split,
    fingerprint,
    require_root,
    stratified_holdout,
)
from balancebench_udi.data.groups import Groups
from balancebench_udi.data.pack.digests import verify_once
from balancebench_udi.data.pack.format import PARTS, PROBLEMS
from balancebench_udi.data.pack.reader import Pack
from balancebench_udi.data.pack.source import Item, Listing, Stored
from balancebench_udi.errors import UserError


class Packed(Dataset):
    """Base of a dataset that must be prepared.

    A subclass lists a source (:meth:`listing`), decodes one sample (:meth:`decode`) and presents what is stored
    (:meth:`modalities`). It splits by the column of the index that :meth:`scheme` names, unless :meth:`partition` says
    otherwise. A scheme without validation gets the stratified share ``options.val_share`` of train, by
    ``options.val_seed``.

    Attributes:
        prepared: names of the options that decide what a pack holds; all others are free after preparation.
        source: what ``prepare.py --source`` must hold, for error messages and lists.
        lists: scheme -> the lists that must lie in the source for it, for an error message.
        beside: how to keep a pack and prepare another source beside it, for an error message.
        unit: what a group of test samples is that are not independent, such as ``actor``, and
        unit_columns: the columns of the index that name it; where a pack lacks one, all samples are exchangeable.
    """

    prepared: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str]
    lists: ClassVar[Mapping[str, str]] = {}
    beside: ClassVar[str] = ", or name another --data-root"
    unit: ClassVar[str] = ""
    unit_columns: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def stored(self) -> Mapping[str, Stored]:
        """What the pack keeps of each modality, in the order of fusion."""

    @abc.abstractmethod
    def listing(self, source: Path) -> Listing:
        """The samples of a source.

        Raises:
            UserError: lists that are absent or malformed.
        """

    @abc.abstractmethod
    def decode(self, item: Item) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """The stored values of one sample, and remarks on it (:data:`SILENT`, ...), which do not leave it out.

        Called by several threads.

        Raises:
            UserError: it cannot be read, and why; it is left out and listed.
        """

    @abc.abstractmethod
    def modalities(self, pack: Pack) -> Mapping[str, Modality]:
        """How what is stored is presented to the networks."""

    def scheme(self) -> str | None:
        """The column of the index that splits; None where :meth:`partition` needs none."""
        return getattr(self.options, "split", None)

    def partition(self, pack: Pack) -> dict[str, Tensor]:
        """Split -> rows of the pack; ``val`` may be absent."""
        scheme = self.scheme()
        if scheme not in pack.index:
            raise UserError(
                f"split={scheme} needs its lists beside the source when {self.name} is prepared, the pack in "
                f"{pack.folder} was prepared without; add them, remove that folder and prepare again"
            )
        part = pack.index[scheme].to_numpy()
        rows = {name: torch.from_numpy(np.flatnonzero(part == name)) for name in PARTS}
        return {name: found for name, found in rows.items() if name != "val" or len(found)}

    def key(self) -> str:
        """Name of the pack's folder: a hash of the options that it depends on."""
        text = json.dumps([self.version, self.prepared_options()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def prepared_options(self) -> dict[str, Any]:
        """The options that decide what a pack holds."""
        values = self.options.as_dict()
        return {name: values[name] for name in self.prepared}

    def prepared_changes(self) -> dict[str, Any]:
        """Those of them that are not at their defaults, and the split, whose lists must be there."""
        values, defaults = self.options.as_dict(), type(self.options)().as_dict()
        return {o: v for o, v in values.items() if o in (*self.prepared, "split") and v != defaults[o]}

    def folder(self, root: Path) -> Path:
        """Where the pack belongs below the data root."""
        return root / "packed" / self.name / self.key()

    def load(self, root: Path | None) -> Bundle:
        """Map the pack.

        Raises:
            UserError: not prepared, damaged, or a split without samples.
        """
        pack = Pack.open(self.folder(self._root(root)), self)
        parts = self.partition(pack)
        for name in ("train", "test"):
            if len(parts[name]) == 0:
                raise UserError(
                    f"the {name} split must hold at least one sample, found none of its samples in {pack.folder}; see "
                    f"{PROBLEMS} there"
                )
        if "val" not in parts:
            train = parts["train"]
            kept, held = stratified_holdout(pack.target[train], self.options.val_share, self.options.val_seed)
            parts |= {"train": train[kept], "val": train[held]}
        splits = {name: Split(pack.inputs, pack.target[parts[name]], parts[name], pack.maps) for name in PARTS}
        return Bundle(
            modalities=self.modalities(pack),
            classes=tuple(pack.manifest["classes"]),
            fingerprint=fingerprint({"pack": pack.manifest["fingerprint"], "options": self.options.as_dict()}),
            facts={
                "generated": False,
                "pack": pack.manifest["fingerprint"],
                "samples": {name: len(split) for name, split in splits.items()},
                "left_out": pack.manifest["left_out"],
            },
            groups=self._groups(pack, parts["test"]),
            verify=functools.partial(verify_once, pack.folder, pack.manifest),
            **splits,
        )

    def _groups(self, pack: Pack, rows: Tensor) -> Groups | None:
        if not self.unit or not set(self.unit_columns) <= set(pack.index):
            return None
        names = pack.index[list(self.unit_columns)].iloc[rows.numpy()]
        return Groups.of(self.unit, names.astype(str).agg("/".join, axis=1))

    def _root(self, root: Path | None) -> Path:
        if root is None:
            raise UserError(f"dataset {self.name} needs --data-root DIR with {self.needs}; none was given")
        return require_root(self, root)
