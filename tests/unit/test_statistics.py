"""Intervals and tests against closed forms, brute force, scipy, published tables, and simulated truth."""

import itertools
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.statistics import (
    Paired,
    against_best,
    average_ranks,
    bootstrap_interval,
    cliques,
    critical_difference,
    friedman,
    holm,
    paired,
)


def trained(rng, seeds, samples, by_seed=0.0, by_sample=0.0, by_cell=1.0, shared=0.0, mean=0.5):
    """Correctness of a method whose seeds, samples and single trainings differ at random by the given sd."""
    latent = mean + shared + by_seed * rng.standard_normal((seeds, 1)) + by_sample * rng.standard_normal((1, samples))
    return latent + by_cell * rng.standard_normal((seeds, samples)) > 0


def spread(rows, columns):
    """A matrix with ``rows`` x ``columns`` in [0, 1) that is the same on every call."""
    return np.random.default_rng(rows * 1000 + columns).random((rows, columns))


# The bootstrap


@pytest.mark.parametrize("right", [3, 30, 42])
def test_the_interval_of_one_seed_is_that_of_a_binomial_count(right):
    correct = np.arange(50)[None] < right
    found = bootstrap_interval(correct, level=0.9, draws=20_000)
    assert np.multiply(found, 50) == pytest.approx(stats.binom.ppf([0.05, 0.95], 50, right / 50), abs=1e-9)


@pytest.mark.parametrize("right", [1, 3, 7])
def test_the_interval_where_only_the_seeds_differ_is_binomial_in_the_seeds(right):
    correct = np.broadcast_to(np.arange(8)[:, None] < right, (8, 30))
    found = bootstrap_interval(correct, level=0.9, draws=20_000)
    assert np.multiply(found, 8) == pytest.approx(stats.binom.ppf([0.05, 0.95], 8, right / 8), abs=1e-9)


def test_two_seeds_that_disagree_on_everything_leave_everything_open():
    assert bootstrap_interval([[1] * 10, [0] * 10]) == (0.0, 1.0)
    low, high = bootstrap_interval([[1, 0] * 50, [0, 1] * 50])  # complementary: half right whichever sample is drawn
    assert low < 0.45
    assert high > 0.55


@pytest.mark.parametrize(("seeds", "samples"), [(2, 40), (5, 25), (7, 12)])
def test_the_interval_equals_resampling_by_indices(seeds, samples):
    correct = spread(seeds, samples) < np.linspace(0.2, 0.9, seeds)[:, None]
    rng = np.random.default_rng(7)
    means = []
    for _ in range(10_000):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(samples, size=samples)
        means.append(correct[np.ix_(rows, columns)].mean())
    for level in (0.7, 0.95):
        expected = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        room = 0.05 * (expected[1] - expected[0]) + 1.01 / correct.size  # the means are discrete
        assert bootstrap_interval(correct, level, draws=10_000) == pytest.approx(expected, abs=room)


def test_the_interval_follows_level_draws_and_seed_and_nothing_else():
    correct = spread(4, 60) < 0.7
    found = bootstrap_interval(correct)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    assert bootstrap_interval(correct, 0.95, 2000, 0) == found
    assert np.array_equal(np.random.get_state()[1], before)
    assert bootstrap_interval(correct.astype(np.uint8)) == found
    assert bootstrap_interval(torch.from_numpy(correct)) == found
    assert bootstrap_interval(correct[:, ::-1]) == found
    assert bootstrap_interval(correct, seed=1) != found
    assert bootstrap_interval(correct, draws=500) != found
    narrow = bootstrap_interval(correct, 0.5)
    assert found[0] < narrow[0] < correct.mean() < narrow[1] < found[1]
    low, high = bootstrap_interval(~correct)
    assert (1 - high, 1 - low) == pytest.approx(found, abs=0.01)  # other draws


def test_an_interval_of_certain_results_is_a_point():
    assert bootstrap_interval(np.ones((5, 20), bool)) == (1.0, 1.0)
    assert bootstrap_interval(np.zeros((1, 1), bool)) == (0.0, 0.0)


def test_a_large_test_split_needs_little_memory():
    correct = spread(5, 20_000) < 0.7
    tracemalloc.start()
    bootstrap_interval(correct)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def coverage(by_seed, by_sample, seeds, samples, repeats, mean=0.6):
    rng = np.random.default_rng(3)
    truth = stats.norm.cdf(mean / math.sqrt(1 + by_seed**2 + by_sample**2))
    hit = 0
    for repeat in range(repeats):
        correct = trained(rng, seeds, samples, by_seed, by_sample, mean=mean)
        low, high = bootstrap_interval(correct, draws=200, seed=repeat)
        hit += low <= truth <= high
    return hit / repeats


