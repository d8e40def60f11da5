#!/usr/bin/env python
"""Tables of several methods, their variants and data sets, made of the records that exist.

    python benchmarks/tables.py udi-main                                # print and write the table
    python benchmarks/tables.py --list                                  # all tables, and how far they are
    python benchmarks/tables.py udi-main --run --data-root DIR          # train what it lacks, then the same

What a table holds is one YAML file in ``benchmarks/tables``; a path to a file of your own works as well. A run belongs
to a cell if ``run.py`` would plan it for that cell, so that no data are needed to print a table. Data that are not
there leave their columns empty.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import statistics
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import torch

import registry
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.places import check_folders
from balancebench_udi.protocol import Protocol, load_protocol
from balancebench_udi.report import matrix, tidy
from balancebench_udi.report.comparison import RULES
from balancebench_udi.report.figures.ranks import critical_difference_diagram
from balancebench_udi.report.published import Claim, load_published
from balancebench_udi.runner import Job, run_all
from balancebench_udi.spec import canonical
from balancebench_udi.store import Store, read_record
from benchmarks.command import (
    ALONE,
    PROTOCOLS,
    PUBLISHED,
    STATUSES,
    Parser,
    check_jobs,
    data_root,
    default_out,
    duration,
    fitting,
    guarded,
    recorded,
    short,
    words,
)
from benchmarks.run import REFERENCE, check_places, make_plan, parse_seeds, plan_again, print_plan, report_rest
from benchmarks.table_specs import (
    Column,
    Row,
    Table,
    Wanted,
    applies,
    check_modalities,
    groups,
    known,
    load_table,
    namespace,
    table_names,
    wanted,
)
from benchmarks.workers import run_side_by_side

FEWEST_RANKED = 3
"""Rows from which on average ranks are drawn: Friedman's test needs as many."""
Record = Mapping[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    style = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="tables.py", description=__doc__, epilog=STATUSES, formatter_class=style)
    p.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(table_names())}, or all; or a YAML file")
    p.add_argument("--list", action="store_true", help="print tables, the runs that exist and those that are missing")
    p.add_argument("--run", action="store_true", help="train the runs that are missing, where their data are")
    p.add_argument("--select", choices=tuple(RULES), help="which epoch is read, instead of the table's choice")
    p.add_argument("--seeds", help="such as 0,1,2 or 0-4, instead of the table's")
    p.add_argument("--format", default=",".join(matrix.FORMATS), help="of md, csv, tex, html (default: all)")
    p.add_argument("--data-root", type=Path, help="folder with the datasets (default: $BALANCEBENCH_DATA, else data/)")
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    p.add_argument("--jobs", type=int, metavar="N", help="runs trained at once, as for run.py")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, as ``run.py`` does."""
    return guarded(run, parser(), arguments, "the same command goes on from the last checkpoint")


def run(given: argparse.Namespace) -> int:
    """List, or train and print."""
    check_jobs(given.jobs)
    formats = words(given.format, "--format")
    for word in formats:
        if word not in matrix.FORMATS:
            raise UserError(f"--format takes {', '.join(matrix.FORMATS)}, found {word!r}")
    tables = [_changed(load_table(name), given) for name in _names(given)]
    if given.list or given.run:
        archive = Archive(Store(given.out if given.out is not None else default_out()))
    else:
        archive = Archive(recorded(given.out))
        check_readings(tables, archive)
    if given.list:
        print("\n".join(listing(table, archive) for table in tables))
        return 0
    for table in tables:
        _claims(table.published)  # here: a name that is wrong is told before anything is trained
        check_folders(archive.store.root / kind / _folder(table, given) for kind in ("tables", "figures"))
    statuses, empty = {0}, []
    for table in tables:
        if given.run:
            ended, skipped = train(table, archive, given)
            statuses |= ended
            archive = Archive(archive.store)  # with what is new
            if skipped and 1 not in ended and not _any_run(table, archive):
                empty.append(table.name)
                continue
        made = make(table, archive)
        paths = matrix.write(made, archive.store.root / "tables" / _folder(table, given), formats)
        paths += draw_ranks(table, made, archive.store.root / "figures" / _folder(table, given))
        print(made.text())
        print("written: " + ", ".join(map(short, paths)) + "\n")
    if len(empty) == len(tables):
        raise UserError(
            f"{', '.join(empty)} must have data to train on or runs to print, found neither: "
            "name the folder with the datasets as --data-root, or another --out"
        )
    if empty:
        print(f"not written, without data to train on and without runs: {', '.join(empty)}")
    return worst(statuses)


def worst(statuses: Collection[int]) -> int:
    """The status of several calls: that some run failed before that some are missing."""
    return 1 if 1 in statuses else max(statuses, default=0)


def _names(given: argparse.Namespace) -> list[str]:
    """The tables that are named; without a name all of them, for the list alone."""
    text = ",".join(given.names)
    if not text.strip(", "):
        if given.list and not given.names:
            return table_names()
        raise UserError(
            f"tables.py needs the name of a table, found none: name one of {', '.join(table_names())}, or all, "
            "or a YAML file; --list prints what there is"
        )
    names = words(text, "tables.py")
    return table_names() if "all" in names else names


def check_readings(tables: Sequence[Table], archive: Archive) -> None:
    """Refuse tables that are all empty because their runs were read at other epochs.

    Raises:
        UserError: that is so; the readings that exist are named.
    """
    if any(_any_run(table, archive) for table in tables):
        return
    others = [s for s in RULES if any(_any_run(dataclasses.replace(t, select=s), archive) for t in tables)]
    if others:
        asked = " or ".join(dict.fromkeys(table.select for table in tables))
        raise UserError(
            f"{', '.join(table.name for table in tables)} must have runs that were evaluated for {asked}, found only "
            f"such for {' and '.join(others)}: name one of these with --select, or train with --run"
        )


def _any_run(table: Table, archive: Archive) -> bool:
    """Whether any cell of the table has a run."""
    return any(place.records for place in places(table, archive))


def draw_ranks(table: Table, made: matrix.Matrix, folder: Path) -> list[Path]:
    """The diagram of average ranks, where there are enough rows and every column is a dataset of its own."""
    apart = len({column.dataset for column in table.columns}) == len(table.columns)
    if not apart or len(made.ranks) < FEWEST_RANKED:
        return []
    return critical_difference_diagram(made.scores, made.title).save(folder, "average_ranks")


def _changed(table: Table, given: argparse.Namespace) -> Table:
    """The table as the command line wants it."""
    seeds = given.seeds or table.seeds
    parse_seeds(seeds)
    return dataclasses.replace(table, seeds=seeds, select=given.select or table.select)


def _folder(table: Table, given: argparse.Namespace) -> str:
    """A table that the command line changed does not replace the one that its file describes."""
    changes = [given.select, given.seeds and f"seeds-{given.seeds}"]
    return fitting("-".join([table.name, *(word for word in changes if word)]))


class Archive:
    """The records of a results folder, read where they are asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._read: dict[tuple[str, str], list[Record]] = {}
        self._modalities: dict[str, list[str]] = {}

    def of(self, dataset: str, method: str) -> list[Record]:
        """Those of one method on one dataset, in the order of their paths."""
        if (dataset, method) not in self._read:
            folder = self.store.root / "records" / dataset / method
            self._read[dataset, method] = [read_record(path) for path in sorted(folder.glob("*.json"))]
        return self._read[dataset, method]

    def modalities(self, spec: Mapping[str, Any]) -> list[str]:
        """Those of the dataset with the options of ``spec``; none where no run on that was ever recorded."""
        data = ("dataset", "dataset_version", "dataset_options")
        place = canonical([spec[name] for name in data])
        if place not in self._modalities:
            runs = self.store.records(spec["dataset"])
            alike = (r["result"]["modalities"] for r in runs if all(r["spec"][n] == spec[n] for n in data))
            self._modalities[place] = next(alike, [])
        return self._modalities[place]

    def any(self, dataset: str) -> bool:
        """Whether a run on the dataset was ever recorded."""
        return any((self.store.root / "records" / dataset).glob("*/*.json"))


