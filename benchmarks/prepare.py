#!/usr/bin/env python
"""Decode a dataset once, from the files that its authors distribute, into arrays that runs map into memory.

    python benchmarks/prepare.py cremad --source CREMA-D --protocol ogm --workers 8
    python benchmarks/prepare.py --list

The pack goes below the data root that ``run.py`` reads, to ``packed/<dataset>/``. Call it again after a crash, a Ctrl-C
or a ``kill -9``: it goes on where it was. Samples that are missing, damaged or silent are listed in ``problems.csv``.
``--verify`` checks every byte of what was prepared.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import torch
from tqdm import tqdm

import registry
from balancebench_udi.data.base import Dataset
from balancebench_udi.data.pack import PROBLEMS, Packed, Prepared, prepare, verify_pack
from balancebench_udi.errors import UserError
from balancebench_udi.protocol import Protocol, load_protocol
from benchmarks.command import PROTOCOLS, Parser, data_root, default_data, duration, guarded, parse_settings

PACK = object()
"""``--verify`` without a file."""
DEFAULT = "default"
"""The protocol where none is named."""
SHOWN = 3
"""Problems that are printed; the rest is in problems.csv."""
SEEN = 80
"""Characters of a malformed line that are printed."""
_SUM = re.compile(r"([0-9a-fA-F]{64}) (?: |\*|[*-] |\d+ )?(\S.*)")


def parser() -> Parser:
    """The command line."""
    p = Parser(prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dataset", nargs="?", help="name of the dataset; see --list")
    p.add_argument("--source", type=Path, help="folder with the dataset as distributed")
    p.add_argument(
        "--protocol", default=DEFAULT, help="whose preprocessing: a preset in benchmarks/protocols, or a file"
    )
    p.add_argument("--set", action="append", default=[], metavar="DATASET.OPTION=VALUE", help="one option; repeatable")
    p.add_argument("--data-root", type=Path, help="where packs are kept (default: $BALANCEBENCH_DATA, else data/)")
    p.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads (default: all cores)")
    p.add_argument(
        "--strict",
        action="store_true",
        help="refuse a source of which a sample is missing, cut short, unreadable or silent; with --verify, one that "
        "lacks a file",
    )
    p.add_argument(
        "--verify",
        nargs="?",
        const=PACK,
        type=Path,
        metavar="FILE",
        help="only check what was prepared, every byte of it; with a FILE, compare the source with the SHA-256 sums in "
        "it (of sha256sum or 'git lfs ls-files -l', perhaps gzipped)",
    )
    p.add_argument(
        "--list",
        action="store_true",
        help="print datasets (or the one that is named), what they need, and what each protocol changes",
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 a mistake, 130 interrupted."""
    return guarded(run, parser(), arguments, "the same command goes on where it was")


def run(given: argparse.Namespace) -> int:
    """List, verify or prepare."""
    if given.list:
        print(listing(registry.datasets.match([given.dataset or "all"])))
        return 0
    if given.dataset is None:
        raise UserError("prepare.py needs the name of a dataset, found none; see --list")
    if given.workers < 1:
        raise UserError(f"--workers must be at least 1, found {given.workers}")
    cls = registry.datasets.get(given.dataset)
    if given.verify is PACK:
        return verify_prepared(given, cls)
    if given.source is None and cls.needs:
        what = cls.source if issubclass(cls, Packed) else cls.needs
        raise UserError(f"{given.dataset} needs --source DIR with {what}; none was given")
    source = (given.source or Path()).expanduser()
    if not os.path.exists(source):  # Path.exists raises where a name is too long
        raise UserError(f"--source must be a folder, found none at {source}")
    if os.path.isfile(source) and not hasattr(cls, "for_source"):
        raise UserError(f"--source must be a folder, found the file {source}; name the folder it is in")
    protocol, dataset = described(given, cls)
    if given.verify is not None:
        return verify(source, given.verify.expanduser(), given.workers, given.strict)
    if given.protocol != DEFAULT and not protocol.datasets.get(given.dataset):
        print(f"protocol {protocol.name} sets nothing for {given.dataset}, whose own defaults hold")
    torch.set_num_threads(1)  # the workers are the parallelism
    if not isinstance(dataset, Packed):
        return check(dataset, source)
    if hasattr(dataset, "for_source"):
        dataset = dataset.for_source(source)
    root = data_root(given.data_root) or default_data()
    report(dataset, prepare(dataset, source, root, given.workers, strict=given.strict))
    return 0


