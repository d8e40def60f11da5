"""Which rows of a table differ in accuracy: who is compared, the verdict on two rows, and what it says in words.

Tables, comparisons, figures and pages all judge here, so that two rows with the same runs have one verdict everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from balancebench_udi.data import groups as dependence
from balancebench_udi.data.groups import Groups
from balancebench_udi.metrics import statistics
from balancebench_udi.metrics.predictions import unpack
from balancebench_udi.metrics.statistics import CLOSE, DIFFERENT, FAMILY, LEVEL, NOISY, Against, Verdict, against_best

MARKED = (
    "Verdicts on two rows are over seeds and test samples, at 5 %, and allow for ten methods of which the best is "
    "picked, however many rows a table shows (Games and Howell's test over seeds, a paired one over groups of "
    "samples): two rows with the same runs have the same verdict in every table. †: not significantly different from "
    "the best row of the column; ‡: too noisy to say, that is not significantly different, but the 95 % interval of "
    "the difference also holds one of 2 points, or of a tenth of what the better row gains over the majority class "
    "where that is more. Rows with fewer or other seeds are not compared."
)
"""What the marks mean."""
CAUTION = (
    "Not significantly different is not the same as equal; and nothing here says how the rows would compare on other "
    "data, under other protocols or with longer training."
)
"""What no table of these says."""
NAMED = 4
"""Rows that a sentence names; of more it gives the number."""
CORRELATED = 4
"""Rows from which on a rank correlation is told."""

Hits = Mapping[int, npt.NDArray[np.bool_]]
"""Seed -> ``[N]`` whether each test sample was right."""
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Samples:
    """What is to be known of a test split.

    Attributes:
        majority: share of its most frequent class, in [0, 1].
        chance: one over the number of classes.
        groups: of samples that are not independent; None where all are exchangeable.
    """

    majority: float
    chance: float
    groups: Groups | None = None

    @property
    def floor(self) -> float:
        """Accuracy that needs no learning."""
        return max(self.majority, self.chance)

    @property
    def members(self) -> npt.NDArray[np.int64] | None:
        """``[N]`` the group of each sample."""
        return None if self.groups is None else self.groups.array()


@dataclass(frozen=True)
class Contest:
    """The rows that could be compared: those with the most seeds, over the seeds that they share.

    Attributes:
        seeds: these, in rising order.
        means: row -> mean accuracy over them.
        against: the verdicts on the best row and every other.
        versus: other row -> the verdict on it and ``reference``; empty without one.
        reference: the row that others are held against beside the best; None where it is not compared.
        samples: of the test split.
        left: rows that have runs of fewer or other seeds.
        lacking: rows that should have runs and have none.
    """

    seeds: tuple[int, ...]
    means: Mapping[str, float]
    against: Against
    versus: Mapping[str, Verdict]
    reference: str | None
    samples: Samples
    left: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The row of highest mean."""
        return self.against.best

    @property
    def close(self) -> list[str]:
        """The rows that are not significantly different from the best, without it."""
        return self.against.of(CLOSE)

    @property
    def noisy(self) -> list[str]:
        """The rows of which the runs do not say whether they differ from the best."""
        return self.against.of(NOISY)

    @property
    def clear(self) -> list[str]:
        """The rows that differ from the best."""
        return self.against.of(DIFFERENT)

    def kind(self, row: str) -> str | None:
        """``best``, or the verdict on the row and the best; None for a row that was not compared."""
        if row == self.best:
            return "best"
        return self.against.verdicts[row].kind if row in self.against.verdicts else None

    def p(self, row: str) -> float:
        """Of the difference from the best; NaN for the best and for a row that was not compared."""
        return self.against.verdicts[row].p if row in self.against.verdicts else float("nan")


def samples_of(record: Mapping[str, Any]) -> Samples:
    """The test split of a record."""
    target = unpack(record["result"]["test_target"]).numpy()
    data = record["data"]
    found = dependence.of_record(record["spec"]["fingerprint"], data, target)
    return Samples(float(np.bincount(target).max() / len(target)), 1 / len(data["classes"]), found)