@dataclass(frozen=True)
class Place:
    """A cell of a table: what it wants and what there is; ``wanted`` is None where no run can be."""

    row: Row
    column: Column
    wanted: Wanted | None = None
    records: tuple[Record, ...] = ()


def places(table: Table, archive: Archive) -> Iterator[Place]:
    """Every cell, column by column, precision settled within each."""
    seeds = set(parse_seeds(table.seeds))
    for column in table.columns:
        mine = []
        for row in table.rows:
            if not (applies(row, column) and known(row, column)):
                mine.append(Place(row, column))
                continue
            runs = wanted(row, column, table.select)
            if modalities := archive.modalities(runs.spec):
                check_modalities(row, column, runs, modalities)
            found = [r for r in archive.of(column.dataset, row.method) if runs.has(r["spec"])]
            found = [r for r in found if r["spec"]["seed"] in seeds and _usual(r, runs, archive)]
            mine.append(Place(row, column, runs, tuple(found)))
        precision = _precision(mine)
        for place in mine:
            kept = [r for r in place.records if r["spec"]["precision"] == precision]
            yield dataclasses.replace(place, records=tuple(kept))


def _usual(record: Record, runs: Wanted, archive: Archive) -> bool:
    """Whether encoders that a table leaves open are those of the runs of the unchanged protocol, where there are any.

    Only the name of a changed protocol can hide other encoders.
    """
    spec = record["spec"]
    if not spec["protocol"].endswith("+"):
        return True
    alike = ("dataset", "dataset_version", "dataset_options", "protocol_version")
    usual = [
        r["spec"]["encoders"]
        for r in archive.of(spec["dataset"], spec["method"])
        if r["spec"]["protocol"] == spec["protocol"].removesuffix("+")
        and all(r["spec"][name] == spec[name] for name in alike)
    ]
    open_ones = [m for m in spec["encoders"] if m not in runs.encoders]
    return not usual or any(all(one.get(m) == spec["encoders"][m] for m in open_ones) for one in usual)