def described(given: argparse.Namespace, cls: type[Dataset]) -> tuple[Protocol, Any]:
    """The protocol, and the dataset with the options that it and the command line set."""
    protocol = load_protocol(given.protocol, PROTOCOLS, {})
    settings = parse_settings(given.set, [given.dataset])
    for owner in settings:
        if owner != given.dataset:
            raise UserError(f"--set must name options of {given.dataset}, found {owner!r}; leave it to run.py")
    options = {**protocol.datasets.get(given.dataset, {}), **settings.get(given.dataset, {})}
    return protocol, cls(cls.Options.build(given.dataset, options))


def verify_prepared(given: argparse.Namespace, cls: type[Dataset]) -> int:
    """Check what was prepared in full.

    Raises:
        UserError: nothing was prepared, or what is damaged.
    """
    if not issubclass(cls, Packed):
        raise UserError(f"--verify needs a FILE with SHA-256 sums for {given.dataset}, which is not prepared; name one")
    if given.source is not None:
        raise UserError("--verify without a FILE checks what was prepared, found --source, too; leave one out")
    _, dataset = described(given, cls)
    pack = verify_pack(dataset, data_root(given.data_root) or default_data())
    sizes = pack.manifest["bytes"]
    print(f"{given.dataset} is whole: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, are as they were written")
    print(f"  fingerprint {pack.manifest['fingerprint']}, in {pack.folder}")
    return 0


def check(dataset: Dataset, source: Path) -> int:
    """Load a dataset that is read where it is, and say what was found."""
    try:
        bundle = dataset.load(source)
    except UserError as error:  # which speaks to run.py
        raise UserError(str(error).replace("--data-root", "--source")) from None
    sizes = ", ".join(f"{name} {len(bundle.split(name))}" for name in ("train", "val", "test"))
    where = f" and --data-root {source}" if dataset.needs else ""
    print(f"{dataset.name} is whole: {sizes}; fingerprint {bundle.fingerprint}")
    print(f"it is read as it is: run.py needs nothing but --dataset {dataset.name}{where}")
    return 0


def report(dataset: Packed, made: Prepared) -> None:
    """What was made, what was left out, and how to use it."""
    manifest = made.manifest
    for _, row in made.problems[:SHOWN].iterrows():
        print(f"  {row['id']}: {row['problem']}{'' if not row['kept'] else ' (kept)'}")
    if len(made.problems) > SHOWN:
        print(f"  ... all in {made.folder / PROBLEMS}")
    size = sum(manifest["bytes"].values()) / 1e6
    print(f"{dataset.name}: {manifest['samples']} samples of {len(manifest['classes'])} classes, {size:.1f} MB")
    print(f"  {manifest['left_out']} left out, {manifest['remarked']} kept with a remark")
    for name, parts in manifest["splits"].items():
        sizes = ", ".join(f"{part} {parts[part]}" for part in ("train", "val", "test") if part in parts)
        if sizes:
            print(f"  split {name}: {sizes}")
    pace = f", {made.decoded / made.seconds:.1f} samples a second" if made.decoded else ""
    earlier = f" ({made.resumed} were done before)" if made.resumed else ""
    if made.discarded:
        why = "of another list, of files elsewhere or of a damaged journal"
        earlier = f" ({made.discarded} done before were {why}, and were done again)"
    done = f"decoded {made.decoded}{earlier}"
    if not made.decoded and not made.resumed:
        done = "digests added" if made.upgraded else "already prepared"
    print(f"  {done} in {duration(made.seconds)}{pace}; fingerprint {manifest['fingerprint']}")
    print(f"  in {made.folder}")
    if made.newer:
        verb = "files of the source are" if made.newer > 1 else "file of the source is"
        print(f"  {made.newer} {verb} newer than this pack; if any was replaced, remove that folder and prepare again")


