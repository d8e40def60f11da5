"""One pack in the making: decoding by threads, a journal of what is done, and putting the pack in its place."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from balancebench_udi.data.base import fingerprint
from balancebench_udi.data.pack import journal
from balancebench_udi.data.pack.dataset import Packed
from balancebench_udi.data.pack.digests import array_digest, file_digest, row_digest, write_verified
from balancebench_udi.data.pack.format import (
    FORMAT,
    INDEX,
    JOURNAL,
    LABEL,
    MANIFEST,
    PARTS,
    PROBLEMS,
    manifest_text,
    read_manifest,
)
from balancebench_udi.data.pack.journal import Entry
from balancebench_udi.data.pack.reader import open_array
from balancebench_udi.data.pack.source import Item, Listing, Stored, source_digest, stamp
from balancebench_udi.data.pack.tables import stored_text, write_table
from balancebench_udi.errors import UserError

_FLUSH_EVERY = 5.0  # seconds of work that a power cut may cost
_LIBRARIES = ("torch", "torchaudio", "av", "numpy", "Pillow", "scipy", "scikit-learn")


def allocate(path: Path, rows: int, stored: Stored) -> np.memmap:
    """An array with all of its blocks: a full disk says so now, not by a signal later."""
    need, free = rows * stored.nbytes, shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(
            f"{path.parent} must have room for {-(-need // 10**6):,} MB of {path.stem}, found {free // 10**6:,} MB; "
            "free some, choose another --data-root, or store less"
        )
    array = np.lib.format.open_memmap(path, "w+", stored.dtype, (rows, *stored.shape))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return array


class Builder:
    """One pack in the making."""

    def __init__(self, dataset: Packed, items: Sequence[Item], listing: Listing, folder: Path) -> None:
        self.dataset = dataset
        self.items = items
        self.listing = listing
        self.folder = folder
        self.stored = dict(dataset.stored())
        self.source = source_digest(listing)
        self.entries: dict[int, Entry] = {}  # row -> what the journal says of it
        self.discarded = 0

    @functools.cached_property
    def plan(self) -> str:
        """Hash of what is being built: a journal of anything else is of no use."""
        stored = {m: [list(s.shape), s.dtype] for m, s in self.stored.items()}
        rows = [[i.id, i.label, [os.path.abspath(f) for f in i.files], i.detail] for i in self.items]
        text = json.dumps([FORMAT, self.dataset.version, self.dataset.prepared_options(), stored, rows], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def resume(self, workers: int, quiet: bool) -> set[int]:
        """Rows that are done already and as they should be; starts afresh where the folder holds something else."""
        noted = self.folder / JOURNAL
        entries, self.discarded = journal.read(noted, self.plan, self.items, self.stored)
        paths = {m: self.folder / f"{m}.npy" for m in self.stored}
        self.arrays: dict[str, Any] = {}  # numpy.memmap
        if entries and all(self._fits(m, open_array(path, "r")) for m, path in paths.items()):
            self.arrays = {m: open_array(path, "r+") for m, path in paths.items()}
            self.entries = self._as_decoded(entries, workers, quiet)
        else:
            self.discarded += len(entries)
            noted.unlink(missing_ok=True)  # it must not speak for what comes now
            self.arrays = {m: allocate(path, len(self.items), self.stored[m]) for m, path in paths.items()}
        journal.rewrite(noted, self.plan, self.entries.values())
        return set(self.entries)

    def _fits(self, m: str, array: Any) -> bool:
        """Whether an array that was found is the one that was being filled."""
        stored = self.stored[m]
        return array is not None and (array.shape, array.dtype) == (
            (len(self.items), *stored.shape),
            np.dtype(stored.dtype),
        )

    def _as_decoded(self, entries: Mapping[int, Entry], workers: int, quiet: bool) -> dict[int, Entry]:
        """Those of ``entries`` whose rows are still what was decoded."""

        def holds(entry: Entry) -> bool:
            return all(row_digest(self.arrays[m][entry["row"]]) == entry["values"][m] for m in self.stored)

        with ThreadPoolExecutor(workers) as pool:
            known = tqdm(
                pool.map(holds, entries.values()),
                total=len(entries),
                desc="verify",
                unit="sample",
                delay=1.0,
                disable=True if quiet else None,
            )
            return {row: entry for (row, entry), good in zip(entries.items(), known, strict=True) if good}

    def decode(self, done: set[int], workers: int, quiet: bool) -> None:
        """Decode the rows that are not done."""
        todo = iter([row for row in range(len(self.items)) if row not in done])
        pending: set[Future[Entry]] = set()
        fresh: list[Entry] = []
        flushed = time.monotonic()
        bar = tqdm(
            total=len(self.items),
            initial=len(done),
            desc=self.dataset.name,
            unit="sample",
            disable=True if quiet else None,
        )
        pool = ThreadPoolExecutor(workers)
        try:
            while True:
                while len(pending) < 2 * workers and (row := next(todo, None)) is not None:
                    pending.add(pool.submit(self._one, row))
                if not pending:
                    break
                for job in wait(pending, return_when=FIRST_COMPLETED).done:
                    fresh.append(job.result())
                    pending.remove(job)
                    bar.update()
                if time.monotonic() - flushed > _FLUSH_EVERY:
                    self._flush(fresh)
                    fresh, flushed = [], time.monotonic()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            fresh += [job.result() for job in pending if not job.cancelled() and job.exception() is None]
            self._flush(fresh)
            bar.close()

    def _one(self, row: int) -> Entry:
        """Decode one row; what the journal will say of it."""
        item = self.items[row]
        stamps = [stamp(path) for path in item.files]  # before they are read: a file replaced now is read again
        entry: Entry = {"row": row, "files": [], "stamps": stamps, "values": {}, "remarks": [], "problem": None}
        try:
            for path in item.files:
                with path.open("rb") as handle:
                    entry["files"].append(hashlib.file_digest(handle, "sha256").hexdigest())
            values, remarks = self.dataset.decode(item)
            for m, stored in self.stored.items():
                if (values[m].shape, values[m].dtype) != (stored.shape, np.dtype(stored.dtype)):
                    raise UserError(
                        f"{m} of {item.id} must be {stored.dtype} {stored.shape}, found {values[m].dtype} "
                        f"{values[m].shape}"
                    )
                if values[m].dtype.kind == "f" and not np.isfinite(values[m]).all():
                    raise UserError(f"{m} of {item.id} must be finite, it is not")
                self.arrays[m][row] = values[m]
                entry["values"][m] = row_digest(values[m])
            entry["remarks"] = list(remarks)
        except UserError as error:
            entry["problem"] = str(error)
        except OSError as error:
            entry["problem"] = f"{error.filename or item.id} must be readable, found: {error.strerror or error}"
        except Exception as error:  # what a decoder may raise on a damaged file has no end
            entry["problem"] = f"{item.id} must be decodable, found {type(error).__name__}: {error}"
        return entry

    def _flush(self, fresh: list[Entry]) -> None:
        """First the rows, then the journal that says they are there."""
        if not fresh:
            return
        for array in self.arrays.values():
            array.flush()
        journal.append(self.folder / JOURNAL, fresh)
        self.entries.update((entry["row"], entry) for entry in fresh)

    def finish(self, folder: Path) -> dict[str, Any]:
        """Put the pack together beside its place, and then there: a pack is whole or absent."""
        kept = [row for row in range(len(self.items)) if self.entries[row]["problem"] is None]
        if not kept:
            reason = self.entries[0]["problem"]
            raise UserError(
                f"at least one sample must be readable, found none of {len(self.items)}, the first: {reason}"
            )
        whole = folder.with_name(folder.name + ".whole")
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        for m in self.stored:
            self._place(m, kept, whole / f"{m}.npy")
        labels = np.array([self.listing.classes.index(self.items[row].label) for row in kept], dtype=np.int64)
        np.save(whole / LABEL, labels)
        columns = list(dict.fromkeys(name for item in self.items for name in item.columns))
        rows = [[i.id, i.label, *(i.columns.get(c, "") for c in columns)] for i in (self.items[row] for row in kept)]
        index = pd.DataFrame([list(map(stored_text, row)) for row in rows], columns=["id", "class", *columns])
        write_table(index, whole / INDEX)
        problems = self.problems
        write_table(problems, whole / PROBLEMS)
        files = [f"{m}.npy" for m in self.stored] + [LABEL, INDEX, PROBLEMS]
        digests = {f"{m}.npy": self._array_digest(m, kept, whole / f"{m}.npy") for m in self.stored}
        digests |= {name: file_digest(whole / name) for name in (LABEL, INDEX, PROBLEMS)}
        manifest = {
            "format": FORMAT,
            "dataset": self.dataset.name,
            "version": self.dataset.version,
            "options": self.dataset.prepared_options(),
            "classes": list(self.listing.classes),
            "samples": len(kept),
            "left_out": int((~problems["kept"]).sum()),
            "remarked": int(problems["kept"].sum()),
            "splits": {c: index[c].value_counts().to_dict() for c in columns if set(index[c]) <= {*PARTS, ""}},
            "stored": {m: {"shape": list(s.shape), "dtype": s.dtype} for m, s in self.stored.items()},
            "bytes": {name: (whole / name).stat().st_size for name in files},
            "digests": digests,
            "fingerprint": self._fingerprint(),
            "source": self.source,
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
        (whole / MANIFEST).write_text(manifest_text(manifest))
        for name in (*files, MANIFEST):
            with (whole / name).open("rb") as handle:
                os.fsync(handle.fileno())
        write_verified(whole, manifest)
        os.rename(whole, folder)
        return read_manifest(folder)

    def _array_digest(self, m: str, kept: Sequence[int], path: Path) -> str:
        """Of what was decoded, not of what the disk holds now."""
        rows = (bytes.fromhex(self.entries[row]["values"][m]) for row in kept)
        return array_digest(path, rows, self.stored[m].nbytes, len(kept))

    def _place(self, m: str, kept: Sequence[int], path: Path) -> None:
        """The array of one modality: as it is, or without the rows that were left out."""
        if len(kept) == len(self.items):
            try:
                os.link(self.folder / f"{m}.npy", path)
            except OSError:  # a file system without links
                shutil.copyfile(self.folder / f"{m}.npy", path)
            return
        array = allocate(path, len(kept), self.stored[m])
        for to, row in enumerate(kept):
            array[to] = self.arrays[m][row]
        array.flush()

    @functools.cached_property
    def problems(self) -> pd.DataFrame:
        """Every sample that is not as it should be: id, problem, kept."""
        found = [(p.id, p.reason, p.kept) for p in self.listing.problems]
        for row, item in enumerate(self.items):
            entry = self.entries[row]
            if entry["problem"] is not None:
                found.append((item.id, entry["problem"], False))
            found += [(item.id, remark, True) for remark in entry["remarks"]]
        shown = [(*map(stored_text, texts), kept) for *texts, kept in found]
        return pd.DataFrame(sorted(shown), columns=["id", "problem", "kept"]).astype({"kept": bool})

    def _fingerprint(self) -> str:
        samples = [
            [i.id, i.label, dict(i.columns), i.detail, entry["files"], entry["problem"] is None]
            for i, entry in ((item, self.entries[row]) for row, item in enumerate(self.items))
        ]
        return fingerprint(
            {
                "dataset": self.dataset.name,
                "version": self.dataset.version,
                "options": self.dataset.prepared_options(),
                "classes": list(self.listing.classes),
                "samples": samples,
            }
        )
