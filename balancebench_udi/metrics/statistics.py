"""Statistics of accuracies: the interval of one, and the verdict on two, over seeds and groups of test samples.

Correctness comes as a matrix ``[S, N]``: S seeds by N test samples, 1 where the prediction was right. Accuracies and
their differences are in [0, 1]. Samples of one group (one subject, say) are not independent; ``groups`` ``[N]`` numbers
them, None means that all samples are exchangeable. Nothing depends on random numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from balancebench_udi.errors import UserError

LEVEL = 0.05
"""Of every verdict, the custom of the field."""
FAMILY = 10
"""Methods that a verdict allows for, however many a table shows: so that two methods have one verdict everywhere."""
SMALL = 0.02
"""The least difference in accuracy that must be excluded before two methods count as alike, 2 points. Ours."""
SHARE = 0.1
"""The same as a share of what the better method gains over the floor; the larger of the two counts. Ours."""
DIFFERENT, CLOSE, NOISY = "different", "not significantly different", "too noisy to say"
STEP = 4
"""Degrees of freedom of the seeds are rounded down to multiples of 1 / STEP: quantiles of the range take long."""


@dataclass(frozen=True)
class Verdict:
    """What :func:`verdict` finds of two methods.

    Attributes:
        difference: mean accuracy of the first minus that of the second, in [-1, 1].
        low: lower end of its 95 % interval, which allows for ``FAMILY`` methods; not below -1.
        high: upper end, not above 1.
        t: the difference over its standard error; inf where the variance is zero and the difference is not.
        seeds_df: degrees of freedom of the variance over seeds; NaN for one seed.
        groups_df: of that over groups; NaN for one group.
        design_effect: variance over groups as a multiple of what it were with independent samples; NaN where that is
            zero.
        margin: the difference that must be excluded for the two to count as alike.
    """

    difference: float
    low: float
    high: float
    t: float
    seeds_df: float
    groups_df: float
    design_effect: float
    margin: float

    @property
    def p(self) -> float:
        """Two-sided, adjusted for ``FAMILY`` methods, in [0, 1]; below ``LEVEL`` where the interval excludes zero."""
        if math.isinf(self.t):
            return 0.0
        found = [0.0]
        if not math.isnan(self.seeds_df):
            found.append(float(stats.studentized_range.sf(math.sqrt(2) * self.t, FAMILY, self.seeds_df)))
        if not math.isnan(self.groups_df):
            found.append(2 * _pairs(self.groups_df) * float(special.stdtr(self.groups_df, -self.t)))
        return min(max(found), 1.0)

    @property
    def kind(self) -> str:
        """``DIFFERENT``, ``CLOSE`` or ``NOISY``."""
        if not self.low <= 0 <= self.high:
            return DIFFERENT
        return CLOSE if max(-self.low, self.high) <= self.margin else NOISY

    def turned(self) -> Verdict:
        """The same of the second and the first."""
        return Verdict(
            -self.difference,
            -self.high,
            -self.low,
            self.t,
            self.seeds_df,
            self.groups_df,
            self.design_effect,
            self.margin,
        )


@dataclass(frozen=True)
class Against:
    """What :func:`against_best` finds.

    Attributes:
        best: the method of highest mean accuracy.
        verdicts: every other method -> the verdict on the best and it.
    """

    best: str
    verdicts: dict[str, Verdict]

    def of(self, kind: str) -> list[str]:
        """The methods other than the best on which the verdict is ``kind``."""
        return [name for name, found in self.verdicts.items() if found.kind == kind]


def verdict(a: npt.ArrayLike, b: npt.ArrayLike, groups: npt.ArrayLike | None = None, floor: float = 0.0) -> Verdict:
    """Whether two methods differ in accuracy, as far as S seeds and G groups of test samples tell.

    The standard error counts the chance in both::

        difference = mean(a) - mean(b)
        V_S = (var over seeds of a's accuracy + var over seeds of b's accuracy) / S
        V_G = G / (G - 1) * sum over groups of (sum over its samples of d_n - difference)^2 / N^2
        t   = |difference| / sqrt(V_S + V_G)

    with ``d_n`` the mean over seeds of ``a - b`` on sample n and variances with divisor S - 1. Trainings of two methods
    count as independent: what they share by a common seed makes the test conservative. Samples are paired. Both terms
    hold the interaction of seed and sample, which therefore counts twice: conservative again.

    p is the larger of two. Over seeds: Games and Howell's, the studentised range of ``FAMILY`` = 10 methods at
    t sqrt(2) with Welch's degrees of freedom (between S - 1 and 2 (S - 1)). Over groups: Student's with G - 1, times
    ``32 G / (G + 2)``, which is at least what the largest |t| of the best of ten equal methods against the nine others
    needs (measured: 16 at 2 degrees of freedom, 21 at 4, 31 with many). So the level holds for all pairs of ten methods
    and where the best is picked from the same data, whatever is shown of them: a pair has one verdict in every table.

    In simulations of ten equal methods some method was called different from the best in at most 5 % of tables, with
    2, 3, 5 and 10 seeds, seeds, samples, groups or their interaction deciding, and with one or several methods up to 8
    times as noisy as samples are. Where accuracy over seeds is far from normal, it may be more: 12 % with one method
    that collapses in some seeds (standard deviation 30 points) among nine that hardly vary.

    Not different is either alike, where the interval lies within ``margin`` = max(2 points, a tenth of what the better
    method gains over ``floor``) on both sides, or too noisy to say.

    With one seed only V_G is left: whether these two networks differ, not whether the methods do. With one group its
    samples count as exchangeable: what is found holds for that group. Where the variance is zero the interval is a
    point.

    Games and Howell, *Pairwise multiple comparison procedures with unequal N's and/or variances*, Journal of
    Educational Statistics 1(2), 1976. Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 1(2), 2007.

    Args:
        a: ``[S, N]``, bool or 0/1; the same seeds and samples in the same order as ``b``.
        b: ``[S, N]``.
        groups: ``[N]`` integers.
        floor: accuracy that needs no learning, such as that of the majority class.

    Raises:
        UserError: not two non-empty matrices of 0 and 1 of one shape, a single seed with a single sample, groups of
            another length.
    """
    first, second = _matrix(a, "a"), _matrix(b, "b")
    _same_shape("a", first, "b", second)
    if first.size == 1:
        raise UserError("a paired test needs at least 2 seeds or 2 samples, found 1 of each: evaluate more samples")
    seeds, samples = first.shape
    by_sample = (first - second).sum(0)
    difference = float(by_sample.sum() / (seeds * samples))
    over_groups, independent, groups_df = _over_groups(by_sample, seeds, groups)
    over_seeds, seeds_df = _over_seeds([first.sum(1), second.sum(1)], samples)
    gained = max(first.mean(), second.mean()) - floor
    margin = max(SMALL, SHARE * float(gained))
    effect = over_groups / independent if independent else math.nan
    error = math.sqrt(over_seeds + over_groups)
    if error == 0:
        t = math.inf if difference else 0.0
        return Verdict(difference, difference, difference, t, seeds_df, groups_df, effect, margin)
    half = _critical(seeds_df, groups_df) * error
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return Verdict(difference, low, high, abs(difference) / error, seeds_df, groups_df, effect, margin)


def against_best(
    correct: Mapping[str, npt.ArrayLike], groups: npt.ArrayLike | None = None, floor: float = 0.0
) -> Against:
    """The :func:`verdict` on the most accurate method, the first one on a tie, and every other.

    Args:
        correct: method -> ``[S, N]``, bool or 0/1, the same seeds and samples in the same order for all.
        groups: ``[N]`` integers.
        floor: accuracy that needs no learning.

    Raises:
        UserError: no method, methods of different shapes, and what :func:`verdict` refuses.
    """
    if not correct:
        raise UserError("a comparison needs at least 1 method, found none: pass the correctness of each")
    hits = {name: _matrix(values, name) for name, values in correct.items()}
    first = next(iter(hits))
    for name, values in hits.items():
        _same_shape(first, hits[first], name, values)
    best = max(hits, key=lambda name: int(hits[name].sum()))
    return Against(best, {n: verdict(hits[best], hits[n], groups, floor) for n in hits if n != best})


def interval(correct: npt.ArrayLike, groups: npt.ArrayLike | None = None, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean accuracy of a method, over seeds and groups of test samples.

    ``mean ± t sqrt(V_S + V_G)`` with the terms of :func:`verdict` for one method, t of the smaller of S - 1 and G - 1
    degrees of freedom: with few seeds their variance is known too badly for more, even where it turns out small. Where
    every prediction is right (or wrong), one end is Clopper and Pearson's for G trials.

    In simulations the nominal 95 % covered the truth in 94 to 100 %, with 2, 3, 5 and 10 seeds, whether accuracy
    differs more between seeds or between samples, and with 4 groups; where seeds hardly differ it is wider than needed.
    With one seed only the samples count: the interval says nothing about training anew.

    Args:
        correct: ``[S, N]``, bool or 0/1.
        groups: ``[N]`` integers.
        level: nominal coverage, in (0, 1). 0.95 is the custom of the field.

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        UserError: ``correct`` not a non-empty matrix of 0 and 1, ``level`` out of range, groups of another length.
    """
    hits = _matrix(correct, "correct")
    in_open_interval("level", level)
    seeds, samples = hits.shape
    mean = float(hits.mean())
    over_groups, _, groups_df = _over_groups(hits.sum(0), seeds, groups)
    over_seeds, seeds_df = _over_seeds([hits.sum(1)], samples)
    error = math.sqrt(over_seeds + over_groups)
    free = [df for df in (seeds_df, groups_df) if not math.isnan(df)]
    if mean in (0, 1):
        units = samples if groups is None else len(np.unique(np.asarray(groups)))
        reach = 1 - ((1 - level) / 2) ** (1 / units)
        return (1 - reach, 1.0) if mean else (0.0, reach)
    if not free:
        return 0.0, 1.0
    half = float(special.stdtrit(min(free), (1 + level) / 2)) * error
    return max(mean - half, 0.0), min(mean + half, 1.0)


