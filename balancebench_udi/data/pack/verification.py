"""Checking a whole pack in full, at a user's wish."""

from __future__ import annotations

import contextlib
from pathlib import Path

from balancebench_udi.data.pack.dataset import Packed
from balancebench_udi.data.pack.digests import damaged_files, refuse_damaged, stamps, write_verified
from balancebench_udi.data.pack.reader import Pack, find_manifest


def verify_pack(dataset: Packed, root: Path, quiet: bool = False) -> Pack:
    """Read every file of the pack of ``dataset`` in full and compare it with its digest, however often that was done.

    Args:
        quiet: no progress bar.

    Raises:
        UserError: no pack, or which of its files are damaged.
    """
    folder = dataset.folder(root)
    manifest = find_manifest(folder, dataset)
    before = stamps(folder, manifest)
    refuse_damaged(folder, damaged_files(folder, manifest, manifest["bytes"], quiet))
    pack = Pack.read(folder, manifest)
    with contextlib.suppress(OSError):  # a data root that is read-only
        write_verified(folder, manifest, before)
    return pack
