"""Whether a folder can be written, found out before there is anything to write."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from balancebench_udi.errors import UserError

LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes of a name and of a path; Linux and macOS take no more."""
BELOW = 100
"""Bytes that the files in a folder add to its path, temporary ones included."""


def obstacle(folder: Path) -> str | None:
    """Why no file can be written into ``folder``, which may not exist yet; None where nothing is known against it."""
    path = Path(os.path.abspath(folder))
    longest = max(len(os.fsencode(part)) for part in path.parts)
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH - BELOW:
        return "its name is too long"
    place = path
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        return "a file lies where a folder should be"
    if not os.access(place, os.W_OK | os.X_OK):
        return "it is not writable"
    if place == path and (taken := next((p for p in place.iterdir() if p.suffix and p.is_dir()), None)):
        return f"a folder lies where a file should be, {taken.name}"
    return None


def check_folders(folders: Iterable[Path]) -> None:
    """Make sure that files can be written into all ``folders``, without making them.

    Raises:
        UserError: into one of them they cannot.
    """
    for folder in dict.fromkeys(folders):
        if what := obstacle(folder):
            raise UserError(f"{folder} could not be written because {what}: choose another --out or mend it")
