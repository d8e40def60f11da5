"""Verdicts and intervals against loops over their formulas, scipy, worked cases and simulated truth."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.statistics import (
    CLOSE,
    DIFFERENT,
    FAMILY,
    LEVEL,
    NOISY,
    against_best,
    interval,
    verdict,
)

RIGHT = 0.8
"""Accuracy of every simulated method."""


def trained(rng, seeds, samples, by_seed=0.0, by_sample=0.0, by_cell=1.0, shared=0.0, mean=0.5):
    """Correctness of a method whose seeds, samples and single trainings differ at random by the given sd."""
    latent = mean + shared + by_seed * rng.standard_normal((seeds, 1)) + by_sample * rng.standard_normal((1, samples))
    return latent + by_cell * rng.standard_normal((seeds, samples)) > 0


def spread(rows, columns):
    """A matrix with ``rows`` x ``columns`` in [0, 1) that is the same on every call."""
    return np.random.default_rng(rows * 1000 + columns).random((rows, columns))


def equals(rng, seeds, by_seed, samples=200, groups=None, own=0.3, cell=0.3):
    """Correctness ``[S, N]`` of as many methods as ``by_seed`` has entries, all of accuracy ``RIGHT``.

    ``by_seed``: sd of accuracy over seeds, as a multiple of what N independent samples explain. ``own`` and ``cell``:
    shares of a method's own samples and of single trainings in the variance of a latent score; the rest is shared by
    all methods. With ``groups`` ``[N]`` a fifth of ``own`` is the same for all samples of a group.
    """
    least = stats.norm.ppf(RIGHT)
    unit = math.sqrt(RIGHT * (1 - RIGHT) / samples) / stats.norm.pdf(least)
    common = math.sqrt(1 - own - cell) * rng.standard_normal((1, samples))
    made = []
    for times in by_seed:
        mine = rng.standard_normal((1, samples))
        if groups is not None:
            mine = math.sqrt(0.2) * rng.standard_normal((1, groups.max() + 1))[:, groups] + math.sqrt(0.8) * mine
        score = common + math.sqrt(own) * mine + math.sqrt(cell) * rng.standard_normal((seeds, samples))
        score = score + times * unit * rng.standard_normal((seeds, 1))
        made.append(score / math.sqrt(1 + (times * unit) ** 2) < least)
    return made


# The verdict


def by_hand(a, b, groups):
    """Difference, variances and degrees of freedom of ``verdict``, with loops over their formulas."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    seeds, samples = a.shape
    difference = (a - b).sum() / (seeds * samples)
    over_seeds, seeds_df = 0.0, math.nan
    if seeds > 1:
        parts = []
        for one in (a, b):
            means = [sum(row) / samples for row in one]
            centre = sum(means) / seeds
            parts.append(sum((m - centre) ** 2 for m in means) / (seeds - 1) / seeds)
        over_seeds = sum(parts)
        welch = over_seeds**2 / sum(part**2 / (seeds - 1) for part in parts) if over_seeds else seeds - 1
        seeds_df = max(math.floor(4 * welch + 1e-9) / 4, seeds - 1)
    over_groups, groups_df = 0.0, math.nan
    if samples > 1:
        names = range(samples) if groups is None else sorted(set(groups))
        total = 0.0
        for name in names:
            mine = [n for n in range(samples) if (n if groups is None else groups[n]) == name]
            total += sum((a[:, n] - b[:, n]).mean() - difference for n in mine) ** 2
        over_groups = len(names) / (len(names) - 1) * total / samples**2
        groups_df = len(names) - 1
    return difference, over_seeds, seeds_df, over_groups, groups_df


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((5, 40), None),
        ((2, 7), None),
        ((1, 30), None),
        ((6, 1), None),
        ((5, 40), [n % 4 for n in range(40)]),
        ((3, 12), [0, 0, 0, 0, 0, 0, 7, 7, 7, 2, 2, 9]),
    ],
)
def test_a_verdict_is_its_formula(shape, groups):
    rng = np.random.default_rng(shape[1])
    for _ in range(10):
        a, b = rng.random(shape) < rng.random((shape[0], 1)), rng.random(shape) < 0.5
        difference, over_seeds, seeds_df, over_groups, groups_df = by_hand(a, b, groups)
        error = math.sqrt(over_seeds + over_groups)
        if error < 1e-12:
            continue
        found = verdict(a, b, groups)
        assert found.difference == pytest.approx(difference, abs=1e-12)
        assert found.t == pytest.approx(abs(difference) / error, abs=1e-9)
        assert (found.seeds_df, found.groups_df) == pytest.approx((seeds_df, groups_df), nan_ok=True)
        p = [0.0]
        if not math.isnan(seeds_df):
            p.append(stats.studentized_range.sf(math.sqrt(2) * found.t, FAMILY, seeds_df))
        if not math.isnan(groups_df):
            p.append(32 * (groups_df + 1) / (groups_df + 3) * 2 * stats.t.sf(found.t, groups_df))
        assert found.p == pytest.approx(min(1, max(p)), rel=1e-6, abs=1e-12)


