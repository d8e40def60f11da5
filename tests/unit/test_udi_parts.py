"""Consistency, weights from gradients, the choice of the anchor, and the options of UDI.

Bugs planted to see these tests fail: KL(m || p) in the place of KL(p || m); the anchor by entropy alone; a strict
tolerance.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator
from balancebench_udi.udi import UDI, UDIOptions
from balancebench_udi.udi.losses import choose_anchor, jensen_shannon, normalised


def log_probabilities(label: str, rows: int = 20, classes: int = 5, scale: float = 3.0) -> Tensor:
    logits = torch.randn(rows, classes, generator=generator(0, label), dtype=torch.float64)
    return F.log_softmax(scale * logits, 1)


def test_jensen_shannon_is_its_definition() -> None:
    log_p, log_q = log_probabilities("p"), log_probabilities("q")
    total = 0.0
    for p, q in zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True):
        for a, b in zip(p, q, strict=True):
            m = (a + b) / 2
            total += 0.5 * (a * math.log(a / m) + b * math.log(b / m))
    assert jensen_shannon(log_p, log_q).item() == pytest.approx(total / len(log_p), rel=1e-12)
    mean = (log_p.exp() + log_q.exp()) / 2
    kl = [F.kl_div(mean.log(), log.exp(), reduction="batchmean") for log in (log_p, log_q)]
    torch.testing.assert_close(jensen_shannon(log_p, log_q), sum(kl) / 2)


def test_jensen_shannon_laws() -> None:
    log_p, log_q = log_probabilities("p"), log_probabilities("q")
    assert jensen_shannon(log_p, log_q) == jensen_shannon(log_q, log_p)
    assert abs(jensen_shannon(log_p, log_p).item()) < 1e-15
    assert 0 < jensen_shannon(log_p, log_q) <= math.log(2)


@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_jensen_shannon_of_certain_and_opposed_predictions_is_finite(size: float) -> None:
    """In float32, where exp underflows."""
    logits = (size * torch.eye(3)).requires_grad_()
    value = jensen_shannon(F.log_softmax(size * torch.eye(3).roll(1, 0), 1), F.log_softmax(logits, 1))
    (gradient,) = torch.autograd.grad(value, [logits])
    assert value.item() == pytest.approx(math.log(2), abs=1e-6)
    assert value.item() <= math.log(2) + 1e-6
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([1.0, 3.0], [0.25, 0.75]),
        ([1e-30, 3e-30], [0.25, 0.75]),
        ([1e30, 1e30], [0.5, 0.5]),
    ],
)
def test_weights_sum_to_one_or_nothing(scores: list[float], expected: list[float]) -> None:
    assert normalised(torch.tensor(scores)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("accuracy", "entropy", "tie", "anchor"),
    [
        ([0.80, 0.70], [1.0, 0.1], 0.005, 0),  # accuracy decides outside the tolerance
        ([0.70, 0.80], [0.1, 1.0], 0.005, 1),
        ([0.800, 0.796], [1.0, 0.1], 0.005, 1),  # entropy decides inside it
        ([0.800, 0.795], [1.0, 0.1], 0.005, 1),  # and on its edge
        ([0.800, 0.794], [1.0, 0.1], 0.005, 0),
        ([0.80, 0.80], [0.5, 0.5], 0.005, 0),  # the first where everything is equal
        ([0.800, 0.799], [1.0, 0.1], 0.0, 0),
        ([0.800, 0.796, 0.792], [1.0, 0.5, 0.1], 0.005, 1),  # the tolerance is counted from the best alone
        ([0.1, 0.9, 0.898], [0.0, 0.5, 0.5], 0.005, 1),
    ],
)
def test_choice_of_the_anchor(accuracy: list[float], entropy: list[float], tie: float, anchor: int) -> None:
    as_stored = torch.tensor(accuracy).tolist()  # rounded to float32
    assert choose_anchor(as_stored, entropy, tie) == anchor
    assert choose_anchor(accuracy, entropy, tie) == anchor


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "softmax"}, "udi.weights must be one of dynamic, static, found softmax"),
        ({"alpha_con": 1}, "udi.alpha_con and alpha_com must stay at 0.5 with weights=dynamic, found 1.0 and 0.5"),
        ({"q_steps": 0}, "udi.q_steps must be >= 1, found 0"),
        ({"follower_epochs": 0}, "udi.follower_epochs must be >= 1, found 0"),
        ({"decoupled": False, "fusion": "classifier"}, "udi.decoupled=false needs fusion=sum and warm_start=false"),
        ({"decoupled": "false", "warm_start": True}, "udi.decoupled=false needs fusion=sum and warm_start=false"),
        ({"q_stepz": 1}, "udi has no option 'q_stepz'; did you mean 'q_steps'"),
    ],
)
def test_bad_options_cost_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        UDIOptions.build("udi", values)
    assert str(caught.value).startswith(message)


def test_anchor_must_be_a_modality() -> None:
    UDI.check(UDIOptions(anchor="visual"), ["audio", "visual"], True)
    with pytest.raises(UserError, match=r"^udi\.anchor must be one of auto, audio, visual, found 'video'$"):
        UDI.check(UDIOptions(anchor="video"), ["audio", "visual"], True)


def test_planned_epochs_count_both_phases() -> None:
    assert UDI.planned_epochs(UDIOptions(), 10, ["a", "b", "c"]) == 50
    assert UDI.planned_epochs(UDIOptions(follower_epochs=3), 10, ["a", "b"]) == 23
    assert UDI.planned_epochs(UDIOptions(follower_epochs=3, fusion="classifier"), 10, ["a", "b"]) == 33
    assert UDI.planned_epochs(UDIOptions(fusion="classifier"), 10, ["a"]) == 10
    assert UDI.planned_epochs(UDIOptions(decoupled=False), 10, ["a", "b", "c"]) == 40
    assert UDI.planned_epochs(UDIOptions(decoupled=False), 10, ["a"]) == 10


def test_the_classifier_must_be_linear() -> None:
    UDI.check(UDIOptions(fusion="classifier"), ["audio", "visual"], True)
    UDI.check(UDIOptions(), ["audio", "visual"], False)
    with pytest.raises(UserError, match=r"^udi\.fusion=classifier needs a linear fusion, found one that .*: choose"):
        UDI.check(UDIOptions(fusion="classifier"), ["audio", "visual"], False)


def test_every_option_is_documented() -> None:
    for name, _, doc, source in UDIOptions.describe():
        assert doc, name
        assert source, name
