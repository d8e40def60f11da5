"""Preparing a dataset: checking its source, building its pack or going on with it, and reopening a whole one."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from balancebench_udi.data.pack.builder import Builder
from balancebench_udi.data.pack.dataset import Packed
from balancebench_udi.data.pack.format import BEFORE, MANIFEST, PROBLEMS, read_manifest
from balancebench_udi.data.pack.reader import Pack
from balancebench_udi.data.pack.source import SILENT, Item, Listing, source_digest, stamp
from balancebench_udi.data.pack.tables import write_table
from balancebench_udi.data.pack.upgrade import add_digests
from balancebench_udi.errors import UserError
from balancebench_udi.files import Locks


@dataclass(frozen=True)
class Prepared:
    """What became of a preparation: folder, manifest and problems of the pack, and how much this call did.

    ``newer``: files of the source that were put in their place after the pack was made; their bytes are not compared.
    ``discarded``: samples that were done before, of another list, of files elsewhere, or of a damaged journal.
    ``upgraded``: the pack was made before packs had digests, which were added.
    """

    folder: Path
    manifest: Mapping[str, Any]
    problems: pd.DataFrame
    decoded: int
    resumed: int
    seconds: float
    newer: int = 0
    discarded: int = 0
    upgraded: bool = False


def prepare(
    dataset: Packed, source: Path, root: Path, workers: int, quiet: bool = False, strict: bool = False
) -> Prepared:
    """Build the pack of ``dataset`` from ``source`` below the data root, or go on building it.

    Args:
        workers: threads that decode; decoders let go of the interpreter.
        quiet: no progress bar.
        strict: refuse a source of which any sample is missing, unreadable or silent.

    Raises:
        UserError: a source that cannot be listed or of which nothing can be read, or without the lists of the split, a
            whole pack of another source, no room, another process at it, or problems where ``strict``.
    """
    started = time.perf_counter()
    folder = dataset.folder(root)
    partial = folder.with_name(folder.name + ".partial")
    try:
        listing = dataset.listing(source)
    except (OSError, csv.Error) as error:
        raise UserError(
            f"{source} must be the folder of {dataset.name} as it is distributed, with lists that can be read, found: "
            f"{error}; name that folder with --source, or fetch the list again"
        ) from None
    items = sorted(listing.items, key=lambda item: item.id)
    _check(dataset, items, listing, source)
    _check_split(dataset, items, source)
    if folder.exists():
        shutil.rmtree(partial, ignore_errors=True)  # of a process that died after its last step but one
        pack = _reopen(dataset, listing, source, folder)
        _refuse(pack.problems, folder / PROBLEMS, strict)
        made = (folder / MANIFEST).stat().st_mtime_ns
        newer = sum(max(stamp(path)[1:], default=0) > made for item in items for path in item.files)
        manifest, upgraded = pack.manifest, pack.manifest["format"] == BEFORE
        if upgraded:
            try:
                manifest = add_digests(pack, {item.id: item.label for item in items}, quiet)
            except OSError as error:
                raise _no_room(error, folder) from error
        seconds = time.perf_counter() - started
        return Prepared(folder, manifest, pack.problems, 0, 0, seconds, newer, upgraded=upgraded)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            if folder.exists():
                raise UserError(f"{folder} must be built by one process, another has just built it; use that")
            builder = Builder(dataset, items, listing, partial)
            done = builder.resume(workers, quiet)
            builder.decode(done, workers, quiet)
            write_table(builder.problems, partial / PROBLEMS)
            _refuse(builder.problems, partial / PROBLEMS, strict)
            manifest = builder.finish(folder)
        shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise _no_room(error, partial) from error
    return Prepared(
        folder,
        manifest,
        builder.problems,
        len(items) - len(done),
        len(done),
        time.perf_counter() - started,
        discarded=builder.discarded,
    )


def _reopen(dataset: Packed, listing: Listing, source: Path, folder: Path) -> Pack:
    """A whole pack, of format 2 perhaps, if it is one of this source."""
    try:
        manifest = read_manifest(folder, before=True)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} must be there, it is not; remove {folder} and prepare again") from None
    now = {"version": dataset.version, "options": dataset.prepared_options(), "source": source_digest(listing)}
    changed = [name for name, value in json.loads(json.dumps(now)).items() if value != manifest[name]]
    if changed:
        how = {
            "version": f"by version {manifest['version']} of dataset {dataset.name}, which is {dataset.version} now",
            "options": f"with other options ({', '.join(dataset.prepared_options())})",
            "source": "before samples, lists or the size of a file there changed, or of another source",
        }
        raise UserError(
            f"{folder} must be the pack of {source} as it is now, it was made "
            f"{', and '.join(how[name] for name in changed)}; remove that folder to prepare again{dataset.beside}"
        )
    return Pack.read(folder, manifest)


def _refuse(problems: pd.DataFrame, path: Path, strict: bool) -> None:
    """All else that a sample is kept with is how its authors published it."""
    bad = problems[~problems["kept"] | (problems["problem"] == SILENT)] if strict else problems[:0]
    if len(bad):
        first = bad.iloc[0]
        raise UserError(
            f"every sample must be there, whole and audible (--strict), found {len(bad)} that are not, the first "
            f"{first['id']}: {first['problem']}; all are listed in {path}"
        )


def _check(dataset: Packed, items: Sequence[Item], listing: Listing, source: Path) -> None:
    if not items:
        found = "no sample"
        if listing.problems:
            first = listing.problems[0]
            found = f"none of {len(listing.problems)} samples, the first: {first.id}: {first.reason}"
        raise UserError(f"{source} must hold {dataset.source}, found {found}; see prepare.py --list")
    for name, count in Counter(item.id for item in items).items():
        if count > 1:
            raise UserError(f"every sample must be listed once, found {name} {count} times")
    for item in items:
        if item.label not in listing.classes:
            raise UserError(f"the class of {item.id} must be one of {', '.join(listing.classes)}, found {item.label!r}")


def _check_split(dataset: Packed, items: Sequence[Item], source: Path) -> None:
    """Refuse a source that cannot serve the split before it is decoded."""
    scheme, columns = dataset.scheme(), {name for item in items for name in item.columns}
    if scheme is None or scheme in columns:
        return
    choices = {f.name: f.metadata.get("choices") for f in dataclasses.fields(dataset.options)}.get("split") or ()
    others = [type(dataset)(dataclasses.replace(dataset.options, split=choice)) for choice in choices]
    served = " or ".join(other.options.split for other in others if other.scheme() in columns)
    instead = f", or choose --set {dataset.name}.split={served}" if served else ""
    raise UserError(
        f"split={scheme} needs samples that its lists name, found none in {source}; add "
        f"{dataset.lists.get(scheme, 'its lists')}{instead}"
    )


def _no_room(error: OSError, folder: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{error.filename or folder} must have more room, the disk is full; free some and call again")
    what = error.strerror or str(error)
    return UserError(f"{error.filename or folder} must be readable and writable, found: {what}; what is done is kept")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which is free again when this process dies."""
    with Locks(folder).hold(folder / "lock") as mine:
        if not mine:
            raise UserError(f"{folder} must be built by one process, another is at it; wait for it")
        yield