def _over_seeds(right: list[npt.NDArray[np.int64]], samples: int) -> tuple[float, float]:
    """Variance over seeds of a sum or difference of mean accuracies, and Welch's degrees of freedom.

    Args:
        right: of one or two methods, ``[S]`` how many of the N samples each seed has right.
    """
    seeds = len(right[0])
    if seeds == 1:
        return 0.0, math.nan
    parts = [float(counts.var(ddof=1)) / seeds / samples**2 for counts in right]
    total, fewest, most = sum(parts), seeds - 1, len(parts) * (seeds - 1)
    df = fewest if total == 0 else total**2 / sum(part**2 / fewest for part in parts)
    return total, min(max(math.floor(STEP * df + 1e-9) / STEP, fewest), most)


def _over_groups(
    by_sample: npt.NDArray[np.int64], seeds: int, groups: npt.ArrayLike | None
) -> tuple[float, float, float]:
    """Variance of the mean over groups of samples, what it were if these were independent, and degrees of freedom.

    Args:
        by_sample: ``[N]``, sums over the S seeds.
        seeds: S.
        groups: ``[N]`` or None.
    """
    samples = len(by_sample)
    if samples == 1:
        return 0.0, 0.0, math.nan
    independent = float(by_sample.var(ddof=1)) * samples / (seeds * samples) ** 2
    if groups is None:
        return independent, independent, samples - 1
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if members.shape != by_sample.shape:
        raise UserError(
            f"groups must have one number a sample ({samples}), found the shape {members.shape}: pass this split's"
        )
    if len(names) == 1:
        return independent, independent, samples - 1
    sizes = np.bincount(members)
    # Whole numbers as long as possible, so that equal groups have a variance of exactly zero.
    rest = samples * np.bincount(members, by_sample) - sizes * by_sample.sum()
    count = len(names)
    clustered = count / (count - 1) * float((rest**2).sum()) / (float(samples) ** 2 * seeds) ** 2
    return clustered, independent, count - 1


