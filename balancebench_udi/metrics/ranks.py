"""Ranks over datasets: averages, Friedman's test, Nemenyi's critical difference, groups that it does not tell apart."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.statistics import in_open_interval


def average_ranks(scores: pd.DataFrame) -> pd.Series:
    """The mean over datasets of each method's rank: 1 is the best, tied methods share the mean of their ranks.

    Args:
        scores: one row a dataset, one column a method; higher is better. Scores that agree to 1e-9 are tied.

    Returns:
        Method -> average rank in [1, K], in the order of the columns.

    Raises:
        UserError: fewer than 2 methods, no dataset, or a score that is missing.
    """
    return _complete(scores).rank(axis=1, ascending=False).mean()


def critical_difference(methods: int, datasets: int, level: float = 0.05) -> float:
    """How far two average ranks must lie apart to differ, by Nemenyi's test.

    ``CD = q sqrt(K (K + 1) / (6 N))`` for K methods on N datasets, q the upper ``level`` quantile of the studentised
    range of K groups with infinite degrees of freedom, over sqrt(2). Demsar, *Statistical comparisons of classifiers
    over multiple data sets*, JMLR 7, 2006, https://jmlr.org/papers/v7/demsar06a.html. It is meant to follow a
    :func:`friedman` test that rejects.

    Args:
        methods: K, at least 2.
        datasets: N, at least 1; with fewer than about 10 hardly anything differs.
        level: in (0, 1). 0.05 as in the reference.

    Raises:
        UserError: a number out of range.
    """
    in_open_interval("level", level)
    if methods < 2:
        raise UserError(f"a critical difference needs at least 2 methods, found {methods}: add one")
    if datasets < 1:
        raise UserError(f"a critical difference needs at least 1 dataset, found {datasets}: add one")
    q = stats.studentized_range.ppf(1 - level, methods, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * datasets)))


def friedman(scores: pd.DataFrame) -> tuple[float, float]:
    """Friedman's test of whether any method ranks above another, corrected for ties.

    ``chi^2 = 12 N / (K (K + 1)) (sum of R_k^2 - K (K + 1)^2 / 4)`` with the average ranks R over N datasets, divided
    by ``1 - sum of (t^3 - t) / (N K (K^2 - 1))`` over groups of t tied methods; p from chi^2 with K - 1 degrees of
    freedom, which is rough below about 10 datasets and 5 methods. Friedman, JASA 32(200), 1937; Demsar, JMLR 2006.

    Args:
        scores: as in :func:`average_ranks`.

    Returns:
        The statistic and p; 0 and 1 where all methods tie on every dataset.

    Raises:
        UserError: fewer than 3 methods or 2 datasets, or a score that is missing.
    """
    full = _complete(scores)
    if full.shape[1] < 3:
        raise UserError("Friedman's test needs at least 3 methods, found 2: compare two by a paired test")
    if len(full) < 2:
        raise UserError("Friedman's test needs at least 2 datasets, found 1: add datasets or compare by paired tests")
    if (full.nunique(axis=1) == 1).all():
        return 0.0, 1.0
    statistic, p = stats.friedmanchisquare(*full.to_numpy().T)
    return float(statistic), float(p)


def cliques(ranks: pd.Series, difference: float) -> list[tuple[str, ...]]:
    """The groups of methods that a critical-difference diagram joins by a bar.

    A group holds every method from one rank to another at most ``difference`` above it. Groups inside another and
    single methods are left out.

    Args:
        ranks: method -> average rank.
        difference: from :func:`critical_difference`.

    Returns:
        The groups, best first, and the methods of each best first.
    """
    ordered = ranks.sort_values(kind="stable")
    names, values = [str(name) for name in ordered.index], ordered.to_numpy()
    groups: list[tuple[str, ...]] = []
    reached = 1  # a group must reach beyond the one before, and hold two methods
    for start, rank in enumerate(values):
        end = int(np.searchsorted(values - rank, difference, side="right"))
        if end > max(reached, start + 1):
            groups.append(tuple(names[start:end]))
            reached = end
    return groups


def _complete(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores to 1e-9, so that the rounding of means makes no ranks; every method has one on every dataset."""
    if scores.shape[1] < 2 or len(scores) < 1:
        raise UserError(
            f"ranks need at least 2 methods and 1 dataset, found {scores.shape[1]} and {len(scores)}: add some"
        )
    missing = [(row, column) for row in scores.index for column in scores.columns if pd.isna(scores.at[row, column])]
    if missing:
        dataset, method = missing[0]
        raise UserError(
            f"ranks need the score of every method on every dataset, found none of {method} on {dataset}: "
            "leave out one of the two"
        )
    return scores.astype(float).round(9)
