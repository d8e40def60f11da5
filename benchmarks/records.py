#!/usr/bin/env python
"""Write the records of a results folder as one tidy table: one row a run and reading, one column a number.

    python benchmarks/records.py --dataset cgmnist,mosi --to runs.csv
    python benchmarks/records.py --dataset cgmnist --method udi --samples --to samples.parquet     # a row a test sample
    python benchmarks/records.py --check                                                           # nothing was changed
    python benchmarks/records.py --clean                                           # what nothing uses; --yes removes it

The columns are those of balancebench_udi.report.tidy. Only existing records are read; nothing is trained.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import pandas as pd
from tqdm import tqdm

from balancebench_udi import cleaning
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.report.comparison import RULES
from balancebench_udi.report.tidy import SAMPLE, frame, samples, trained_alone
from balancebench_udi.store import SUMS, Store, check_record, listed_sums, read_record
from balancebench_udi.text import guard_frame
from benchmarks.command import ALONE, Parser, default_out, guarded, short, words


def parser() -> Parser:
    """The command line."""
    p = Parser(prog="records.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--to", type=Path, metavar="FILE", help="a .csv or a .parquet file")
    p.add_argument("--check", action="store_true", help="make sure that no record was changed since it was written")
    p.add_argument("--clean", action="store_true", help="list the files of the results folder that nothing uses")
    p.add_argument("--yes", action="store_true", help="with --clean: remove them")
    p.add_argument("--dataset", help="names, separated by commas (default: every dataset with records)")
    p.add_argument("--method", help="names, separated by commas (default: every method with records)")
    p.add_argument(
        "--select", default="best_val", choices=(*RULES, "all"), help="which epoch is read (default: best_val)"
    )
    p.add_argument(
        "--samples",
        action="store_true",
        help="one row a run, reading and test sample instead: target, prediction, right, Shapley contributions",
    )
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 a mistake, 130 interrupted."""
    return guarded(run, parser(), arguments, "nothing was written")


def run(given: argparse.Namespace) -> int:
    """Read the records, write the table."""
    store = Store(given.out if given.out is not None else default_out())
    if given.clean or given.yes:
        if not given.clean or given.check or given.to is not None:
            raise UserError("--clean takes no other option than --yes and --out, and --yes none without it")
        return clean(store, given.yes)
    if given.to is None and not given.check:
        raise UserError("records.py needs the file to write, found none: name it with --to, or call with --check")
    if given.to is not None:
        check_format(given.to)
    paths = record_paths(store, given.dataset, given.method)
    whole = given.dataset is None and given.method is None
    if given.check and not check(paths, listed_sums(store.root / "records"), whole):
        return 2
    if given.to is None:
        return 0
    select = None if given.select == "all" else given.select
    tables: Iterable[pd.DataFrame]
    if given.samples:
        kept, columns = sampled(paths, select)
        runs, made = len(kept), map(read_record, tqdm(kept, unit="record", delay=1.0))
        tables = (samples(record, select).reindex(columns=columns) for record in made)
    else:
        beside = {path.parents[1] for path in paths}
        apart = [path for path in store.record_paths() if path.parents[1] in beside and path.parent.name in ALONE]
        alone = trained_alone(map(read_record, apart), ALONE)
        table = frame(map(read_record, tqdm(paths, unit="record", delay=1.0)), select, alone)
        runs, columns, tables = table["key"].nunique(), list(table.columns), [table]
    if not runs:
        raise UserError(
            f"the table needs runs that were evaluated for {given.select}, found none among {len(paths)}: "
            "train them with --test-each-epoch, or name another --select"
        )
    rows = 0

    def write(handle: BinaryIO) -> None:
        nonlocal rows
        rows = save(tables, handle, given.to.suffix)

    store.replace(given.to, write)
    print(f"{rows} rows of {runs} runs, {len(columns)} columns; written: {short(given.to)}")
    return 0


