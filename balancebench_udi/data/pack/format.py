"""The files of a pack: their names, and reading the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from balancebench_udi.errors import UserError

FORMAT = 2
MANIFEST, INDEX, PROBLEMS, JOURNAL, LABEL = "manifest.json", "index.csv", "problems.csv", "journal.jsonl", "label.npy"
PARTS = ("train", "val", "test")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a pack.

    Raises:
        FileNotFoundError: there is no pack.
        UserError: damaged, or of another version of this library.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} must be JSON, it is damaged; remove {folder} and prepare again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} must have format {FORMAT}, found {found}; remove {folder} and prepare again")
    return manifest
