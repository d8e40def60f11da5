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

import abc
import csv
import dataclasses
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import mmap
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

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
from balancebench_udi.errors import UserError

FORMAT = 2
MANIFEST, INDEX, PROBLEMS, JOURNAL, LABEL = "manifest.json", "index.csv", "problems.csv", "journal.jsonl", "label.npy"
SILENT = "silent"
"""What is remarked on a sample whose sound is."""
_FLUSH_EVERY = 5.0  # seconds of work that a power cut may cost
_PARTS = ("train", "val", "test")
_LIBRARIES = ("torch", "torchaudio", "av", "numpy", "Pillow", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Stored:
    """What a pack keeps of one modality: ``[N, *shape]`` of numpy's ``dtype``."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Item:
    """One sample of a source.

    Attributes:
        id: unique name.
        label: its class.
        files: what is read; their bytes enter the fingerprint.
        columns: name -> value, columns of the index: ``train``, ``val`` or ``test`` of a list of splits, or a group;
            nothing that decoding needs, so that lists may come while a pack is being made.
        detail: anything else that decoding needs, JSON types; it enters the fingerprint.
    """

    id: str
    label: str
    files: tuple[Path, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    detail: Any = None


@dataclass(frozen=True)
class Problem:
    """A sample that is not as it should be; ``kept`` says whether the pack holds it nevertheless."""

    id: str
    reason: str
    kept: bool = False


@dataclass(frozen=True)
class Listing:
    """What a source should hold: samples that can be read, classes in order, and those that cannot be found."""

    items: Sequence[Item]
    classes: tuple[str, ...]
    problems: Sequence[Problem] = ()


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
        rows = {name: torch.from_numpy(np.flatnonzero(part == name)) for name in _PARTS}
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
        splits = {name: Split(pack.inputs, pack.target[parts[name]], parts[name], pack.maps) for name in _PARTS}
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


@dataclass(frozen=True)
class Pack:
    """An open pack: ``inputs {m: [N, ...]}`` memory-mapped by ``maps``, ``target [N]``, ``index`` and ``manifest``."""

    folder: Path
    manifest: Mapping[str, Any]
    index: pd.DataFrame
    inputs: Mapping[str, Tensor]
    target: Tensor
    maps: Sequence[mmap.mmap] = ()

    @classmethod
    def open(cls, folder: Path, dataset: Packed) -> Pack:
        """Open the pack of ``dataset``.

        Raises:
            UserError: absent, or not what its manifest says.
        """
        try:
            manifest = read_manifest(folder)
        except FileNotFoundError:
            settings = "".join(f" --set {dataset.name}.{o}={_text(v)}" for o, v in dataset.prepared_changes().items())
            root = shlex.quote(str(folder.parents[2].resolve()))
            command = f"prepare.py {dataset.name} --source DIR --data-root {root}{settings}"
            raise UserError(
                f"dataset {dataset.name} must be prepared with these options, found no pack in "
                f"{folder}{_others(folder)}: call python benchmarks/{command}"
            ) from None
        for name, size in manifest["bytes"].items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                raise UserError(
                    f"{folder / name} must have {size} bytes, found {'no file' if found is None else found}; remove "
                    f"{folder} and prepare again"
                )
        try:
            # copy-on-write: nothing is ever written, and torch asks for writable memory
            arrays = {m: np.load(folder / f"{m}.npy", mmap_mode="c") for m in dataset.stored()}
            target = torch.from_numpy(np.load(folder / LABEL))
            index = pd.read_csv(folder / INDEX, dtype=str, keep_default_na=False)
        except (OSError, ValueError, pd.errors.ParserError):
            raise UserError(f"{folder} must hold a whole pack, it does not; remove it and prepare again") from None
        inputs = {m: torch.from_numpy(array) for m, array in arrays.items()}
        return cls(folder, manifest, index, inputs, target, [array.base for array in arrays.values()])


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


def _others(folder: Path) -> str:
    """Packs of the same dataset with other options, for an error message."""
    found = []
    for path in sorted(folder.parent.glob(f"*/{MANIFEST}")):
        try:
            options = read_manifest(path.parent)["options"]
        except UserError:
            continue
        found.append(", ".join(f"{name}={_text(value)}" for name, value in options.items()))
    return f" (there are packs with {'; '.join(found)})" if found else ""


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -- building ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What became of a preparation: folder, manifest and problems of the pack, and how much this call did.

    ``newer``: files of the source that were put in their place after the pack was made; their bytes are not compared.
    ``discarded``: samples that were done before, of another list or of files elsewhere.
    """

    folder: Path
    manifest: Mapping[str, Any]
    problems: pd.DataFrame
    decoded: int
    resumed: int
    seconds: float
    newer: int = 0
    discarded: int = 0


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
        manifest, problems = _reopen(dataset, listing, source, folder)
        _refuse(problems, folder / PROBLEMS, strict)
        made = (folder / MANIFEST).stat().st_mtime_ns
        newer = sum(max(_stamp(path)[1:], default=0) > made for item in items for path in item.files)
        return Prepared(folder, manifest, problems, 0, 0, time.perf_counter() - started, newer)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            if folder.exists():
                raise UserError(f"{folder} must be built by one process, another has just built it; use that")
            builder = _Builder(dataset, items, listing, partial)
            done = builder.resume()
            builder.decode(done, workers, quiet)
            builder.problems.to_csv(partial / PROBLEMS, index=False)
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


def _reopen(dataset: Packed, listing: Listing, source: Path, folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Manifest and problems of a whole pack, if it is one of this source."""
    try:
        manifest = read_manifest(folder)
        problems = pd.read_csv(folder / PROBLEMS, dtype={"id": str, "problem": str}, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} must be there, it is not; remove {folder} and prepare again") from None
    now = {"version": dataset.version, "options": dataset.prepared_options(), "source": _digest(listing)}
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
    return manifest, problems


def _digest(listing: Listing) -> str:
    """Hash of classes, samples, names and sizes of their files, and what is missing, wherever the source lies."""
    samples = [
        [i.id, i.label, dict(i.columns), i.detail, [[p.name, *_stamp(p)[:1]] for p in i.files]]
        for i in sorted(listing.items, key=lambda item: item.id)
    ]
    return fingerprint(
        {"classes": listing.classes, "samples": samples, "missing": sorted(p.id for p in listing.problems)}
    )


def _stamp(path: Path) -> list[int]:
    """Bytes of a file, and when it was written and put in its place, ns; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


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
    """Hold the folder's lock, which the kernel frees when this process dies."""
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} must be built by one process, another is at it; wait for it") from None
        yield


def _allocate(path: Path, rows: int, stored: Stored) -> np.memmap:
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


class _Builder:
    """One pack in the making."""

    def __init__(self, dataset: Packed, items: Sequence[Item], listing: Listing, folder: Path) -> None:
        self.dataset = dataset
        self.items = items
        self.listing = listing
        self.folder = folder
        self.stored = dict(dataset.stored())
        self.source = _digest(listing)
        self.entries: dict[int, dict[str, Any]] = {}  # row -> what the journal says of it
        self.discarded = 0

    @functools.cached_property
    def plan(self) -> str:
        """Hash of what is being built: a journal of anything else is of no use."""
        stored = {m: [list(s.shape), s.dtype] for m, s in self.stored.items()}
        rows = [[i.id, i.label, [os.path.abspath(f) for f in i.files], i.detail] for i in self.items]
        text = json.dumps([FORMAT, self.dataset.version, self.dataset.prepared_options(), stored, rows], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def resume(self) -> set[int]:
        """Rows that are done already and as they should be; starts afresh where the folder holds something else."""
        journal = self.folder / JOURNAL
        lines = journal.read_text().splitlines() if journal.exists() else []
        if lines and lines[0] == self.plan and all((self.folder / f"{m}.npy").exists() for m in self.stored):
            for line in lines[1:]:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the last line of a process that died
                    break
                stamps = [_stamp(path) for path in self.items[entry["row"]].files]
                if entry["problem"] is None and not entry["remarks"] and entry["stamps"] == stamps:
                    self.entries[entry["row"]] = entry
            arrays = {m: np.load(self.folder / f"{m}.npy", mmap_mode="r+") for m in self.stored}
            self._rewrite(journal)
        else:
            self.discarded = len(lines[1:])
            journal.unlink(missing_ok=True)  # it must not speak for what comes now
            arrays = {
                m: _allocate(self.folder / f"{m}.npy", len(self.items), stored) for m, stored in self.stored.items()
            }
            journal.write_text(self.plan + "\n")
        self.arrays: dict[str, Any] = arrays  # numpy.memmap
        return set(self.entries)

    def _rewrite(self, journal: Path) -> None:
        """The journal without a half-written last line."""
        fresh = journal.with_suffix(".new")
        fresh.write_text("\n".join([self.plan, *map(json.dumps, self.entries.values())]) + "\n")
        os.replace(fresh, journal)

    def decode(self, done: set[int], workers: int, quiet: bool) -> None:
        """Decode the rows that are not done."""
        todo = iter([row for row in range(len(self.items)) if row not in done])
        pending: set[Future[dict[str, Any]]] = set()
        fresh: list[dict[str, Any]] = []
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

    def _one(self, row: int) -> dict[str, Any]:
        """Decode one row; what the journal will say of it."""
        item = self.items[row]
        stamps = [_stamp(path) for path in item.files]  # before they are read: a file replaced now is read again
        entry: dict[str, Any] = {"row": row, "files": [], "stamps": stamps, "remarks": [], "problem": None}
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
            entry["remarks"] = list(remarks)
        except UserError as error:
            entry["problem"] = str(error)
        except OSError as error:
            entry["problem"] = f"{error.filename or item.id} must be readable, found: {error.strerror or error}"
        except Exception as error:  # what a decoder may raise on a damaged file has no end
            entry["problem"] = f"{item.id} must be decodable, found {type(error).__name__}: {error}"
        return entry

    def _flush(self, fresh: list[dict[str, Any]]) -> None:
        """First the rows, then the journal that says they are there."""
        if not fresh:
            return
        for array in self.arrays.values():
            array.flush()
        with (self.folder / JOURNAL).open("a") as journal:
            journal.writelines(json.dumps(entry) + "\n" for entry in fresh)
            journal.flush()
            os.fsync(journal.fileno())
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
        index = pd.DataFrame(
            [[i.id, i.label, *(i.columns.get(c, "") for c in columns)] for i in (self.items[row] for row in kept)],
            columns=["id", "class", *columns],
        )
        index.to_csv(whole / INDEX, index=False)
        problems = self.problems
        problems.to_csv(whole / PROBLEMS, index=False)
        files = [f"{m}.npy" for m in self.stored] + [LABEL, INDEX, PROBLEMS]
        manifest = {
            "format": FORMAT,
            "dataset": self.dataset.name,
            "version": self.dataset.version,
            "options": self.dataset.prepared_options(),
            "classes": list(self.listing.classes),
            "samples": len(kept),
            "left_out": int((~problems["kept"]).sum()),
            "remarked": int(problems["kept"].sum()),
            "splits": {c: index[c].value_counts().to_dict() for c in columns if set(index[c]) <= {*_PARTS, ""}},
            "stored": {m: {"shape": list(s.shape), "dtype": s.dtype} for m, s in self.stored.items()},
            "bytes": {name: (whole / name).stat().st_size for name in files},
            "fingerprint": self._fingerprint(),
            "source": self.source,
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
        (whole / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for name in (*files, MANIFEST):
            with (whole / name).open("rb") as handle:
                os.fsync(handle.fileno())
        os.rename(whole, folder)
        return manifest

    def _place(self, m: str, kept: Sequence[int], path: Path) -> None:
        """The array of one modality: as it is, or without the rows that were left out."""
        if len(kept) == len(self.items):
            try:
                os.link(self.folder / f"{m}.npy", path)
            except OSError:  # a file system without links
                shutil.copyfile(self.folder / f"{m}.npy", path)
            return
        array = _allocate(path, len(kept), self.stored[m])
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
        shown = [(*(s.encode(errors="backslashreplace").decode() for s in texts), kept) for *texts, kept in found]
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
