"""A table of rows x columns made of records: variants of methods by datasets, each column under its own protocol."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.ranks import average_ranks
from balancebench_udi.metrics.statistics import interval
from balancebench_udi.report import matrix_rendering as rendering
from balancebench_udi.report import matrix_words as words
from balancebench_udi.report import tidy
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.contest import (
    CAUTION,
    Contest,
    Samples,
    contest,
    correct,
    fullest,
    samples_of,
    seeds_of,
    stacked,
)
from balancebench_udi.report.tidy import COSTS, DERIVED
from balancebench_udi.store import Store

if TYPE_CHECKING:
    from balancebench_udi.report.published import Claim

FEW_COLUMNS = 3
"""Complete columns from which on average ranks are given."""
FORMATS = {"md": rendering.markdown, "csv": rendering.csv, "tex": rendering.latex, "html": rendering.html}


@dataclass(frozen=True)
class Cell:
    """What belongs into one cell.

    Attributes:
        records: the runs that exist, which differ in nothing but the seed.
        wanted: how many runs there should be; 0 where none can be.
        claims: published numbers of the same method on the same dataset, to stand beside ours.
        absent: what is printed where there is neither.
    """

    records: tuple[Mapping[str, Any], ...] = ()
    wanted: int = 0
    claims: tuple[Claim, ...] = ()
    absent: str = "-"


@dataclass(frozen=True)
class Number:
    """A mean over seeds. Accuracies are in [0, 1]; NaN where something cannot be said.

    Attributes:
        mean: over the n runs that have this value.
        sd: sample standard deviation; NaN for one run.
        n: runs in the mean.
        wanted: runs asked for.
        low: lower end of the 95 % interval over seeds and samples, for the accuracy alone.
        high: upper end.
        p_adjusted: of the difference from the best row of the column, allowing for ten rows, for the accuracy alone;
            NaN for the best row and for rows that were not compared.
        best: it prints like the highest mean of the rows that were compared.
        verdict: on the row and the best one, ``best`` for that; None for rows that were not compared.
    """

    mean: float
    sd: float
    n: int
    wanted: int
    low: float = math.nan
    high: float = math.nan
    p_adjusted: float = math.nan
    best: bool = False
    verdict: str | None = None


@dataclass(frozen=True)
class Beside:
    """A published number in its place: ``accuracy`` in percent, ``source`` counted from 1 in :attr:`Matrix.sources`."""

    row: str
    column: str
    value: str
    accuracy: float
    claim: Claim
    source: int


@dataclass(frozen=True)
class Matrix:
    """A finished table.

    Attributes:
        title: in one line.
        select: the reading: ``last``, ``best_val`` or ``best_test``.
        rows: in their order.
        columns: column -> the values shown in it, in their order.
        numbers: (row, column, value) -> mean; nothing where no run has it.
        absent: (row, column) -> what is printed where there is nothing.
        ranks: row -> average rank by accuracy over the complete columns, 1 is best; empty with fewer than three.
        scores: mean accuracies of the complete columns, a column of the table each in one row, rows in columns.
        samples: column -> its test split; nothing without runs.
        beside: published numbers, part of no mean.
        sources: where they are from and how they were made, a sentence each.
        findings: what the numbers say, for readers without statistics, a sentence each.
        notes: how to read the table, and what every row and column is, a sentence each.
    """

    title: str
    select: str
    rows: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    numbers: Mapping[tuple[str, str, str], Number]
    absent: Mapping[tuple[str, str], str]
    ranks: Mapping[str, float]
    scores: pd.DataFrame
    samples: Mapping[str, Samples]
    beside: tuple[Beside, ...]
    sources: tuple[str, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    def text(self) -> str:
        """The table for a terminal, at most 100 columns wide unless a single column is wider."""
        return rendering.text(self)

    def frame(self) -> pd.DataFrame:
        """One row a number, accuracies in [0, 1] at full precision; published numbers below ours."""
        ours = [
            {"row": row, "column": column, "value": value, "select": self.select, **vars(number), "published": False}
            | {"majority": self.samples[column].majority, "chance": self.samples[column].chance}
            for (row, column, value), number in self.numbers.items()
        ]
        for one in self.beside:
            ours.append(
                {"row": one.row, "column": one.column, "value": one.value, "select": one.claim.select}
                | {"mean": one.accuracy / 100, "sd": _share(one.claim.sd), "published": True}
                | {"source": one.claim.source, "protocol": one.claim.protocol}
            )
        names = ["row", "column", "value", "select", *Number.__dataclass_fields__, "majority", "chance", "published"]
        names += ["source", "protocol"]
        return pd.DataFrame(ours, columns=names)


def build(
    title: str,
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    cells: Mapping[tuple[str, str], Cell],
    values: Sequence[str] = ("accuracy",),
    select: str = "best_val",
    caption: Sequence[str] = (),
    alone: tidy.Alone | None = None,
    reference: str | None = None,
) -> Matrix:
    """Average the records of every cell over their seeds, and compare the rows within every column.

    Args:
        rows: name -> what it is, in a sentence; may be empty.
        columns: name -> what it is, in a sentence: data, protocol; may be empty.
        cells: (row, column) -> what belongs there, for every pair.
        values: scores of the test split, what :mod:`~balancebench_udi.report.tidy` derives from a record, or its costs,
            as names or patterns such as ``alone/*``, in the order in which a column shows them.
        select: the reading: ``last``, ``best_val`` or ``best_test``.
        caption: sentences that belong to this table.
        alone: the modalities trained alone, of :func:`~balancebench_udi.report.tidy.trained_alone`, for ``probe_gap``.
        reference: the row that others are held against beside the best.

    Raises:
        UserError: what :func:`~balancebench_udi.report.comparison.compare` refuses within a cell; cells of a column
            that were not tested on the same data; a pattern that no score could have.
    """
    numbers: dict[tuple[str, str, str], Number] = {}
    shown: dict[str, tuple[str, ...]] = {}
    contests: dict[str, Contest] = {}
    samples: dict[str, Samples] = {}
    for column in columns:
        mine = {row: cells[row, column] for row in rows}
        _check(column, mine, select)
        shown[column] = _shown(values, mine, select, alone)
        runs = {row: cell.records for row, cell in mine.items()}
        lacking = [row for row, cell in mine.items() if cell.wanted and not cell.records]
        if (first := next((records[0] for records in runs.values() if records), None)) is not None:
            samples[column] = samples_of(first)
        if found := contest(runs, select, lacking, reference):
            contests[column] = found
        for value in shown[column]:
            told = {r: n for r in rows if (n := _number(mine[r], value, select, alone, samples.get(column)))}
            for row, number in _judged(told, value, fullest(seeds_of(runs)), contests.get(column)).items():
                numbers[row, column, value] = number
    beside, sources = _beside(cells, shown)
    scores = _complete(cells, rows, columns, numbers)
    ranked = len(scores) >= FEW_COLUMNS and len(scores.columns) > 1
    ranks = average_ranks(scores) if ranked else pd.Series(dtype=float)
    said = words.findings(contests, numbers)
    if ranked:
        said.append(words.ranking(scores, ranks, cells))
    if contests:
        said.append(CAUTION)
    notes = [
        *caption,
        *words.reading(values, select, contests, ranked, bool(sources)),
        words.coverage(cells, rows, columns),
    ]
    notes += [f"{name}: {about}" for name, about in [*columns.items(), *rows.items()] if about]
    return Matrix(
        title=title,
        select=select,
        rows=tuple(rows),
        columns=shown,
        numbers=numbers,
        absent={place: cell.absent for place, cell in cells.items()},
        ranks={str(row): float(rank) for row, rank in ranks.items()},
        scores=scores,
        samples=samples,
        beside=beside,
        sources=sources,
        findings=tuple(said),
        notes=tuple(notes),
    )


def write(matrix: Matrix, folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write ``table.md``, ``table.csv``, ``table.tex`` and ``table.html``, or some of them; equal records, equal bytes.

    Raises:
        UserError: an unknown format, or ``folder`` cannot be written.
    """
    paths = []
    for suffix in formats:
        if suffix not in FORMATS:
            raise UserError(f"a table's format must be one of {', '.join(FORMATS)}, found {suffix!r}")
        made = FORMATS[suffix](matrix).encode()
        paths.append(folder / f"table.{suffix}")
        Store(folder).replace(paths[-1], lambda handle: handle.write(made))
    return paths


def _check(column: str, cells: Mapping[str, Cell], select: str) -> None:
    """Refuse what has no place in one cell, or in one column."""
    first = None
    for row, cell in cells.items():
        if not cell.records:
            continue
        compare(cell.records, select)
        for name in ("dataset", "dataset_version", "fingerprint"):
            mine = cell.records[0]["spec"][name]
            first = first or (row, cell.records[0]["spec"])
            if mine != first[1][name]:
                raise UserError(
                    f"the rows of a column must be tested on the same data, found {name} {first[1][name]} of "
                    f"{first[0]} and {mine} of {row} in {column}: remove the older records and train them again"
                )


def _shown(values: Sequence[str], cells: Mapping[str, Cell], select: str, alone: tidy.Alone | None) -> tuple[str, ...]:
    """The values of a column, patterns replaced by what its records and its published numbers have."""
    records = [record for cell in cells.values() for record in cell.records]
    order = {m: place for record in records for place, m in enumerate(record["result"]["modalities"])}
    known = {name for record in records for name in record["result"]["readings"][select]["test"]}
    known |= {name for record in records for name in _beyond(record, select, values, alone)}
    known |= {_value(claim) for cell in cells.values() for claim in cell.claims}
    ordered = sorted(known, key=lambda name: (order.get(name.partition("/")[2], len(order)), name))
    found: dict[str, None] = {}
    for pattern in values:
        hits = [name for name in ordered if fnmatch.fnmatchcase(name, pattern)]
        found |= dict.fromkeys(hits if "*" in pattern else [pattern])
    return tuple(found)


def _beyond(
    record: Mapping[str, Any], select: str, values: Sequence[str], alone: tidy.Alone | None
) -> dict[str, float]:
    """What a record tells beyond its test scores: derived numbers and costs, of the kinds that ``values`` name."""
    kinds = {value.partition("/")[0] for value in values} & {name.rstrip("/") for name in (*DERIVED, *COSTS)}
    row = tidy.rows(record, select, alone)[0] if kinds else {}
    return {k: v for k, v in row.items() if k.partition("/")[0] in kinds and isinstance(v, (int, float))}


def _value(claim: Claim) -> str:
    """The value that a published number is one of."""
    return "accuracy" if claim.modality is None else f"alone/{claim.modality}"


def _number(cell: Cell, value: str, select: str, alone: tidy.Alone | None, samples: Samples | None) -> Number | None:
    """The mean of one value; None where no run has it."""
    scores = [
        {**_beyond(record, select, [value], alone), **record["result"]["readings"][select]["test"]}
        for record in cell.records
    ]
    found = [mine[value] for mine in scores if value in mine]
    if not found:
        return None
    low = high = math.nan
    if value == "accuracy" and samples is not None:
        low, high = interval(stacked(correct(cell.records, select)), samples.members)
    sd = statistics.stdev(found) if len(found) > 1 else math.nan
    return Number(statistics.fmean(found), sd, len(found), cell.wanted, low, high)


def _judged(numbers: Mapping[str, Number], value: str, full: Sequence[str], held: Contest | None) -> dict[str, Number]:
    """The numbers of one column and value, with the best ones marked and p where there is one."""
    rivals = [row for row in numbers if row in full]
    top = max((numbers[row].mean for row in rivals), default=math.nan)
    judged = {}
    for row, number in numbers.items():
        same = rendering.printed(number.mean, value) == rendering.printed(top, value)
        best = same and row in rivals and len(rivals) > 1 and rendering.higher_is_better(value)
        told: dict[str, Any] = {}
        if value == "accuracy" and held is not None:
            told = {"p_adjusted": held.p(row), "verdict": held.kind(row)}
        judged[row] = Number(**{**vars(number), "best": best, **told})
    return judged


def _beside(
    cells: Mapping[tuple[str, str], Cell], shown: Mapping[str, Sequence[str]]
) -> tuple[tuple[Beside, ...], tuple[str, ...]]:
    """Published numbers whose value is shown, and their sources in the order in which they come."""
    sources: dict[str, int] = {}
    found = []
    for (row, column), cell in cells.items():
        for claim in cell.claims:
            if claim.accuracy is None or _value(claim) not in shown[column]:
                continue
            protocol = claim.protocol.rstrip(".")
            text = f"{claim.source}. Protocol: {protocol}. Epoch: {claim.select}. Known from: {claim.confidence}."
            source = sources.setdefault(text, len(sources) + 1)
            found.append(Beside(row, column, _value(claim), claim.accuracy, claim, source))
    return tuple(found), tuple(sources)


def _complete(
    cells: Mapping[tuple[str, str], Cell],
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    numbers: Mapping[tuple[str, str, str], Number],
) -> pd.DataFrame:
    """Mean accuracies of the columns in which every run exists; rows that some such column lacks are left out."""
    places = [(row, column) for row in rows for column in columns if cells[row, column].wanted]
    short = {column for row, column in places if len(cells[row, column].records) < cells[row, column].wanted}
    full = [c for c in columns if c not in short and any((row, c) in places for row in rows)]
    kept = [row for row in rows if full and all((row, c, "accuracy") in numbers for c in full)]
    return pd.DataFrame({row: [numbers[row, c, "accuracy"].mean for c in full] for row in kept}, index=full)


def _share(percent: float | None) -> float:
    return math.nan if percent is None else percent / 100