def test_a_verdict_worked_out_on_paper():
    # Accuracies over seeds: a 3/4, 1/4; b 1/4, 1/4; so V_S = (1/8 + 0) / 2 = 1/16 and Welch's df = 1.
    # Means over seeds of a - b, by sample: 1/2, 1/2, 0, 0; by group 1 and 0, less 1/2 each: V_G = 2 * 1/2 / 16 = 1/16.
    a, b = [[1, 1, 1, 0], [0, 0, 0, 1]], [[0, 0, 1, 0], [0, 0, 0, 1]]
    found = verdict(a, b, [3, 3, 5, 5])
    assert found.difference == 0.25
    assert found.t == pytest.approx(0.25 / math.sqrt(1 / 8))
    assert (found.seeds_df, found.groups_df) == (1, 1)
    # Independent samples: var of 1/2, 1/2, 0, 0 is 1/12, over 4 samples 1/48: a third of 1/16.
    assert found.design_effect == pytest.approx(3)
    assert (found.low, found.high) == (-1, 1)


def test_one_seed_is_mcnemar_allowing_for_ten_methods():
    a, b = np.zeros((1, 5000), int), np.zeros((1, 5000), int)
    a[0, :245] = 1
    b[0, 245:410] = 1
    mcnemar = stats.chi2.sf((245 - 165) ** 2 / 410, 1)
    found = verdict(a, b)
    assert found.p == pytest.approx(32 * mcnemar, rel=0.03)
    assert math.isnan(found.seeds_df)
    assert found.kind == DIFFERENT


def test_a_verdict_turns_with_its_arguments_and_does_not_see_the_order():
    rng = np.random.default_rng(0)
    a, b = trained(rng, 5, 50, mean=0.6), trained(rng, 5, 50, mean=0.4)
    groups = rng.integers(0, 8, 50)
    one, other = verdict(a, b, groups), verdict(b, a, groups)
    assert other == one.turned()
    assert one.difference == pytest.approx(a.mean() - b.mean())
    rows, columns = rng.permutation(5), rng.permutation(50)
    mixed = np.ix_(rows, columns)
    assert vars(verdict(a[mixed], b[mixed], 90 - groups[columns])) == pytest.approx(vars(one), rel=1e-9)
    assert vars(verdict(torch.from_numpy(a), torch.from_numpy(b), groups)) == pytest.approx(vars(one))


def test_the_interval_excludes_zero_exactly_where_p_is_below_the_level():
    rng = np.random.default_rng(1)
    kinds = set()
    for _ in range(60):
        found = verdict(trained(rng, 4, 60, 0.1, mean=0.9), trained(rng, 4, 60, 0.1, mean=0.1), np.arange(60) % 20)
        assert (found.p < LEVEL) == (found.kind == DIFFERENT) == (not found.low <= 0 <= found.high)
        kinds.add(found.kind == DIFFERENT)
    assert kinds == {True, False}


def test_no_variance_decides_by_the_difference_alone():
    same = spread(3, 7) < 0.5
    ones, zeros = np.ones((3, 7)), np.zeros((3, 7))
    alike = verdict(same, same)
    assert (alike.difference, alike.t, alike.p) == (0, 0, 1)
    sure = verdict(ones, zeros)
    assert (sure.difference, sure.low, sure.high, sure.p, sure.kind) == (1, 1, 1, 0, DIFFERENT)
    constant = verdict(ones, ones)
    assert (constant.low, constant.high, constant.p, constant.kind) == (0, 0, 1, CLOSE)
    # Every group of this difference has the same sum: no rounding may pass for a variance.
    turned = np.array([np.roll([1, 0, 0, 0, 0, 0, 0], s) for s in range(7)])
    assert verdict(turned, np.zeros((7, 7))).p == 0


def test_samples_of_one_subject_do_not_count_as_independent():
    """Differences that follow the subject: with 4 of them there are 4 observations, however many samples."""
    rng = np.random.default_rng(3)
    groups = np.arange(400) // 100
    better = np.array([0.9, 0.9, 0.7, 0.5])[groups]
    a, b = rng.random((5, 400)) < better, rng.random((5, 400)) < 0.6
    assert verdict(a, b).kind == DIFFERENT
    found = verdict(a, b, groups)
    assert found.kind == NOISY
    assert found.groups_df == 3
    assert found.design_effect > 10
    one = verdict(a, b, np.zeros(400, int))
    assert one == verdict(a, b)  # of a single subject: what is found holds for it