def correct(records: Records, select: str) -> Hits:
    """Seed -> whether the fused prediction was right."""
    found = {}
    for record in records:
        predicted = unpack(record["result"]["readings"][select]["predictions"]["fused"])
        found[record["spec"]["seed"]] = (predicted == unpack(record["result"]["test_target"])).numpy()
    return found


def stacked(hits: Hits) -> npt.NDArray[np.bool_]:
    """``[S, N]``, seeds in rising order."""
    return np.stack([hits[seed] for seed in sorted(hits)])


def fullest(seeds: Mapping[str, frozenset[int]]) -> list[str]:
    """The rows with the most seeds, as long as these are the same seeds: of equally many, those that most rows have."""
    shared = Counter(seeds.values())
    most = max(shared, key=lambda found: (len(found), shared[found]), default=frozenset())
    return [row for row, mine in seeds.items() if most and mine == most]


def seeds_of(rows: Mapping[str, Records]) -> dict[str, frozenset[int]]:
    """Row -> the seeds of its records."""
    return {row: frozenset(record["spec"]["seed"] for record in records) for row, records in rows.items()}


def contest(
    rows: Mapping[str, Records], select: str, lacking: Sequence[str] = (), reference: str | None = None
) -> Contest | None:
    """Compare the accuracies of the :func:`fullest` rows, tested on the same data.

    Args:
        rows: row -> its records, which differ in nothing but the seed.
        select: the reading.
        lacking: rows that should have runs and have none.
        reference: the row that others are held against beside the best.

    Returns:
        None where there is nothing to test: a single row, records that hold no predictions, or one seed of one sample.
    """
    compared = fullest(seeds_of(rows))
    everything = [record for row in compared for record in rows[row]]
    if not all("predictions" in record["result"]["readings"][select] for record in everything):
        return None
    hits = {row: correct(records, select) for row, records in rows.items() if row in compared}
    left = [row for row, records in rows.items() if records and row not in compared]
    found = judge(hits, samples_of(everything[0]), reference) if len(compared) > 1 else None
    if found is None:
        return None
    return Contest(**{**vars(found), "left": tuple(left), "lacking": tuple(lacking)})


def judge(rows: Mapping[str, Hits], samples: Samples, reference: str | None = None) -> Contest | None:
    """Compare the :func:`fullest` of ``rows``; None where fewer than two are, or one seed of one sample is all.

    Args:
        rows: row -> seed -> whether each test sample was right.
        samples: of the test split.
        reference: the row that others are held against beside the best.
    """
    compared = fullest({row: frozenset(hits) for row, hits in rows.items()})
    if len(compared) < 2:
        return None
    right = {row: stacked(rows[row]) for row in compared}
    if right[compared[0]].size == 1:
        return None
    held = reference if reference in compared else None
    against = against_best(right, samples.members, samples.floor)
    versus = {}
    if held is not None:
        versus = {row: two(right[row], right[held], samples) for row in compared if row != held}
    left = tuple(row for row, hits in rows.items() if hits and row not in compared)
    means = {row: float(values.mean()) for row, values in right.items()}
    return Contest(tuple(sorted(rows[compared[0]])), means, against, versus, held, samples, left)


def two(a: npt.ArrayLike, b: npt.ArrayLike, samples: Samples) -> Verdict:
    """The verdict on two ``[S, N]``."""
    return statistics.verdict(a, b, samples.members, samples.floor)


def finding(where: str, found: Contest) -> str:
    """What the contest on ``where`` says, for readers without statistics."""
    head = f"On {where}, {found.best} has the highest mean ({100 * found.means[found.best]:.1f} %)"
    if found.clear:
        next_best = max(found.clear, key=lambda row: found.means[row])
        points = 100 * (found.means[found.best] - found.means[next_best])
        who = "all others" if len(found.clear) == len(found.means) - 1 > 1 else _named(found.clear)
        least = "" if len(found.clear) == 1 else "at least "
        head += f", significantly above {who} ({least}{points:.1f} points)"
    others = len(found.means) - 1
    told = [
        f"{kind}: {'all others' if len(rows) == others > 1 else _named(rows)}"
        for kind, rows in ((CLOSE, found.close), (NOISY, found.noisy))
        if rows
    ]
    once = "; this is of one run of each, training again may change it" if len(found.seeds) == 1 else ""
    left = f" Not compared, with fewer or other seeds: {listed(found.left)}." if found.left else ""
    lacking = f" Without runs so far: {listed(found.lacking)}." if found.lacking else ""
    return f"{'; '.join([head, *told])}{once}.{left}{lacking}"


