"""The files of a pack: their names, and reading and sealing its manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from balancebench_udi.errors import UserError

FORMAT = 3
BEFORE = 2
"""The format without digests, to which ``prepare`` adds them."""
MANIFEST, INDEX, PROBLEMS, JOURNAL, LABEL = "manifest.json", "index.csv", "problems.csv", "journal.jsonl", "label.npy"
VERIFIED = "verified.json"
"""Size, modification time and inode of every array when it was last verified in full."""
PARTS = ("train", "val", "test")
_SHOWN = 60  # characters of a value in an error message


def read_manifest(folder: Path, before: bool = False) -> dict[str, Any]:
    """The manifest of a pack, unchanged since it was written, with every field and each of its type.

    Args:
        before: accept one of format 2, too, which has no digests.

    Raises:
        FileNotFoundError: there is no pack.
        UserError: unreadable, damaged, or of another version of this library.
    """
    path = folder / MANIFEST
    again = f"remove {folder} and prepare again"
    try:
        manifest = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} must be a readable file, found: {error.strerror or error}; {again}") from None
    except (ValueError, RecursionError):  # also not UTF-8, or numbers of thousands of digits
        raise UserError(f"{path} must be JSON, it is damaged; {again}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if type(found) is not int or found not in ((BEFORE, FORMAT) if before else (FORMAT,)):
        add = "prepare again, which adds the digests of its files" if found == BEFORE and type(found) is int else again
        raise UserError(f"{path} must have format {FORMAT}, found {_short(found)}; {add}")
    if found == FORMAT and manifest.get("digest") != manifest_digest(manifest):
        raise UserError(f"{path} must be as it was written, its digest says that it is not; {again}")
    for name, (what, holds) in _FIELDS.items():
        if name == "digests" and found == BEFORE:
            continue
        if name not in manifest or not holds(manifest[name]):
            value = _short(manifest[name]) if name in manifest else "none"
            raise UserError(f"{name} in {path} must be {what}, found {value}; {again}")
    files = {*array_names(manifest), LABEL, INDEX, PROBLEMS}
    for name in ("bytes", "digests") if found == FORMAT else ("bytes",):
        if set(manifest[name]) != files:
            raise UserError(f"{name} in {path} must name {', '.join(sorted(files))}, it does not; {again}")
    return manifest


def array_names(manifest: Mapping[str, Any]) -> list[str]:
    """The files of the modalities."""
    return [f"{m}.npy" for m in manifest["stored"]]


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of all fields but ``digest``."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The content of the file: ``manifest`` with its own digest."""
    return json.dumps({**manifest, "digest": manifest_digest(manifest)}, indent=1) + "\n"


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_stored(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("shape"), list)
        and all(map(_is_count, value["shape"]))
        and isinstance(value.get("dtype"), str)
        and re.fullmatch("bool|u?int(8|16|32|64)|float(16|32|64)", value["dtype"]) is not None
    )


def _named(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is an object, each of whose values ``holds``."""
    return lambda value: isinstance(value, dict) and all(map(holds, value.values()))


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "dataset": ("a name", _is_text),
    "version": ("a number from 0 on", _is_count),
    "options": ("an object", _named(lambda value: True)),
    "classes": (
        "a list of different names",
        lambda v: isinstance(v, list) and bool(v) and all(map(_is_text, v)) and len(set(v)) == len(v),
    ),
    "samples": ("a number from 1 on", lambda v: _is_count(v) and v > 0),
    "left_out": ("a number from 0 on", _is_count),
    "remarked": ("a number from 0 on", _is_count),
    "splits": ("an object of counts", _named(_named(_is_count))),
    "stored": (
        "an object of shapes and dtypes",
        lambda v: _named(_is_stored)(v) and bool(v) and all(Path(m).name == m for m in v),
    ),
    "bytes": ("an object of sizes", _named(_is_count)),
    "digests": ("an object of SHA-256 digests", _named(_is_digest)),
    "fingerprint": ("a text", _is_text),
    "source": ("a text", _is_text),
    "libraries": ("an object of texts", _named(_is_text)),
}
"""Field of a manifest -> what it must be, and whether a value is that."""
