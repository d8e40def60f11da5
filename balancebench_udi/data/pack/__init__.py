"""Packs: a dataset decoded once, as one memory-mapped array a modality, an index and a manifest.

A pack is a folder ``<data root>/packed/<dataset>/<key>/``:

- ``<modality>.npy``: ``[N, ...]`` stored values, ``label.npy``: ``[N]`` int64;
- ``index.csv``: id, class and everything a split is made of (lists, groups), a row a sample;
- ``problems.csv``: every sample that is not as it should be, why, and whether it was kept;
- ``manifest.json``: options, counts, versions, sizes, and the fingerprint: SHA-256 over options, lists and the bytes of
  the source, so that two machines with the same source get the same one.

It is built under a name of its own and renamed when whole. What is decoded stays decoded: a journal says which rows are
done, and the next call goes on from there, but for rows whose files were touched since. A whole pack is never changed:
where the source has other samples, lists, names or sizes of files by now, preparing again is refused.
"""

from __future__ import annotations

from balancebench_udi.data.pack.dataset import Packed
from balancebench_udi.data.pack.format import INDEX, JOURNAL, LABEL, MANIFEST, PROBLEMS, read_manifest
from balancebench_udi.data.pack.preparation import Prepared, prepare
from balancebench_udi.data.pack.reader import Pack
from balancebench_udi.data.pack.source import SILENT, Item, Listing, Problem, Stored
from balancebench_udi.data.pack.verification import verify_pack

__all__ = [
    "INDEX",
    "JOURNAL",
    "LABEL",
    "MANIFEST",
    "PROBLEMS",
    "SILENT",
    "Item",
    "Listing",
    "Pack",
    "Packed",
    "Prepared",
    "Problem",
    "Stored",
    "prepare",
    "read_manifest",
    "verify_pack",
]
