"""Ranks over datasets against closed forms, brute force, scipy and published tables."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.ranks import average_ranks, cliques, critical_difference, friedman


def spread(rows, columns):
    """A matrix with ``rows`` x ``columns`` in [0, 1) that is the same on every call."""
    return np.random.default_rng(rows * 1000 + columns).random((rows, columns))


DEMSAR = pd.DataFrame(
    {
        "plain": [4, 1, 4, 4, 4, 1, 3, 2.5, 4, 2.5, 4, 3, 4, 3],
        "m": [3, 2, 1, 1, 2, 2.5, 2, 2.5, 3, 2.5, 2.5, 2, 1, 1],
        "cf": [2, 3, 2, 3, 3, 4, 4, 4, 2, 2.5, 1, 4, 2, 4],
        "m+cf": [1, 4, 3, 2, 1, 2.5, 1, 1, 1, 2.5, 2.5, 1, 3, 2],
    }
)
"""Ranks of four variants of C4.5 on 14 datasets: Demsar, JMLR 2006, Table 6."""


def test_the_published_example():
    scores = 1 - DEMSAR / 10
    ranks = average_ranks(scores)
    assert list(ranks.index) == list(DEMSAR)
    assert ranks.tolist() == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=6e-4)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)
    statistic, p = friedman(scores)
    ties = 1 - (3 * (2**3 - 2) + (4**3 - 4)) / (14 * 4 * (4**2 - 1))
    assert statistic * ties == pytest.approx(9.28, abs=0.01)  # printed there without the correction for ties
    assert p == pytest.approx(stats.chi2.sf(statistic, 3))
    assert cliques(ranks, critical_difference(4, 14)) == [("m+cf", "m", "cf", "plain")]
    assert cliques(ranks, critical_difference(4, 14, 0.1)) == [("m+cf", "m", "cf"), ("cf", "plain")]


def test_ranks_equal_scipy_and_sum_to_a_constant():
    rng = np.random.default_rng(10)
    scores = pd.DataFrame(rng.integers(0, 5, (9, 6)) / 5, columns=list("fedcba"))
    expected = np.mean([stats.rankdata(-row) for row in scores.to_numpy()], axis=0)
    assert average_ranks(scores).to_dict() == pytest.approx(dict(zip("fedcba", expected, strict=True)))
    assert average_ranks(scores).sum() == pytest.approx(6 * 7 / 2)


def test_rounding_makes_no_rank():
    scores = pd.DataFrame({"a": [0.1 + 0.2, 0.5], "b": [0.3, 0.5], "c": [0.2, 0.6]})
    assert scores["a"][0] > scores["b"][0]
    assert average_ranks(scores).tolist() == [2.0, 2.0, 2.0]
    assert friedman(scores) == (0.0, 1.0)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (7, 2.949), (10, 3.164)])
def test_the_critical_difference_has_the_published_quantiles(methods, q):
    for datasets in (1, 5, 30):
        expected = q * math.sqrt(methods * (methods + 1) / (6 * datasets))
        assert critical_difference(methods, datasets) == pytest.approx(expected, rel=4e-4)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.645), (4, 2.291), (10, 2.920)])
def test_the_critical_difference_follows_the_level(methods, q):
    found = critical_difference(methods, 1, level=0.1)
    assert found == pytest.approx(q * math.sqrt(methods * (methods + 1) / 6), rel=4e-4)


def test_friedman_without_ties_is_its_formula():
    scores = pd.DataFrame(spread(8, 5))
    ranks = average_ranks(scores)
    expected = 12 * 8 / (5 * 6) * ((ranks**2).sum() - 5 * 6**2 / 4)
    statistic, p = friedman(scores)
    assert (statistic, p) == pytest.approx((expected, stats.chi2.sf(expected, 4)))
    assert friedman(scores * 0 + 0.7) == (0.0, 1.0)


def groups_by_search(ranks, difference):
    """Every set of methods within the difference that no other such set contains."""
    rank = ranks.to_dict()
    sets = [s for size in range(2, len(rank) + 1) for s in itertools.combinations(rank, size)]
    fits = [set(s) for s in sets if max(map(rank.get, s)) - min(map(rank.get, s)) <= difference]
    return {frozenset(s) for s in fits if not any(s < other for other in fits)}


def test_cliques_equal_a_search_of_all_sets():
    rng = np.random.default_rng(11)
    for _ in range(40):
        ranks = pd.Series(rng.integers(4, 28, 6) / 4, index=list("abcdef"))
        difference = float(rng.integers(0, 16) / 4)
        found = cliques(ranks, difference)
        assert {frozenset(g) for g in found} == groups_by_search(ranks, difference)
        assert len(found) == len(set(found))
        for group in found:
            assert ranks[list(group)].is_monotonic_increasing
        assert [ranks[g[0]] for g in found] == sorted(ranks[g[0]] for g in found)


def test_cliques_by_hand():
    ranks = pd.Series({"d": 4.0, "a": 1.0, "b": 1.5, "c": 3.0})
    assert cliques(ranks, 0.4) == []
    assert cliques(ranks, 1.0) == [("a", "b"), ("c", "d")]
    assert cliques(ranks, 1.5) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert cliques(ranks, 2.0) == [("a", "b", "c"), ("c", "d")]
    assert cliques(ranks, 3.0) == [("a", "b", "c", "d")]
    assert cliques(pd.Series({"only": 1.0}), 1.0) == []


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: critical_difference(1, 5), "at least 2 methods, found 1"),
        (lambda: critical_difference(3, 0), "at least 1 dataset, found 0"),
        (lambda: critical_difference(3, 5, level=1), "level must lie"),
        (lambda: average_ranks(pd.DataFrame({"a": [1.0]})), "at least 2 methods and 1 dataset, found 1 and 1"),
        (lambda: average_ranks(pd.DataFrame({"a": [], "b": []})), "found 2 and 0"),
        (lambda: average_ranks(pd.DataFrame({"a": [1.0], "b": [math.nan]}, index=["set"])), "none of b on set"),
        (lambda: friedman(pd.DataFrame({"a": [1, 2], "b": [2, 1]})), "at least 3 methods, found 2"),
        (lambda: friedman(pd.DataFrame({"a": [1], "b": [2], "c": [3]})), "at least 2 datasets, found 1"),
    ],
)
def test_user_errors_say_what_should_hold(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