@pytest.mark.parametrize("by_seed", [0.0, 0.12])  # nothing; as much as the samples
def test_the_interval_of_five_seeds_covers_the_truth(by_seed):
    assert coverage(by_seed, 1.0, 5, 300, 200) >= 0.9


def test_the_interval_covers_too_little_where_the_seeds_decide_as_documented():
    assert 0.80 <= coverage(0.6, 1.0, 5, 300, 200) <= 0.93
    assert 0.55 <= coverage(0.6, 1.0, 2, 300, 200) <= 0.77


# The paired test


def by_hand(a, b):
    """``paired`` with loops over its formula."""
    delta = np.asarray(a, float) - np.asarray(b, float)
    seeds, samples = delta.shape
    mean = sum(map(sum, delta)) / (seeds * samples)
    parts = []
    for means in ([sum(row) / samples for row in delta], [sum(column) / seeds for column in delta.T]):
        n = len(means)
        if n > 1:
            parts.append((sum((x - mean) ** 2 for x in means) / (n - 1) / n, n - 1))
    variance = sum(v for v, _ in parts)
    df = variance**2 / sum(v**2 / f for v, f in parts)
    t = stats.t(df)
    half = t.ppf(0.975) * variance**0.5
    return Paired(mean, max(mean - half, -1), min(mean + half, 1), 2 * t.cdf(-abs(mean) / variance**0.5), df)


def close(one, other):
    return all(
        getattr(one, k) == pytest.approx(getattr(other, k), rel=1e-9, abs=1e-12)
        for k in ("difference", "low", "high", "p", "df")
    )


@pytest.mark.parametrize("shape", [(5, 40), (2, 7), (9, 3), (1, 30), (6, 1)])
def test_paired_is_its_formula(shape):
    rng = np.random.default_rng(shape[1])
    for _ in range(10):
        a, b = rng.random(shape) < rng.random((shape[0], 1)), rng.random(shape) < 0.5
        if (a == b).all() or len(np.unique(a * 1 - b)) == 1:
            continue
        assert close(paired(a, b), by_hand(a, b))


def test_paired_on_a_tiny_case_worked_out_on_paper():
    # D = [[1, 0, 0], [1, 0, -1]]: rows 1/3, 0; columns 1, 0, -1/2; mean 1/6
    # V_S = (1/18) / 2 = 1/36; V_N = (7/12) / 3 = 7/36; df = (8/36)^2 / ((1/36)^2 / 1 + (7/36)^2 / 2) = 64 / 25.5
    found = paired([[1, 1, 0], [1, 1, 0]], [[0, 1, 0], [0, 1, 1]])
    assert found.difference == pytest.approx(1 / 6)
    assert found.df == pytest.approx(64 / 25.5)
    half = stats.t.ppf(0.975, 64 / 25.5) * math.sqrt(8 / 36)
    assert half > 1.16  # so that both ends are cut off where no difference can be
    assert (found.low, found.high) == (-1, 1)
    assert found.p == pytest.approx(2 * stats.t.sf((1 / 6) / math.sqrt(8 / 36), 64 / 25.5))


def test_one_sample_leaves_the_t_test_over_seeds():
    a, b = np.array([[1], [1], [0], [1], [1], [0]]), np.array([[0], [1], [0], [0], [1], [1]])
    expected = stats.ttest_rel(a[:, 0], b[:, 0])
    found = paired(a, b)
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.df) == pytest.approx((expected.pvalue, 5))
    assert (found.low, found.high) == pytest.approx(tuple(interval))


@pytest.mark.parametrize(("a_only", "b_only"), [(220, 180), (300, 245), (150, 148)])
def test_one_seed_is_close_to_mcnemar(a_only, b_only):
    a, b = np.zeros((1, 5000), int), np.zeros((1, 5000), int)
    a[0, :a_only] = 1
    b[0, a_only : a_only + b_only] = 1
    both = slice(1000, 4000)
    a[0, both] = b[0, both] = 1
    mcnemar = stats.chi2.sf((a_only - b_only) ** 2 / (a_only + b_only), 1)
    found = paired(a, b)
    assert found.p == pytest.approx(mcnemar, rel=0.03)
    assert found.df == 4999