# -- lists of checksums -----------------------------------------------------------------------------------------------


def verify(source: Path, sums: Path, workers: int, strict: bool) -> int:
    """Compare every file of a list with the source.

    Raises:
        UserError: an unreadable list, a file that differs or, where ``strict``, one that is absent.
    """
    listed = dict(read_sums(sums))
    present = {name: source / name for name in listed if (source / name).is_file()}
    if not present:
        raise UserError(f"{source} must hold files that {sums} lists, such as {next(iter(listed))}, found none of them")
    with ThreadPoolExecutor(workers) as pool:
        found = tqdm(pool.map(_digest, present.values()), total=len(present), desc="verify", unit="file", disable=None)
        try:
            different = [name for name, digest in zip(present, found, strict=True) if digest != listed[name]]
        except OSError as error:
            raise UserError(f"{error.filename or source} must be readable, found: {error.strerror}") from None
    print(
        f"{len(present) - len(different)} of {len(listed)} files are as listed, {len(listed) - len(present)} are absent"
    )
    if different:
        raise UserError(
            f"every file must have the SHA-256 sum of {sums}, found {len(different)} that differ, the first "
            f"{source / different[0]}; fetch them again"
        )
    absent = [name for name in listed if name not in present]
    if strict and absent:
        raise UserError(
            f"every file of {sums} must be there (--strict), found {len(absent)} absent, the first "
            f"{source / absent[0]}; fetch them"
        )
    return 0


def read_sums(path: Path) -> Iterator[tuple[str, str]]:
    """``(path, digest)`` of each line: ``digest  path`` or ``digest *path`` (sha256sum), ``digest * path`` or
    ``digest - path`` (git lfs), ``digest size path``.

    Raises:
        UserError: absent, empty or malformed.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path} must be a readable list of SHA-256 sums, found: {error}") from None
    if not text.strip():
        raise UserError(f"{path} must list SHA-256 sums, it is empty")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _SUM.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{path} must have lines 'SHA-256 sum, path', found {line[:SEEN]!r} in line {number}")
        yield match[2].removeprefix("./"), match[1].lower()


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# -- the list ---------------------------------------------------------------------------------------------------------


def listing(names: Sequence[str]) -> str:
    """Each dataset with what its source must hold, its options for preparation, and what each protocol changes."""
    protocols = [load_protocol(path.stem, PROTOCOLS, {}) for path in sorted(PROTOCOLS.glob("*.yaml"))]
    lines = []
    for name in names:
        try:
            cls = registry.datasets.get(name)
        except UserError as error:  # a broken file breaks only itself
            lines.append(f"{name}: {error}")
            continue
        lines += _entry(name, cls, protocols)
    return "\n".join(lines)


def _entry(name: str, cls: Any, protocols: Sequence[Protocol]) -> list[str]:
    if not issubclass(cls, Packed):
        return [f"{name}: needs no preparation; {'--source DIR with ' + cls.needs if cls.needs else 'no files'}"]
    lines = [f"{name}: --source DIR with {cls.source}"]
    for option, default, doc, source in cls.Options.describe():
        when = "prepared" if option in cls.prepared else "free"
        lines.append(f"    {option} = {default} ({when}): {doc} [{source}]")
    for protocol in protocols:
        if changes := protocol.datasets.get(name):
            settings = ", ".join(f"{k}={v}" for k, v in changes.items())
            lines.append(f"    --protocol {protocol.name}: {settings}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
