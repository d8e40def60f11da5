"""Statistics of a comparison: intervals, paired tests over seeds and samples, many methods, ranks over datasets.

Correctness comes as a matrix ``[S, N]``: S seeds by N test samples, 1 where the prediction was right. Accuracies and
their differences are in [0, 1]. Nothing depends on the global random state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from balancebench_udi.errors import UserError


@dataclass(frozen=True)
class Paired:
    """What :func:`paired` finds.

    Attributes:
        difference: mean accuracy of the first minus that of the second, in [-1, 1].
        low: lower end of the 95 % interval of the difference, not below -1.
        high: upper end, not above 1.
        p: two-sided, in [0, 1].
        df: degrees of freedom of the t distribution; NaN where the variance is zero.
    """

    difference: float
    low: float
    high: float
    p: float
    df: float


@dataclass(frozen=True)
class Against:
    """What :func:`against_best` finds.

    Attributes:
        best: the method of highest mean accuracy.
        p: method -> adjusted p of its difference from the best; the best itself is not in it.
        indistinguishable: the best and every method whose adjusted p is at least the level, in the given order.
    """

    best: str
    p: dict[str, float]
    indistinguishable: tuple[str, ...]


def bootstrap_interval(
    correct: npt.ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean accuracy by the pigeonhole bootstrap.

    Every draw resamples the seeds and, independently, the samples with replacement and averages the cells where they
    meet; the interval lies between the ``(1 - level) / 2`` and ``(1 + level) / 2`` quantiles of the draws. Given the
    drawn seeds, a sample enters only by how many of them are right on it, 0 to S; so it is enough to draw how many of
    the N samples are of each kind. Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 1(2), 2007,
    https://doi.org/10.1214/07-AOAS122.

    With one seed only the samples are resampled: the interval then says nothing about training anew.

    Few seeds give too short an interval where accuracy differs more between seeds than the test split explains, that
    is where its sd over seeds is large against ``sqrt(p (1 - p) / N)``. Measured in simulations of crossed random
    effects (N = 400, 2000 repeats), the nominal 95 % covered the truth in

    ================  ======  =======  =======  =======  ========  ========
    sd over that      1 seed  2 seeds  3 seeds  5 seeds  10 seeds  20 seeds
    ================  ======  =======  =======  =======  ========  ========
    0                 0.94    0.98     0.98     0.97     0.97      0.96
    1                 0.83    0.93     0.96     0.97     0.97      0.97
    2                 0.61    0.85     0.90     0.94     0.95      0.96
    5                 0.31    0.67     0.78     0.88     0.91      0.94
    ================  ======  =======  =======  =======  ========  ========

    Args:
        correct: ``[S, N]``, bool or 0/1.
        level: nominal coverage, in (0, 1). 0.95 is the custom of the field.
        draws: at least 1; 2000 is ours (the ends then move by about a tenth of the half width between ``seed``s).
        seed: of the resampling.

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        UserError: ``correct`` not a non-empty matrix of 0 and 1; ``level`` or ``draws`` out of range.
    """
    hits = _matrix(correct, "correct")
    _in_open_interval("level", level)
    if draws < 1:
        raise UserError(f"draws must be >= 1, found {draws}: use the default, 2000")
    seeds, samples = hits.shape
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws).astype(np.float32)  # exact, and a fast product
    _, kinds, count = np.unique(np.packbits(hits, axis=0), axis=1, return_index=True, return_counts=True)
    columns = hits[:, kinds].astype(np.float32)  # many samples are right on the same seeds: each kind once
    levels = [np.bincount((weights @ columns).astype(np.int64), count, seeds + 1) for weights in drawn]
    means = rng.multinomial(samples, np.array(levels) / samples) @ np.arange(seeds + 1) / (seeds * samples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(a: npt.ArrayLike, b: npt.ArrayLike) -> Paired:
    """Two-sided test and 95 % interval of the difference in accuracy of two methods, over seeds and samples.

    With ``D = a - b`` in {-1, 0, 1} of shape ``[S, N]``, crossed random effects of seeds and samples:

    ``difference = mean(D)``, ``variance = V_S + V_N``, ``V_S = var over seeds (mean over samples of D) / S``,
    ``V_N = var over samples (mean over seeds of D) / N``, both variances with divisor n - 1,
    ``df = variance^2 / (V_S^2 / (S - 1) + V_N^2 / (N - 1))`` (Welch-Satterthwaite).

    Both terms contain the interaction of seed and sample, ``sigma_SN^2 / (S N)``; it is counted twice, so the test is
    conservative where nothing else differs. Measured in simulations of equal methods (N = 300, 3000 repeats), with 5
    seeds p < 0.05 came in 0.6 % where the interaction decides, in 4.8 % where the samples do and in up to 6.1 % where
    the seeds do. Where the seeds do, fewer are too few for this t approximation: up to 7.4 % with 3, 13 % with 2.

    With one seed only ``V_N`` is left, which is close to McNemar's test: it then says whether these two trained models
    differ, not whether the methods do. With one sample only ``V_S`` is left. Where the variance is zero, p is 1 for no
    difference and 0 for any other, and the interval is a point.

    Args:
        a: ``[S, N]``, bool or 0/1; the same seeds and samples in the same order as ``b``.
        b: ``[S, N]``.

    Raises:
        UserError: not two non-empty matrices of 0 and 1 of one shape, or a single seed with a single sample.
    """
    first, second = _matrix(a, "a"), _matrix(b, "b")
    _same_shape("a", first, "b", second)
    if first.size == 1:
        raise UserError("a paired test needs at least 2 seeds or 2 samples, found 1 of each: evaluate more samples")
    delta = first - second
    total = delta.shape[0] * delta.shape[1]
    difference = float(delta.sum() / total)
    # Sums rather than means, so that equal rows or columns have a variance of exactly zero.
    terms = [
        (sums.var(ddof=1) * len(sums) / total**2, len(sums) - 1)
        for sums in (delta.sum(1), delta.sum(0))
        if len(sums) > 1
    ]
    variance = sum(v for v, _ in terms)
    if variance == 0:
        return Paired(difference, difference, difference, 1.0 if difference == 0 else 0.0, math.nan)
    df = variance**2 / sum(v**2 / free for v, free in terms)
    error = math.sqrt(variance)
    half = stats.t.ppf(0.975, df) * error
    p = 2 * stats.t.sf(abs(difference) / error, df)
    low, high = max(difference - half, -1), min(difference + half, 1)
    return Paired(difference, float(low), float(high), float(p), float(df))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values for testing them all, in the given order.

    With ``p_(1) <= ... <= p_(K)``: ``adjusted_(i) = min(1, max over j <= i of (K - j + 1) p_(j))``. Rejecting where
    the adjusted value is below alpha keeps the chance of any false rejection at alpha, whatever the dependence. Holm,
    *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6(2), 1979.

    Raises:
        UserError: a value outside [0, 1].
    """
    values = np.asarray(p, dtype=float)
    wrong = values[~((values >= 0) & (values <= 1))]
    if len(wrong):
        raise UserError(f"every p must lie in [0, 1], found {wrong[0]}: pass p-values")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return adjusted.tolist()


def against_best(correct: Mapping[str, npt.ArrayLike], level: float = 0.05) -> Against:
    """Which methods cannot be told from the best one.

    The best has the highest mean accuracy, the first one on a tie. Every other is tested against it by :func:`paired`,
    over all seeds and samples given, and the p-values are adjusted by :func:`holm`. Who is best is read from the same
    data, which Holm's correction does not know. In simulations (5 seeds,
    N = 300, 600 repeats) at least one of ten equal methods was told apart in 1.5 % (the interaction decides) to 24 %
    (samples and seeds do) of the tables, each single one in at most 3.3 %: a truly best method is rarely left out,
    yet among many equals some method may be.

    Args:
        correct: method -> ``[S, N]``, bool or 0/1, the same seeds and samples in the same order for all.
        level: of the test, in (0, 1). 0.05 is the custom of the field.

    Raises:
        UserError: no method, a matrix that is empty or not of 0 and 1, methods of different shapes, ``level`` out of
            range, and what :func:`paired` refuses.
    """
    _in_open_interval("level", level)
    if not correct:
        raise UserError("a comparison needs at least 1 method, found none: pass the correctness of each")
    hits = {name: _matrix(values, name) for name, values in correct.items()}
    first = next(iter(hits))
    for name, values in hits.items():
        _same_shape(first, hits[first], name, values)
    best = max(hits, key=lambda name: int(hits[name].sum()))
    others = [name for name in hits if name != best]
    p = dict(zip(others, holm([paired(hits[best], hits[name]).p for name in others]), strict=True))
    return Against(best, p, tuple(name for name in hits if name == best or p[name] >= level))


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
    _in_open_interval("level", level)
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


def _matrix(correct: npt.ArrayLike, name: str) -> npt.NDArray[np.int64]:
    """``correct`` as a non-empty matrix of 0 and 1."""
    values = np.asarray(correct)
    if values.ndim != 2 or values.size == 0:
        raise UserError(
            f"the correctness of {name} must be a matrix of at least 1 seed by 1 sample, found the shape "
            f"{values.shape}: pass [seeds, samples]"
        )
    if not np.isin(values, (0, 1)).all():
        raise UserError(f"the correctness of {name} must be 0 or 1, found other values: pass prediction == target")
    return values.astype(np.int64)


def _same_shape(name: str, one: npt.NDArray[np.int64], other_name: str, other: npt.NDArray[np.int64]) -> None:
    if one.shape != other.shape:
        raise UserError(
            f"{name} and {other_name} must have the same seeds and samples, found the shapes {one.shape} and "
            f"{other.shape}: keep those that both have"
        )


def _in_open_interval(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise UserError(f"{name} must lie between 0 and 1, both excluded, found {value}: use 0.95 or 0.05, say")


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