def _precision(mine: Sequence[Place]) -> str:
    """The precision of most runs of a column; fp32 where as many have either."""
    counts = Counter(r["spec"]["precision"] for place in mine for r in place.records)
    return max(sorted(counts, reverse=True), key=lambda name: counts[name], default="auto")


def make(table: Table, archive: Archive) -> matrix.Matrix:
    """The table of the records that exist."""
    claims = _claims(table.published)
    count = len(parse_seeds(table.seeds))
    found: dict[str, list[Record]] = {column.name: [] for column in table.columns}
    cells = {}
    for place in places(table, archive):
        beside = tuple(claim for claim in claims if _matches(claim, place))
        absent = "-" if known(place.row, place.column) else "not here"
        runs = 0 if place.wanted is None else count
        cells[place.row.name, place.column.name] = matrix.Cell(place.records, runs, beside, absent)
        found[place.column.name] += place.records
    apart = (r for dataset in {c.dataset for c in table.columns} for m in ALONE for r in archive.of(dataset, m))
    alone = tidy.trained_alone(apart, ALONE)
    _check_modalities(table, found, alone)
    rows = {row.name: row.about for row in table.rows}
    columns = {column.name: _about(column, found[column.name]) for column in table.columns}
    return matrix.build(
        table.title, rows, columns, cells, table.values, table.select, table.caption, alone, _reference(table)
    )


def _reference(table: Table) -> str | None:
    """The row of the reference method as its protocol has it, that others are held against."""
    return next((row.name for row in table.rows if row.method == REFERENCE and row.plain), None)