def _pairs(df: float) -> float:
    """What a p of Student's t is multiplied by, for the largest of the best of ten methods against the others."""
    return 32 * (df + 1) / (df + 3)


@functools.cache
def _critical(seeds_df: float, groups_df: float) -> float:
    """The least t that is significant."""
    found = [0.0]
    if not math.isnan(seeds_df):
        found.append(_of_range(seeds_df))
    if not math.isnan(groups_df):
        found.append(-float(special.stdtrit(groups_df, LEVEL / 2 / _pairs(groups_df))))
    return max(found)


@functools.cache
def _of_range(df: float) -> float:
    """The upper ``LEVEL`` quantile of the studentised range of ``FAMILY`` methods, over sqrt(2)."""

    def beyond(log_t: float) -> float:
        return float(stats.studentized_range.sf(math.sqrt(2) * math.exp(log_t), FAMILY, df)) - LEVEL

    return math.exp(optimize.brentq(beyond, 0.5, 4.0, xtol=1e-7))


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


def in_open_interval(name: str, value: float) -> None:
    """Refuse a ``value`` that is not between 0 and 1.

    Raises:
        UserError: it is not.
    """
    if not 0 < value < 1:
        raise UserError(f"{name} must lie between 0 and 1, both excluded, found {value}: use 0.95 or 0.05, say")
