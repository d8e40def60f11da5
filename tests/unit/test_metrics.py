"""Metrics against scikit-learn, brute force and their laws."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from balancebench_udi.evaluation import evaluate
from balancebench_udi.metrics.predictions import (
    accuracy,
    calibration_error,
    coalitions,
    discrepancy,
    imbalance,
    macro_f1,
    negative_log_likelihood,
    pack,
    shapley,
    top_k,
    unpack,
)
from tests.helpers import make_trainer, tiny_bundle


@pytest.mark.parametrize("seed", range(20))
def test_accuracy_and_macro_f1_equal_scikit_learn_also_with_absent_classes(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 9))
    n = int(rng.integers(1, 60))
    told = rng.integers(0, rng.integers(1, classes + 1), n)  # often leaves the last classes out
    true = rng.integers(rng.integers(0, classes), classes, n)
    said, target = torch.from_numpy(told), torch.from_numpy(true)
    assert accuracy(said, target) == pytest.approx(accuracy_score(true, told), abs=1e-12)
    expected = f1_score(true, told, labels=list(range(classes)), average="macro", zero_division=0)
    assert macro_f1(said, target, classes) == pytest.approx(expected, abs=1e-12)


def test_macro_f1_counts_a_class_that_nobody_has_as_zero():
    both = torch.tensor([0, 1, 0, 1])
    assert macro_f1(both, both, 2) == 1.0
    assert macro_f1(both, both, 4) == 0.5


def test_coalitions_come_by_size_in_the_given_order():
    assert coalitions(["b", "a"]) == [(), ("b",), ("a",), ("b", "a")]
    assert len(coalitions(list("abcd"))) == 16


def game(seed, names):
    rng = np.random.default_rng(seed)
    return {s: float(rng.random()) for s in coalitions(names)}


def by_permutations(value, names):
    """The mean marginal contribution over all orders of arrival."""
    total = dict.fromkeys(names, 0.0)
    orders = list(itertools.permutations(names))
    for order in orders:
        for i, m in enumerate(order):
            before = tuple(k for k in names if k in order[:i])
            after = tuple(k for k in names if k in order[: i + 1])
            total[m] += value[after] - value[before]
    return {m: v / len(orders) for m, v in total.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_shapley_equals_the_mean_over_all_orders(seed, count):
    names = list("edcba"[:count])
    value = game(seed, names)
    found = shapley(value, names)
    assert list(found) == names
    assert found == pytest.approx(by_permutations(value, names), abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shapley_is_efficient(count):
    names = list("abcd"[:count])
    value = game(9, names)
    assert sum(shapley(value, names).values()) == pytest.approx(value[tuple(names)] - value[()], abs=1e-12)


def test_shapley_is_symmetric_and_gives_a_dummy_nothing():
    names = ["a", "b", "c"]
    size = {0: 0.1, 1: 0.4, 2: 0.7, 3: 0.9}
    symmetric = {s: size[len(s)] for s in coalitions(names)}
    assert shapley(symmetric, names) == pytest.approx(dict.fromkeys(names, 0.8 / 3))
    useless = {s: 0.1 + 0.3 * ("a" in s) + 0.2 * ("b" in s) for s in coalitions(names)}
    assert shapley(useless, names) == pytest.approx({"a": 0.3, "b": 0.2, "c": 0.0})


def test_shapley_does_not_depend_on_the_names_order():
    value = game(3, ["a", "b", "c"])
    turned = {tuple(k for k in ("c", "a", "b") if k in s): v for s, v in value.items()}
    assert shapley(turned, ["c", "a", "b"]) == pytest.approx(shapley(value, ["a", "b", "c"]))


def test_imbalance():
    assert imbalance({"a": 0.5, "b": 0.5}) == (0.0, 0.0)
    assert imbalance({"a": 0.6, "b": 0.2}) == pytest.approx((0.4, 0.5))
    assert imbalance({"a": 0.6, "b": 0.0}) == pytest.approx((0.6, 1.0))
    assert imbalance({"a": 0.0, "b": 0.0}) == (0.0, 0.0)
    assert imbalance({"a": 0.7}) == (0.0, 0.0)
    absolute, relative = imbalance({"a": 0.6, "b": 0.3, "c": 0.0})
    assert absolute == pytest.approx((0.3 + 0.6 + 0.3) / 3)
    assert relative == pytest.approx(absolute / 0.9)
    assert imbalance({"c": 0.0, "a": 0.6, "b": 0.3}) == pytest.approx((absolute, relative))


@pytest.mark.parametrize("seed", range(10))
def test_the_relative_imbalance_of_two_lies_in_the_unit_interval_and_ignores_scale(seed):
    a, b = np.random.default_rng(seed).random(2)
    _, relative = imbalance({"a": a, "b": b})
    assert 0.0 <= relative <= 1.0
    assert imbalance({"a": 5 * a, "b": 5 * b})[1] == pytest.approx(relative)
    assert imbalance({"a": b, "b": a})[1] == pytest.approx(relative)
    assert math.isclose(relative, abs(a - b) / (a + b))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_relative_imbalance_is_at_most_two_over_the_number_of_modalities(count):
    names = "abcde"[:count]
    drawn = np.random.default_rng(count).normal(size=(500, count)) ** 3  # of both signs and many sizes
    assert all(0 <= imbalance(dict(zip(names, row, strict=True)))[1] <= 2 / count + 1e-12 for row in drawn)
    assert imbalance({n: 0.3 * (n == "b") for n in names})[1] == pytest.approx(2 / count)


@pytest.mark.parametrize(("count", "most"), [(2, 1), (3, 2 / 3)])
def test_shapley_values_of_shares_lie_in_minus_one_to_one_and_differ_by_at_most_one(count, most):
    """All set functions with values 0 and 1: what is convex in them is nowhere larger in between."""
    names = list("abc"[:count])
    subsets = coalitions(names)
    games = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * len(subsets)).T
    found = torch.stack(list(shapley(dict(zip(subsets, games, strict=True)), names).values()))
    assert (found.min(), found.max()) == (-1, 1)
    assert (found[:, None] - found).abs().max() == 1
    absolute = [imbalance(dict(zip(names, column, strict=True)))[0] for column in found.T.tolist()]
    assert max(absolute) == pytest.approx(most)


@pytest.mark.parametrize("seed", range(10))
def test_predictions_survive_packing(seed):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(0, rng.choice([2, 10, 309, 65536]), rng.integers(0, 500)))
    text = pack(values)
    assert text.isascii()
    again = unpack(text)
    assert again.dtype == torch.int64
    assert torch.equal(again, values)
    assert pack(again) == text


def test_predictions_packed_long_ago_can_be_read_and_are_small():
    assert unpack("eNpjYGBkYGL4/x8AAxMCAg==").tolist() == [0, 1, 2, 65535]
    assert len(pack(torch.zeros(10_000, dtype=torch.int64))) < 100


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(seed, k):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(40, 7)), rng.integers(0, 7, 40)
    expected = top_k_accuracy_score(target, logits, k=k, labels=range(7))
    assert top_k(torch.from_numpy(logits), torch.from_numpy(target), k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_negative_log_likelihood_equals_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(50, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (50,), generator=generator)
    expected = log_loss(target.numpy(), logits.softmax(1).numpy(), labels=range(4))
    assert negative_log_likelihood(logits, target) == pytest.approx(expected, abs=1e-12)
    assert negative_log_likelihood(torch.zeros(50, 4), target) == pytest.approx(math.log(4))
    assert negative_log_likelihood(1e3 * torch.nn.functional.one_hot(target, 4).double(), target) == 0


def by_samples(logits, target):
    """Mean negative log-likelihood in nats, sample by sample, in float64."""
    total = 0.0
    for z, y in zip(logits.double().tolist(), target.tolist(), strict=True):
        top = max(z)
        total += top + math.log(sum(math.exp(v - top) for v in z)) - z[y]
    return total / len(target)


@pytest.mark.parametrize("count", [1, 40, 600])  # evaluation takes up to 512 samples at once
def test_the_loss_of_an_evaluation_is_the_mean_over_samples_of_the_negative_log_likelihood(count):
    bundle = tiny_bundle(n=(32, 16, count))
    trainer = make_trainer(bundle, "joint")
    with torch.no_grad():
        trainer.strategy.model.fusion.out.weight *= 100  # sure, and often wrong
    found = evaluate(trainer.strategy, trainer.loader, "test", ["audio", "visual"]).scores["loss"]
    with torch.no_grad():
        logits = trainer.strategy.eval().predict(bundle.test.inputs).logits
    assert found == pytest.approx(by_samples(logits, bundle.test.target), rel=1e-4)
    assert by_samples(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == pytest.approx(math.log(3))


def by_bins(confidence, correct, bins):
    """Bin by bin: intervals closed on the right, the first one on the left as well."""
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = (confidence > low) & (confidence <= high) if b else confidence <= high
        if inside.any():
            total += inside.sum() * abs(correct[inside].mean() - confidence[inside].mean())
    return total / len(confidence)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_loop_over_bins(seed, bins):
    rng = np.random.default_rng(seed)
    confidence = rng.random(200)
    correct = (rng.random(200) < confidence**2).astype(float)
    found = calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct), bins)
    assert found == pytest.approx(by_bins(confidence, correct, bins), abs=1e-9)


def test_calibration_error_is_zero_where_confidence_is_right_and_one_where_it_is_surely_wrong():
    assert calibration_error(torch.full((4,), 0.75), torch.tensor([1, 1, 1, 0])) == pytest.approx(0)
    assert calibration_error(torch.ones(3), torch.zeros(3)) == 1
    assert calibration_error(torch.tensor([0.5, 1.0]), torch.tensor([1, 0])) == pytest.approx(0.75)
    assert calibration_error(torch.tensor([0.1, 0.3]), torch.tensor([1, 0]), 5) == pytest.approx(0.6)  # two bins
    assert calibration_error(torch.tensor([0.25, 0.35]), torch.tensor([1, 0]), 5) == pytest.approx(0.2)  # one


def test_discrepancy():
    assert discrepancy({"a": 6.0, "b": 2.0}) == {"a": 3.0, "b": pytest.approx(1 / 3)}
    assert discrepancy({"a": 6.0, "b": 2.0, "c": 1.0}) == {"a": 4.0, "b": pytest.approx(4 / 7), "c": 0.25}
    assert discrepancy({"a": 6.0}) == {}
    assert discrepancy({"a": 1.0, "b": 0.0}) == {"b": 0.0}