def _check_modalities(table: Table, found: Mapping[str, Sequence[Record]], alone: tidy.Alone) -> None:
    """Refuse the value of a modality that no run has, where every column has runs.

    A score that no run tells of any modality is none of these methods and stays empty.
    """
    if not all(found.values()):
        return
    everything = [record for records in found.values() for record in records]
    for value in table.values:
        kind, _, rest = value.partition("/")
        if rest in ("", "*") or "*" in kind:
            continue
        if names := _namesakes(table, value, everything, alone):
            close = near_misses(value, names)
            raise UserError(f"a value of {table.name} must be one that runs have, found {value!r}{close}")


def _namesakes(table: Table, value: str, records: Sequence[Record], alone: tidy.Alone) -> set[str]:
    """The values of this kind that runs have; none where ``value`` is or fits one, or may be of another method."""
    kind, _, rest = value.partition("/")
    derived = f"{kind}/" in tidy.DERIVED
    names: set[str] = set()
    for record in records:
        test = record["result"]["readings"][table.select]["test"]
        told = tidy.rows(record, table.select, alone)[0] if derived else test
        names |= {name for name in told if name.startswith(f"{kind}/")}
        if fnmatch.filter(names, value):
            return set()
    modalities = {m for record in records for m in record["result"]["modalities"]}
    if names or derived or all(fnmatch.filter(modalities, m) for m in rest.split("+")):
        return names
    return {f"{kind}/{m}" for m in modalities}


def _claims(names: Sequence[str]) -> list[Claim]:
    """The published numbers of these groups."""
    everything = load_published(PUBLISHED) if names else []
    known_groups = {claim.group for claim in everything}
    for name in names:
        if name not in known_groups:
            raise UserError(f"there is no published group called {name!r}{near_misses(name, known_groups)}")
    return [claim for claim in everything if claim.group in names]


def _matches(claim: Claim, place: Place) -> bool:
    """Whether a published number is of this method as it is, on this dataset, with the same fusion and options."""
    row, column = place.row, place.column
    fusion = row.fusion or column.fusion or (place.wanted.protocol.run.fusion if place.wanted else None)
    options = place.wanted.spec["method_options"] if place.wanted else {}
    asked = {name.partition(".")[2]: v for name, v in claim.settings if name.startswith(f"{row.method}.")}
    return (
        row.plain
        and (claim.method, claim.dataset) == (row.method, column.dataset)
        and claim.fusion in (None, fusion)
        and all(options.get(name) == value for name, value in asked.items())
    )


def _about(column: Column, records: Sequence[Record]) -> str:
    """A column in a sentence."""
    if column.dataset not in registry.datasets.names():
        return f"{column.dataset}, which is not here."
    protocol = load_protocol(column.protocol, PROTOCOLS, {}, column.dataset)
    changes = ", ".join(f"{name} {value}" for name, value in column.set.items())
    data = f"{column.dataset} ({changes})" if changes else column.dataset
    text = f"{data}, protocol {protocol.name} v{protocol.version}"
    epochs = column.epochs or protocol.run.epochs
    text += f": {epochs} epoch{'s' * (epochs != 1)} a phase, {column.fusion or protocol.run.fusion} fusion"
    if not records:
        return f"{text}; no runs."
    spec = records[0]["spec"]
    encoders = ", ".join(f"{m} {_described(spec['encoders'][m])}" for m in records[0]["result"]["modalities"])
    return f"{text}, {spec['precision']}; encoders: {encoders}; fingerprint {spec['fingerprint']}."


def _described(encoder: Mapping[str, Any]) -> str:
    """``mlp (depth 2, width 128)``."""
    rest = ", ".join(f"{name} {value}" for name, value in sorted(encoder.items()) if name != "name")
    return f"{encoder['name']} ({rest})" if rest else encoder["name"]