def test_paired_turns_with_its_arguments_and_does_not_see_the_order():
    rng = np.random.default_rng(0)
    a, b = trained(rng, 5, 50, mean=0.6), trained(rng, 5, 50, mean=0.4)
    one, other = paired(a, b), paired(b, a)
    assert one.difference == pytest.approx(a.mean() - b.mean())
    assert (other.difference, other.low, other.high) == (-one.difference, -one.high, -one.low)
    assert (other.p, other.df) == (one.p, one.df)
    rows, columns = rng.permutation(5), rng.permutation(50)
    assert close(paired(a[np.ix_(rows, columns)], b[np.ix_(rows, columns)]), one)
    assert close(paired(torch.from_numpy(a), torch.from_numpy(b)), one)


def test_the_interval_leaves_zero_out_exactly_where_p_is_below_five_percent():
    rng = np.random.default_rng(1)
    verdicts = set()
    for _ in range(200):
        found = paired(trained(rng, 4, 60, 0.1, mean=0.7), trained(rng, 4, 60, 0.1, mean=0.4))
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        verdicts.add(found.p < 0.05)
    assert verdicts == {True, False}


def test_no_variance_decides_by_the_difference_alone():
    same = spread(3, 7) < 0.5
    ones, zeros = np.ones((3, 7)), np.zeros((3, 7))
    assert paired(same, same) == Paired(0.0, 0.0, 0.0, 1.0, math.nan)
    assert paired(ones, zeros) == Paired(1.0, 1.0, 1.0, 0.0, math.nan)
    assert paired(zeros, ones) == Paired(-1.0, -1.0, -1.0, 0.0, math.nan)
    # Every row and every column of this difference has the same sum: no rounding may pass for a variance.
    turned = np.array([np.roll([1, 0, 0, 0, 0, 0, 0], s) for s in range(7)])
    assert paired(turned, np.zeros((7, 7))).p == 0


def test_the_variance_counts_the_interaction_twice():
    rng = np.random.default_rng(2)
    ratios = []
    for _ in range(100):
        a, b = trained(rng, 5, 400), trained(rng, 5, 400)  # nothing but the interaction
        found = paired(a, b)
        error = (found.high - found.difference) / stats.t.ppf(0.975, found.df)
        ratios.append(error**2 / ((a * 1 - b).var() / a.size))
    assert np.mean(ratios) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("effects", "at_least"),
    [
        ({"by_cell": 1.0}, 0.0),
        ({"by_cell": 0.3, "by_sample": 1.0}, 0.02),
        ({"by_cell": 1.0, "by_sample": 0.1, "by_seed": 0.5}, 0.02),
        ({"by_cell": 0.3, "by_sample": 1.0, "by_seed": 0.3}, 0.02),
    ],
    ids=["interaction", "samples", "seeds", "both"],
)
def test_equal_methods_are_told_apart_as_rarely_as_the_level_says(effects, at_least):
    rng = np.random.default_rng(4)
    repeats = 600
    rejected = 0
    for _ in range(repeats):
        shared = rng.standard_normal((1, 300))  # some samples are hard for both
        a, b = (trained(rng, 5, 300, shared=shared, **effects) for _ in range(2))
        rejected += paired(a, b).p < 0.05
    assert at_least <= rejected / repeats <= 0.08  # 0.06 and two standard errors of the simulation


def test_a_real_difference_is_found():
    rng = np.random.default_rng(5)
    found = [
        paired(trained(rng, 5, 500, 0.05, 0.3, mean=0.7), trained(rng, 5, 500, 0.05, 0.3, mean=0.4)) for _ in range(50)
    ]
    assert np.mean([f.p < 0.05 for f in found]) > 0.9
    assert all(f.difference > 0 for f in found)


# Many methods


def closed_testing(p):
    """Holm by its meaning: the worst Bonferroni p of every set of hypotheses that contains the one asked about."""
    everything = range(len(p))
    return [
        max(
            min(1.0, len(s) * min(p[j] for j in s))
            for size in range(1, len(p) + 1)
            for s in itertools.combinations(everything, size)
            if i in s
        )
        for i in everything
    ]


def test_holm_equals_closed_testing():
    rng = np.random.default_rng(6)
    for k in range(1, 8):
        for power in (1, 3):
            p = (rng.random(k) ** power).tolist()
            assert holm(p) == pytest.approx(closed_testing(p), abs=1e-12)
    tied = [0.01, 0.04, 0.01, 0.04, 1.0]
    assert holm(tied) == pytest.approx(closed_testing(tied))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([0.0]) == [0.0]
    assert holm([]) == []