def check(paths: Sequence[Path], sums: Mapping[Path, str], whole: bool) -> bool:
    """Whether every record is as it was written; says which ones are not.

    Args:
        sums: file -> SHA-256 of those that are listed.
        whole: ``paths`` are all records, so that none that is listed may lack.
    """
    lacking = sorted(set(sums) - set(paths)) if whole else []
    damaged = [f"error: {path} must be there as {SUMS} lists it, found no such file: restore it" for path in lacking]
    for path in tqdm(paths, unit="record", delay=1.0):
        try:
            check_record(path)
            if path in sums and hashlib.sha256(path.read_bytes()).hexdigest() != sums[path]:
                raise UserError(f"{path} must have the checksum that {SUMS} lists, found another: restore it")
        except UserError as error:
            damaged.append(f"error: {error}")
    if damaged:
        print(*damaged, f"{len(damaged)} of {len(paths)} records are damaged", sep="\n", file=sys.stderr)
        return False
    print(f"{len(paths)} records are as they were written")
    return True


def clean(store: Store, remove: bool) -> int:
    """List what nothing uses, or remove it."""
    kinds = [kind for kind in cleaning.unused(store) if kind.paths]
    for kind in kinds:
        print(f"{len(kind.paths)} {kind.name}: {kind.bytes / 1e6:,.1f} MB")
    count, size = sum(len(kind.paths) for kind in kinds), sum(kind.bytes for kind in kinds) / 1e6
    if not count:
        print(f"nothing in {short(store.root)} is unused")
    elif remove:
        gone = cleaning.remove(store, kinds)
        print(f"removed: {len(gone)} of {count} files, of {size:,.1f} MB")
    else:
        print(f"{count} files, {size:,.1f} MB; nothing was removed: --clean --yes does")
    return 0


def check_format(path: Path) -> None:
    """Refuse what cannot be written, before anything is read.

    Raises:
        UserError: another ending than .csv and .parquet; parquet without pyarrow.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--to must name a .csv or a .parquet file, found {str(path)!r}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(
                "a .parquet file needs the package pyarrow, found none: "
                "install it with pip install 'balancebench-udi[parquet]', or name a .csv file"
            ) from None


def record_paths(store: Store, datasets: str | None, methods: str | None) -> list[Path]:
    """The files of the records asked for.

    Raises:
        UserError: a dataset or a method without records; no records at all.
    """
    everything = paths = store.record_paths()
    for kind, text, level in (("dataset", datasets, 1), ("method", methods, 0)):
        if text is None or not everything:
            continue
        wanted = words(text, f"--{kind}")
        known = {path.parents[level].name for path in everything}
        for name in wanted:
            if name not in known:
                raise UserError(f"{store.root} has no record of a {kind} called {name!r}{near_misses(name, known)}")
        paths = [path for path in paths if path.parents[level].name in wanted]
    if not paths:
        asked = f" of {methods} on {datasets}" if everything else ""
        raise UserError(
            f"the table needs at least one record{asked}, found none in {store.root}: "
            "train with benchmarks/run.py, or name another --out"
        )
    return paths


def sampled(paths: Sequence[Path], select: str | None) -> tuple[list[Path], list[str]]:
    """The records that have the reading, and the columns of their samples."""
    kept: list[Path] = []
    modalities: dict[str, None] = {}
    for path in paths:
        result = read_record(path)["result"]
        if select is None or select in result["readings"]:
            kept.append(path)
            modalities |= dict.fromkeys(result["modalities"])
    return kept, [*SAMPLE, *(f"shapley/{m}" for m in modalities)]


def save(tables: Iterable[pd.DataFrame], handle: BinaryIO, suffix: str) -> int:
    """Write tables of the same columns below each other; equal tables, equal bytes. Returns the number of rows."""
    rows = 0
    if suffix == ".csv":
        for table in tables:
            guard_frame(table).to_csv(handle, header=not rows, index=False, lineterminator="\n")
            rows += len(table)
        return rows
    import pyarrow
    import pyarrow.parquet

    writer = None
    for table in tables:
        content = pyarrow.Table.from_pandas(table, preserve_index=False)
        writer = writer or pyarrow.parquet.ParquetWriter(handle, content.schema)
        writer.write_table(content)
        rows += len(table)
    if writer is not None:
        writer.close()
    return rows


if __name__ == "__main__":
    sys.exit(main())