def train(table: Table, archive: Archive, given: argparse.Namespace) -> tuple[set[int], list[str]]:
    """Train what the table lacks, as far as the data are there.

    Returns:
        The exit statuses of its parts, and the columns that were skipped.
    """
    count, statuses = len(parse_seeds(table.seeds)), {0}
    skipped = []
    everything = list(places(table, archive))
    for column in table.columns:
        mine = [place for place in everything if place.column is column]
        lacking = [p.row for p in mine if p.wanted and not p.row.former and len(p.records) < count]
        queue = groups(lacking)
        precision = next((r["spec"]["precision"] for place in mine for r in place.records), None)
        more = {"seeds": table.seeds, "data_root": given.data_root, "out": archive.store.root, "jobs": given.jobs}
        while queue:
            rows = queue.pop(0)
            wish = namespace(column, rows, table.select, precision=precision, **more)
            try:
                jobs, store, device, protocol = make_plan(wish)
            except UserError as error:
                absent = _absent(wanted(rows[0], column, table.select), wish)
                if absent is not None:
                    print(f"skipped {column.name}: {absent}")
                    skipped.append(column.name)
                    break
                if len(rows) > 1:  # one of them is to blame
                    queue = [[row] for row in rows] + queue
                    continue
                print(f"refused {rows[0].name} on {column.name}: {error}")
                statuses.add(1)
                continue
            statuses.add(_train(jobs, store, device, protocol, wish))
    return statuses, skipped


def _train(jobs: list[Job], store: Store, device: torch.device, protocol: Protocol, wish: argparse.Namespace) -> int:
    """Train one plan; returns the exit status of what became of it."""
    check_places(store, jobs)
    at_once = print_plan(jobs, store, device, protocol, wish.jobs)
    if at_once > 1:
        outcome = run_side_by_side(plan_again, wish, at_once, jobs, store)
    else:
        outcome = run_all(jobs, store, device, wish.checkpoint_every)
    return report_rest(outcome)


def _absent(runs: Wanted, wish: argparse.Namespace) -> str | None:
    """Why the data of a column cannot be read; None where they can."""
    name, dataset = wish.dataset, registry.datasets.get(wish.dataset)
    try:
        dataset(dataset.Options.build(name, runs.spec["dataset_options"])).load(data_root(wish.data_root))
    except UserError as error:
        return str(error)
    return None


def listing(table: Table, archive: Archive) -> str:
    """One table: the runs that exist, and what the others would take."""
    count = len(parse_seeds(table.seeds))
    have, total, foreign, unknown, seconds = 0, 0, 0, 0, 0.0
    unseen: Counter[str] = Counter()
    for place in places(table, archive):
        if place.wanted is None:
            foreign += count if applies(place.row, place.column) else 0
            continue
        missing = count - len(place.records)
        total, have = total + count, have + len(place.records)
        paces = _paces(place, archive)
        if missing and not archive.any(place.column.dataset) and registry.datasets.get(place.column.dataset).needs:
            unseen[place.column.name] += missing
        elif paces:
            seconds += statistics.median(paces) * place.wanted.spec["epochs"] * missing
        else:
            unknown += missing
    parts = [f"{have} of {total} runs exist"]
    parts += [f"about {duration(seconds)} for {total - have - unknown - unseen.total()}"] if seconds else []
    parts += [f"unknown time for {unknown}"] if unknown else []
    parts += [f"{unseen.total()} need data that no run has used here ({', '.join(unseen)})"] if unseen else []
    parts += [f"{foreign} more of methods or data that are not implemented here"] if foreign else []
    return f"{table.name}: {table.title}\n  {'; '.join(parts)}"


def _paces(place: Place, archive: Archive) -> list[float]:
    """Seconds for each of a run's epochs, of the same method on the same data under the same protocol."""
    if place.wanted is None:
        return []
    name = place.wanted.protocol.name.removesuffix("+")
    return [
        sum(p["seconds"] + p["evaluation_seconds"] for p in record["cost"]["phases"]) / record["spec"]["epochs"]
        for record in archive.of(place.column.dataset, place.row.method)
        if record["spec"]["protocol"].removesuffix("+") == name
    ]


if __name__ == "__main__":
    sys.exit(main())
