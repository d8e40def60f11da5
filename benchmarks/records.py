#!/usr/bin/env python
"""Write the records of a results folder as one tidy table: one row a run and reading, one column a number.

    python benchmarks/records.py --dataset cgmnist,mosi --to runs.csv

The columns are those of balancebench_udi.report.tidy. Only existing records are read; nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

import pandas as pd
from tqdm import tqdm

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.report.comparison import RULES
from balancebench_udi.report.tidy import frame
from balancebench_udi.store import Store, read_record
from benchmarks.command import Parser, default_out, guarded, short, words


def parser() -> Parser:
    """The command line."""
    p = Parser(prog="records.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--to", type=Path, required=True, metavar="FILE", help="a .csv or a .parquet file")
    p.add_argument("--dataset", help="names, separated by commas (default: every dataset with records)")
    p.add_argument("--method", help="names, separated by commas (default: every method with records)")
    p.add_argument(
        "--select", default="best_val", choices=(*RULES, "all"), help="which epoch is read (default: best_val)"
    )
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 a mistake, 130 interrupted."""
    return guarded(run, parser(), arguments, "nothing was written")


def run(given: argparse.Namespace) -> int:
    """Read the records, write the table."""
    check_format(given.to)
    store = Store(given.out if given.out is not None else default_out())
    paths = record_paths(store, given.dataset, given.method)
    select = None if given.select == "all" else given.select
    table = frame(map(read_record, tqdm(paths, unit="record", delay=1.0)), select)
    if table.empty:
        raise UserError(
            f"the table needs runs that were evaluated for {given.select}, found none among {len(paths)}: "
            "train them with --test-each-epoch, or name another --select"
        )
    content = encode(table, given.to.suffix)
    store.replace(given.to, lambda handle: handle.write(content))
    print(f"{len(table)} rows of {table['key'].nunique()} runs, {table.shape[1]} columns; written: {short(given.to)}")
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


def encode(table: pd.DataFrame, suffix: str) -> bytes:
    """The file's bytes; equal tables, equal bytes."""
    if suffix == ".parquet":
        return table.to_parquet(engine="pyarrow", index=False)
    return table.to_csv(index=False, lineterminator="\n").encode()


if __name__ == "__main__":
    sys.exit(main())