@pytest.mark.parametrize("p", [[0.5, -0.1], [1.2], [0.1, math.nan]])
def test_holm_refuses_what_is_no_p(p):
    with pytest.raises(UserError, match=r"every p must lie in \[0, 1\], found (-0.1|1.2|nan)"):
        holm(p)


def test_against_best_tests_every_other_against_the_highest():
    rng = np.random.default_rng(8)
    means = {"poor": -0.4, "best": 0.8, "near": 0.8, "middle": 0.2}
    shared = rng.standard_normal((1, 200))
    correct = {name: trained(rng, 4, 200, shared=shared, mean=mean) for name, mean in means.items()}
    correct["near"] = correct["best"].copy()
    correct["near"][:, :20] ^= rng.random((4, 20)) < 0.5
    assert correct["best"].mean() > correct["near"].mean()
    found = against_best(correct)
    raw = [paired(correct["best"], correct[name]).p for name in ("poor", "near", "middle")]
    assert found.best == "best"
    assert list(found.p) == ["poor", "near", "middle"]
    assert list(found.p.values()) == pytest.approx(closed_testing(raw))
    assert found.indistinguishable == ("best", "near")
    assert against_best(dict(reversed(correct.items()))).indistinguishable == ("near", "best")


def test_against_best_judges_the_adjusted_p_by_the_level():
    base = np.zeros((1, 100), int)
    base[0, :50] = 1
    correct = {"best": base}
    for name, lost in (("a", 6), ("b", 6), ("c", 6)):
        correct[name] = base.copy()
        correct[name][0, :lost] = 0
    raw = paired(correct["best"], correct["a"]).p
    assert 0.05 / 3 > raw > 0.01 / 3
    assert against_best(correct).indistinguishable == ("best",)
    assert against_best(correct, level=0.01).indistinguishable == ("best", "a", "b", "c")
    p = next(iter(against_best(correct).p.values()))
    assert p == pytest.approx(3 * raw)
    assert against_best(correct, level=p).indistinguishable == ("best", "a", "b", "c")  # at least the level


def test_the_first_of_equal_methods_is_the_best():
    same = spread(3, 20) < 0.5
    found = against_best({"b": same, "a": same})
    assert (found.best, found.p, found.indistinguishable) == ("b", {"a": 1.0}, ("b", "a"))
    alone = against_best({"only": same})
    assert (alone.best, alone.p, alone.indistinguishable) == ("only", {}, ("only",))


def test_one_of_ten_equal_methods_is_rarely_left_out():
    rng = np.random.default_rng(9)
    left_out = []
    for _ in range(60):
        shared = rng.standard_normal((1, 300))
        correct = {str(k): trained(rng, 5, 300, 0.1, 0.3, shared=shared) for k in range(10)}
        left_out.append(10 - len(against_best(correct).indistinguishable))
    assert np.mean(left_out) / 10 < 0.05


# Ranks over datasets

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


# What is refused

GOOD = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bootstrap_interval(np.ones((0, 3))), r"correct must be a matrix .* found the shape \(0, 3\)"),
        (lambda: bootstrap_interval(np.ones((3, 0))), r"found the shape \(3, 0\)"),
        (lambda: bootstrap_interval(np.ones(3)), r"found the shape \(3,\)"),
        (lambda: bootstrap_interval(np.ones((1, 2, 3))), r"found the shape \(1, 2, 3\)"),
        (lambda: bootstrap_interval(GOOD * 2), "correctness of correct must be 0 or 1"),
        (lambda: bootstrap_interval(GOOD * math.nan), "must be 0 or 1"),
        (lambda: bootstrap_interval(GOOD, level=95), "level must lie between 0 and 1, both excluded, found 95"),
        (lambda: bootstrap_interval(GOOD, level=0.0), "level must lie"),
        (lambda: bootstrap_interval(GOOD, draws=0), "draws must be >= 1, found 0"),
        (lambda: paired(GOOD, GOOD[:1]), r"a and b must have the same .* found the shapes \(2, 3\) and \(1, 3\)"),
        (lambda: paired(GOOD, np.ones((2, 0))), "correctness of b must be a matrix"),
        (lambda: paired([[1]], [[0]]), "at least 2 seeds or 2 samples, found 1 of each"),
        (lambda: against_best({"x": GOOD, "y": GOOD, "z": GOOD.T}), r"x and z must .* \(2, 3\) and \(3, 2\)"),
        (lambda: against_best({"x": np.ones(3)}), "correctness of x must be a matrix"),
        (lambda: against_best({}), "at least 1 method, found none"),
        (lambda: against_best({"x": GOOD}, level=5), "level must lie .* found 5"),
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
