"""A pack that was made before packs had digests gets them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from balancebench_udi.data.pack.digests import compute_digests, write_verified
from balancebench_udi.data.pack.format import FORMAT, MANIFEST, manifest_text, read_manifest
from balancebench_udi.data.pack.reader import Pack
from balancebench_udi.data.pack.tables import stored_text
from balancebench_udi.errors import UserError


def add_digests(pack: Pack, labels: Mapping[str, str], quiet: bool) -> dict[str, Any]:
    """Read a pack of format 2 in full and write a manifest of today's; returns it. All else stays as it is.

    Args:
        labels: id -> class, of the source that the pack was made from.

    Raises:
        UserError: its classes are not those of the source, or a file cannot be read.
        OSError: the manifest cannot be written.
    """
    folder, known = pack.folder, {stored_text(name): stored_text(label) for name, label in labels.items()}
    wrong = [
        name
        for name, label in zip(pack.index.get("id", ()), pack.index["class"], strict=False)
        if known.get(name) != label
    ]
    if wrong or len(set(pack.index.get("id", ()))) != len(pack.index):
        raise UserError(
            f"every sample of {folder} must be one of the source, once and with its class, found {len(wrong)} that are "
            f"not; remove {folder} and prepare again"
        )
    digests = compute_digests(folder, pack.manifest, pack.manifest["bytes"], quiet)
    manifest = {**pack.manifest, "format": FORMAT, "digests": digests}
    path, fresh = folder / MANIFEST, folder / f"{MANIFEST}.{os.getpid()}"
    before = path.stat()
    try:
        with fresh.open("w") as handle:
            handle.write(manifest_text(manifest))
            handle.flush()
            os.fsync(handle.fileno())
        os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))  # when the pack was made
        write_verified(folder, manifest)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return read_manifest(folder)