def test_alike_and_too_noisy_to_say_are_told_apart_by_what_the_interval_holds():
    rng = np.random.default_rng(4)
    steady, wild = np.ones((5, 1000), bool), np.ones((5, 1000), bool)
    steady[:, :12] = rng.random((5, 12)) < 0.5
    for seed, wrong in enumerate((330, 20, 50, 250, 150)):
        wild[seed, :wrong] = False
    close, noisy = verdict(steady, steady[:, ::-1], floor=0.1), verdict(steady, wild, floor=0.1)
    assert close.margin == pytest.approx((steady.mean() - 0.1) / 10)
    assert close.kind == CLOSE
    assert -noisy.low < noisy.high > noisy.margin
    assert noisy.low < 0
    assert noisy.kind == NOISY
    # Over a floor of 90 % a difference of 2 points counts, and the same runs are too noisy for it where they hold one.
    strict = verdict(steady, wild, floor=0.9)
    assert strict.margin == 0.02


def test_a_real_difference_is_found():
    rng = np.random.default_rng(5)
    found = [
        verdict(trained(rng, 5, 500, 0.05, 0.3, mean=0.8), trained(rng, 5, 500, 0.05, 0.3, mean=0.3)) for _ in range(30)
    ]
    assert np.mean([f.kind == DIFFERENT for f in found]) > 0.9
    assert all(f.difference > 0 for f in found)


# The best of many


def test_every_other_is_held_against_the_best_by_the_same_verdict():
    rng = np.random.default_rng(8)
    means = {"poor": -0.4, "best": 0.8, "near": 0.6, "middle": 0.2}
    shared = rng.standard_normal((1, 200))
    correct = {name: trained(rng, 4, 200, shared=shared, mean=mean) for name, mean in means.items()}
    groups = np.arange(200) // 5
    found = against_best(correct, groups, 0.3)
    assert found.best == "best"
    assert list(found.verdicts) == ["poor", "near", "middle"]
    for name, one in found.verdicts.items():
        assert one == verdict(correct["best"], correct[name], groups, 0.3)
    assert {name for kind in (DIFFERENT, CLOSE, NOISY) for name in found.of(kind)} == set(found.verdicts)
    assert "poor" in found.of(DIFFERENT)


def test_a_verdict_does_not_depend_on_the_other_methods():
    rng = np.random.default_rng(9)
    correct = {str(k): trained(rng, 5, 100, 0.1, mean=0.1 * k) for k in range(10)}
    whole = against_best(correct)
    for name, one in whole.verdicts.items():
        assert against_best({name: correct[name], whole.best: correct[whole.best]}).verdicts[name] == one


def test_the_first_of_equal_methods_is_the_best():
    same = spread(3, 20) < 0.5
    assert against_best({"b": same, "a": same}).best == "b"
    assert against_best({"only": same}).verdicts == {}


def before(methods):
    """The rule that tables had: Welch-Satterthwaite over seeds and samples, Holm within the table; is any rejected?"""
    best = max(methods, key=lambda hits: hits.sum())
    found = []
    for other in methods:
        if other is best:
            continue
        delta = best * 1.0 - other
        parts = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (delta.mean(1), delta.mean(0))]
        variance = sum(v for v, _ in parts)
        df = variance**2 / sum(v**2 / free for v, free in parts)
        found.append(2 * stats.t.sf(abs(delta.mean()) / math.sqrt(variance), df))
    return min(found) * len(found) < LEVEL