def held_against(where: str, found: Contest) -> str | None:
    """The same against the reference; None without one, or where it is the best."""
    if found.reference in (None, found.best) or not found.versus:
        return None
    kinds = {
        "significantly above it": [r for r, v in found.versus.items() if v.kind == DIFFERENT and v.difference > 0],
        "significantly below it": [r for r, v in found.versus.items() if v.kind == DIFFERENT and v.difference < 0],
        CLOSE: [r for r, v in found.versus.items() if v.kind == CLOSE],
        NOISY: [r for r, v in found.versus.items() if v.kind == NOISY],
    }
    whole = len(found.versus)
    told = "; ".join(
        f"{kind}: {'all others' if len(rows) == whole > 1 else listed(rows)}" for kind, rows in kinds.items() if rows
    )
    reference = str(found.reference)
    return f"On {where}, held against {reference} ({100 * found.means[reference]:.1f} %): {told}."


def floors(where: str, samples: Samples) -> str:
    """Accuracies that need no learning."""
    return (
        f"On {where}, the majority class has {100 * samples.majority:.1f} % of the test samples; chance is "
        f"{100 * samples.chance:.1f} %."
    )


def clustered(where: str, found: Contest) -> str | None:
    """Which test samples are not independent, and what that does; None where all are exchangeable."""
    groups = found.samples.groups
    if groups is None:
        return None
    if len(groups) == 1:
        return f"On {where}, all test samples are of one {groups.unit}: what is found holds for it alone."
    effects = [v.design_effect for v in found.against.verdicts.values() if not np.isnan(v.design_effect)]
    size = f" {min(effects):.1f} to {max(effects):.1f}" if effects else " an unknown number of"
    return (
        f"On {where}, the {len(groups.members)} test samples are of {len(groups)} {groups.unit}s and count by "
        f"{groups.unit}: the variance of a difference from the best row is{size} times that of independent samples "
        "(design effect)."
    )


def crowded(rows: int) -> str | None:
    """What level holds in a table of more rows than a verdict allows for; None in a smaller one."""
    if rows <= FAMILY:
        return None
    reached = stats.studentized_range.isf(LEVEL, FAMILY, np.inf)
    level = float(stats.studentized_range.sf(reached, rows, np.inf))
    return (
        f"With {rows} rows compared, more than the {FAMILY} that a verdict allows for, some difference among equal "
        f"rows is called significant in up to {100 * level:.0f} % of such columns instead of {100 * LEVEL:.0f} %."
    )


def tradeoff(where: str, accuracy: Mapping[str, float], imbalance: Mapping[str, float]) -> str | None:
    """How accuracy and imbalance go together over the rows that have both; None for few rows or where one is constant.

    Args:
        accuracy: row -> mean, in [0, 1].
        imbalance: row -> mean; NaN where there is none.
    """
    rows = [row for row, value in imbalance.items() if row in accuracy and not np.isnan(value)]
    if len(rows) < CORRELATED or any(len({values[row] for row in rows}) == 1 for values in (accuracy, imbalance)):
        return None
    found = float(stats.spearmanr([accuracy[r] for r in rows], [imbalance[r] for r in rows]).statistic)
    balanced = min(rows, key=lambda row: imbalance[row])
    place = sorted(rows, key=lambda row: -accuracy[row]).index(balanced) + 1
    return (
        f"On {where}, accuracy and imbalance have a rank correlation of {found:+.2f} over {len(rows)} rows (Spearman; "
        f"above 0 the less balanced are the more accurate); the most balanced, {balanced}, has place {place} by "
        "accuracy."
    )


def listed(names: Sequence[str]) -> str:
    """``["a", "b", "c"]`` as ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _named(names: Sequence[str]) -> str:
    return listed(names) if len(names) <= NAMED else f"{len(names)} rows"
