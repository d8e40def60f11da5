"""Balance metrics against their definitions, and the laws that bind them to the scores of a record."""

import numpy as np
import pytest
import torch

from balancebench_udi.metrics.balance import (
    bayes_distance,
    complementarity,
    masked,
    probe_gap,
    sample_shapley,
    utilisation,
)
from balancebench_udi.metrics.predictions import accuracy, coalitions, shapley

NAMES = ["a", "b", "c"]


def drawn(seed, n=60, classes=3):
    """Random predictions of every read-out that a method with own heads has, and the truth."""
    rng = np.random.default_rng(seed)
    names = ["fused", *(f"alone/{m}" for m in NAMES), *(masked(s) for s in coalitions(NAMES))]
    return {k: torch.from_numpy(rng.integers(0, classes, n)) for k in names}, torch.from_numpy(
        rng.integers(0, classes, n)
    )


def test_names_of_masked_read_outs():
    assert [masked(()), masked(["a"]), masked(("a", "b"))] == ["masked/none", "masked/a", "masked/a+b"]


def test_utilisation_is_what_is_lost_without_a_modality():
    scores = {"masked/none": 0.1, "masked/a": 0.7, "masked/b": 0.2, "masked/a+b": 0.8}
    assert utilisation(scores, ["a", "b"]) == {"a": pytest.approx(0.75), "b": pytest.approx(0.125)}
    scores = {f"masked/{s}": v for s, v in {"a+b": 0.6, "a+c": 0.9, "b+c": 0.45, "a+b+c": 0.9}.items()}
    assert utilisation(scores, NAMES) == {"a": pytest.approx(0.5), "b": 0.0, "c": pytest.approx(1 / 3)}
    assert utilisation({"masked/a": 0.0, "masked/b": 0.5, "masked/a+b": 0.0}, ["a", "b"]) == {"a": 0.0, "b": 0.0}
    assert utilisation({"masked/a": 0.8, "masked/b": 0.1, "masked/a+b": 0.4}, ["a", "b"])["b"] == pytest.approx(-1)


def test_complementarity_puts_every_sample_into_its_one_case():
    target = torch.zeros(7, dtype=torch.int64)
    predictions = {
        "masked/a": torch.tensor([0, 1, 0, 1, 0, 1, 0]),
        "masked/b": torch.tensor([1, 0, 0, 1, 1, 1, 0]),
        "fused": torch.tensor([0, 0, 0, 0, 1, 1, 1]),
    }
    found = complementarity(predictions, target, ["a", "b"])
    expected = {"only/a": 2, "only/b": 1, "several": 2, "fusion_only": 1, "none": 1, "lost": 2}
    assert found == {name: pytest.approx(count / 7) for name, count in expected.items()}


@pytest.mark.parametrize("seed", range(5))
def test_complementarity_sums_to_one_and_gives_back_the_accuracy(seed):
    predictions, target = drawn(seed)
    found = complementarity(predictions, target, NAMES)
    lost = found.pop("lost")
    assert sum(found.values()) == pytest.approx(1)
    assert 1 - found["none"] - lost == pytest.approx(accuracy(predictions["fused"], target))


def test_complementarity_reads_all_methods_alike():
    """Whether a method has heads of its own, or an additive fusion, makes no difference."""
    predictions, target = drawn(0)
    expected = complementarity(predictions, target, NAMES)
    more = {f"{kind}/{m}": 2 - predictions[masked([m])] for kind in ("alone", "share", "probe") for m in NAMES}
    assert complementarity({**predictions, **more}, target, NAMES) == expected


@pytest.mark.parametrize("seed", range(3))
def test_contributions_of_samples_average_to_those_of_the_accuracies_and_add_up(seed):
    predictions, target = drawn(seed)
    found = sample_shapley(predictions, target, NAMES)
    value = {s: accuracy(predictions[masked(s)], target) for s in coalitions(NAMES)}
    whole = shapley(value, NAMES)
    assert {m: v.mean().item() for m, v in found.items()} == {m: pytest.approx(v) for m, v in whole.items()}
    gained = (predictions[masked(NAMES)] == target).double() - (predictions["masked/none"] == target).double()
    assert torch.allclose(sum(found.values()), gained)
    assert all(v.abs().max() <= 1 for v in found.values())


def test_probe_gap():
    alone = {"probe/a": 0.9, "probe/b": 0.5, "alone/a": 0.1, "alone/b": 0.1}
    assert probe_gap(alone, {"probe/a": 0.6, "alone/b": 0.2}, ["a", "b"]) == {"a": pytest.approx(0.3)}
    assert probe_gap(alone, {"probe/a": 0.9, "probe/b": 0.7}, ["a", "b"]) == {"a": 0, "b": pytest.approx(-0.2)}
    assert probe_gap({"alone/a": 0.9}, {"probe/a": 0.6}, ["a"]) == {}  # a head of its own is no probe


def test_distance_to_the_best_possible():
    bayes = {"a": 0.7, "b": 0.4, "a+b": 0.8}
    scores = {"accuracy": 0.75, "probe/a": 0.65, "alone/a": 0.1, "alone/b": 0.5}
    assert bayes_distance(scores, bayes, ["a", "b"]) == {
        "fused": pytest.approx(0.05),
        "a": pytest.approx(0.05),
        "b": pytest.approx(-0.1),
    }
    assert bayes_distance({"accuracy": 0.75}, bayes, ["a", "b"]) == {"fused": pytest.approx(0.05)}