SUBJECTS = np.arange(200) % 4
SETTINGS = {
    "seeds decide, 3 seeds": (3, [5] * 10, None),
    "seeds decide, 5 seeds": (5, [5] * 10, None),
    "half of the methods noisy, 3 seeds": (3, [5] * 5 + [0] * 5, None),
    "all sorts, 5 seeds": (5, [0, 0, 0.5, 0.5, 1, 1, 2, 2, 5, 8], None),
    "four subjects, 5 seeds": (5, [0] * 10, SUBJECTS),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_of_ten_equal_methods_is_called_different_from_the_best_in_at_most_the_level(setting):
    seeds, by_seed, groups = SETTINGS[setting]
    rng, repeats, now, then = np.random.default_rng(77), 250, 0, 0
    for _ in range(repeats):
        made = equals(rng, seeds, by_seed, groups=groups)
        now += bool(against_best({str(k): hits for k, hits in enumerate(made)}, groups).of(DIFFERENT))
        then += before(made)
    assert now / repeats <= 0.06
    assert then / repeats >= 0.12  # so that the simulation can fail


@pytest.mark.parametrize("df", [1, 2, 4, 9, 30])
def test_the_factor_over_groups_is_at_least_what_the_best_of_ten_needs(df):
    """Largest |t| of the best of ten equal methods against the others, of df + 1 independent groups."""
    rng, beyond = np.random.default_rng(13), 0
    reach = stats.t.isf(LEVEL / 2 / (32 * (df + 1) / (df + 3)), df)
    for _ in range(10):
        x = rng.standard_normal((1000, 10, df + 1))
        best = x[np.arange(1000), x.mean(2).argmax(1)][:, None]
        error = (best - x).std(2, ddof=1) / math.sqrt(df + 1)
        t = np.divide((best - x).mean(2), error, out=np.zeros((1000, 10)), where=error > 0)
        beyond += (t > reach).any(1).sum()
    assert beyond / 10_000 <= LEVEL + 0.006
    assert beyond / 10_000 >= 0.5 * LEVEL  # and no more than it needs


# The interval of one method


@pytest.mark.parametrize(("seeds", "groups"), [(5, None), (3, np.arange(60) % 4), (1, None), (1, np.arange(60) // 6)])
def test_an_interval_is_its_formula(seeds, groups):
    correct = spread(seeds, 60) < np.linspace(0.5, 0.8, seeds)[:, None]
    zeros = np.zeros_like(correct)
    _, over_seeds, _, over_groups, groups_df = by_hand(correct, zeros, None if groups is None else groups.tolist())
    df = min(groups_df, seeds - 1) if seeds > 1 else groups_df
    half = stats.t.ppf(0.95, df) * math.sqrt(over_seeds + over_groups)
    expected = max(correct.mean() - half, 0), min(correct.mean() + half, 1)
    assert interval(correct, groups, 0.9) == pytest.approx(expected)


def test_certain_results_leave_what_so_few_groups_leave_open():
    assert interval(np.ones((5, 20), bool)) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert interval(np.zeros((5, 20), bool)) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert interval(np.ones((5, 20), bool), np.arange(20) % 4)[0] == pytest.approx(0.025 ** (1 / 4))
    low, high = stats.binomtest(20, 20).proportion_ci(0.95, "exact")
    assert interval(np.ones((1, 20), bool)) == pytest.approx((low, high))


def bootstrap(correct, rng):
    """The percentile interval that tables had, where the seeds decide: these drawn anew."""
    seeds = len(correct)
    means = correct.mean(1)[rng.integers(seeds, size=(200, seeds))].mean(1)
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(
    ("by_seed", "groups"), [(0, None), (1, None), (2, None), (5, None), (0, SUBJECTS), (2, SUBJECTS)]
)
def test_an_interval_covers_what_it_promises(seeds, by_seed, groups):
    rng, repeats = np.random.default_rng(14), 400
    held = then = 0
    for _ in range(repeats):
        (correct,) = equals(rng, seeds, [by_seed], groups=groups, own=0.5, cell=0.5)
        low, high = interval(correct, groups)
        held += low <= RIGHT <= high
        if by_seed == 5 and seeds <= 5:
            low, high = bootstrap(correct, rng)
            then += low <= RIGHT <= high
    assert held / repeats >= 0.93
    if by_seed == 5 and seeds <= 5:
        assert then / repeats <= 0.90  # so that the simulation can fail


# What is refused

GOOD = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: interval(np.ones((0, 3))), r"correct must be a matrix .* found the shape \(0, 3\)"),
        (lambda: interval(np.ones((3, 0))), r"found the shape \(3, 0\)"),
        (lambda: interval(np.ones(3)), r"found the shape \(3,\)"),
        (lambda: interval(np.ones((1, 2, 3))), r"found the shape \(1, 2, 3\)"),
        (lambda: interval(GOOD * 2), "correctness of correct must be 0 or 1"),
        (lambda: interval(GOOD * math.nan), "must be 0 or 1"),
        (lambda: interval(GOOD, level=95), "level must lie between 0 and 1, both excluded, found 95"),
        (lambda: interval(GOOD, level=0.0), "level must lie"),
        (lambda: interval(GOOD, [1, 2]), r"groups must have one number a sample \(3\), found the shape \(2,\)"),
        (lambda: verdict(GOOD, GOOD[:1]), r"a and b must have the same .* found the shapes \(2, 3\) and \(1, 3\)"),
        (lambda: verdict(GOOD, np.ones((2, 0))), "correctness of b must be a matrix"),
        (lambda: verdict([[1]], [[0]]), "at least 2 seeds or 2 samples, found 1 of each"),
        (lambda: verdict(GOOD, GOOD, [1, 2]), r"groups must have one number a sample \(3\)"),
        (lambda: against_best({"x": GOOD, "y": GOOD, "z": GOOD.T}), r"x and z must .* \(2, 3\) and \(3, 2\)"),
        (lambda: against_best({"x": np.ones(3)}), "correctness of x must be a matrix"),
        (lambda: against_best({}), "at least 1 method, found none"),
    ],
)
def test_user_errors_say_what_should_hold(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()
