"""Which rows of a table cannot be told from the best one: who is compared, the test, and what it says in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from balancebench_udi.metrics.predictions import unpack
from balancebench_udi.metrics.statistics import Against, against_best

LEVEL = 0.05
"""Of the tests, the custom of the field."""
MARKED = (
    "†: cannot be told from the best row of the column (paired test over seeds and samples, Holm's adjustment "
    "within the column, 5 %); rows with fewer or other seeds are not compared."
)
"""What the mark means."""
CAUTION = (
    "Not to be told from the best is not the same as equal to it; and nothing here says how the rows would "
    "compare on other data, under other protocols or with longer training."
)
"""What no table of these says."""

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Contest:
    """The rows that could be compared: those with the most seeds, over the seeds that they share.

    ``left`` are those that have runs of fewer or other seeds, ``lacking`` those that should have runs and have none.
    """

    seeds: tuple[int, ...]
    means: Mapping[str, float]
    against: Against
    left: tuple[str, ...]
    lacking: tuple[str, ...]

    @property
    def close(self) -> list[str]:
        """The rows that cannot be told from the best, without it."""
        return [row for row in self.against.indistinguishable if row != self.against.best]

    @property
    def clear(self) -> list[str]:
        """The rows that can."""
        return [row for row in self.means if row not in self.against.indistinguishable]

    def lead(self, rows: Sequence[str]) -> float:
        """Points between the best row and the best of ``rows``."""
        return 100 * (self.means[self.against.best] - max(self.means[row] for row in rows))


def fullest(rows: Mapping[str, Records]) -> list[str]:
    """The rows with the most seeds, as long as these are the same seeds: of equally many, those that most rows have."""
    seeds = {row: frozenset(record["spec"]["seed"] for record in records) for row, records in rows.items()}
    shared = Counter(seeds.values())
    most = max(shared, key=lambda found: (len(found), shared[found]))
    return [row for row, mine in seeds.items() if most and mine == most]


def contest(rows: Mapping[str, Records], select: str, lacking: Sequence[str] = ()) -> Contest | None:
    """Compare the accuracies of the :func:`fullest` rows, tested on the same data.

    Args:
        rows: row -> its records, which differ in nothing but the seed.
        select: the reading.
        lacking: rows that should have runs and have none.

    Returns:
        None where there is nothing to test: a single row, records that hold no predictions, or one seed of one sample.
    """
    compared = fullest(rows)
    readings = [record["result"]["readings"][select] for row in compared for record in rows[row]]
    if len(compared) < 2 or not all("predictions" in reading for reading in readings):
        return None
    right = {row: correct(rows[row], select) for row in compared}
    if right[compared[0]].size == 1:
        return None
    means = {row: float(values.mean()) for row, values in right.items()}
    seeds = tuple(sorted(record["spec"]["seed"] for record in rows[compared[0]]))
    left = tuple(row for row, records in rows.items() if records and row not in compared)
    return Contest(seeds, means, against_best(right, LEVEL), left, tuple(lacking))


def correct(records: Records, select: str) -> np.ndarray:
    """``[S, N]`` whether the fused prediction was right, seeds in rising order."""
    rows = []
    for record in sorted(records, key=lambda record: record["spec"]["seed"]):
        predicted = unpack(record["result"]["readings"][select]["predictions"]["fused"])
        rows.append((predicted == unpack(record["result"]["test_target"])).numpy())
    return np.stack(rows)


def finding(where: str, found: Contest) -> str:
    """What the contest on ``where`` says, for readers without statistics."""
    best, close, clear = found.against.best, found.close, found.clear
    means = found.means
    head = f"On {where}, {best} has the highest mean ({100 * means[best]:.1f} %)"
    once = len(found.seeds) == 1
    at = "in this one run of each" if once else f"at these {len(found.seeds)} seeds"
    if not close:
        second = max(clear, key=lambda row: means[row])
        lead = f"its lead over {second} ({found.lead(clear):.1f} points)"
        end = f"{lead}, the next, is larger than chance explains {at}"
    elif not clear:
        none = f"{close[0]} cannot be told from it" if len(close) == 1 else "no row can be told from it"
        end = f"{none} {at}: chance alone may explain a lead such as that over {_next(found)}"
    else:
        names = listed(close) if len(close) <= 3 else f"{len(close)} rows"
        behind = clear[0] if len(clear) == 1 else f"the {len(clear)} other rows"
        least = "" if len(clear) == 1 else "at least "
        lead = f"its lead over {behind} ({least}{found.lead(clear):.1f} points)"
        end = f"{names} cannot be told from it {at}; {lead} is larger than chance explains"
    once_more = "; training again may change it" if once else ""
    left = f" Not compared, with fewer or other seeds: {listed(found.left)}." if found.left else ""
    lacking = f" Without runs so far: {listed(found.lacking)}." if found.lacking else ""
    return f"{head}; {end}{once_more}.{left}{lacking}"


def listed(names: Sequence[str]) -> str:
    """``["a", "b", "c"]`` as ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _next(found: Contest) -> str:
    second = max(found.close, key=lambda row: found.means[row])
    return f"{second} ({found.lead(found.close):.1f} points)"
