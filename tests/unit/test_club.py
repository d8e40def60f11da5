"""CLUB against its definition, closed forms on Gaussians, and who receives gradient from what.

Bugs planted to see these tests fail: the bound conditioned the wrong way round; positive and negative pairs exchanged;
the factor 1/2 dropped; ``exp(l)`` for ``exp(-l)``; ``y.mean(0)`` detached; the bound's gradient let into q; y not
detached in ``fit``; the optimiser left out of ``state_dict``.
"""

import io
import math

import pytest
import torch
from torch import Tensor, nn

from balancebench_udi.nets.model import seeded
from balancebench_udi.seeding import generator
from balancebench_udi.udi import CLUB


def make(x_size: int = 5, y_size: int = 3, **arguments: object) -> CLUB:
    with seeded(0, "club"):
        return CLUB(x_size, y_size, hidden=16, **arguments).double()  # type: ignore[arg-type]


def data(rows: int, size: int, label: str) -> Tensor:
    return torch.randn(rows, size, generator=generator(0, label), dtype=torch.float64)


def known(rho: float, dims: int, saturated: bool = False) -> CLUB:
    """The exact q of unit Gaussians with correlation rho a dimension: mean rho x, variance 1 - rho^2."""
    log_variance = math.log1p(-(rho**2))

    class Known(CLUB):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            bounded = max(log_variance, -1.0) if saturated else log_variance
            return rho * x, torch.full_like(x, bounded)

    return Known(dims, dims, reduction="sum")


def naive(q: CLUB, x: Tensor, y: Tensor, reduction: str) -> float:
    """The definition: E log q(y_i|x_i) - E_i E_j log q(y_j|x_i), every pair by itself, with every constant."""
    mean, log_variance = (t.detach() for t in q(x))
    total = 0.0
    for i in range(len(x)):
        normal = torch.distributions.Normal(mean[i], (0.5 * log_variance[i]).exp())
        positive = normal.log_prob(y[i]).sum().item()
        negative = sum(normal.log_prob(y[j]).sum().item() for j in range(len(y))) / len(y)
        total += (positive - negative) / len(x)
    return total / (y.shape[1] if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_estimate_is_the_double_loop(reduction: str) -> None:
    q, x, y = make(reduction=reduction), data(7, 5, "x"), 3 * data(7, 3, "y") + 1
    assert q.bound(x, y).item() == pytest.approx(naive(q, x, y, reduction), rel=1e-10)


# MI = -d/2 ln(1 - rho^2) and E[CLUB] = d rho^2 / (1 - rho^2), for d = 4
@pytest.mark.parametrize(
    ("rho", "information", "expected"),
    [(0.0, 0.0, 0.0), (0.3, 0.189, 0.396), (0.6, 0.893, 2.25), (0.9, 3.32, 17.05), (0.99, 7.83, 197.0)],
)
def test_bound_on_gaussians_with_known_q(rho: float, information: float, expected: float) -> None:
    rows, dims = 200_000, 4
    x = data(rows, dims, "gaussian x")
    y = rho * x + math.sqrt(1 - rho**2) * data(rows, dims, "gaussian y")
    found = known(rho, dims).bound(x, y).item()
    assert -dims / 2 * math.log1p(-(rho**2)) == pytest.approx(information, abs=0.006)
    assert found == pytest.approx(expected, rel=0.02, abs=0.02)
    assert found >= information - 0.02


def test_bounded_log_variance_ends_the_bound_for_nearly_equal_variables() -> None:
    rows, dims = 200_000, 4
    for rho, expected in ((0.9, 8.81), (0.99, 10.66), (0.999, 10.85)):
        x = data(rows, dims, "gaussian x")
        y = rho * x + math.sqrt(1 - rho**2) * data(rows, dims, "gaussian y")
        assert known(rho, dims, saturated=True).bound(x, y).item() == pytest.approx(expected, rel=0.02)
    assert -dims / 2 * math.log1p(-(0.999**2)) > 10.85


def test_a_trained_q_bounds_and_a_wrong_one_does_not() -> None:
    rows, dims, rho = 512, 2, 0.8
    with seeded(0, "trained"):
        q = CLUB(dims, dims, hidden=32, lr=5e-3, reduction="sum")
    for step in range(500):
        x = torch.randn(rows, dims, generator=generator(step, "x"))
        q.fit(x, rho * x + math.sqrt(1 - rho**2) * torch.randn(rows, dims, generator=generator(step, "y")))
    x = torch.randn(8192, dims, generator=generator(0, "test x"))
    y = rho * x + math.sqrt(1 - rho**2) * torch.randn(8192, dims, generator=generator(0, "test y"))
    assert q.bound(x, y).item() == pytest.approx(dims * rho**2 / (1 - rho**2), rel=0.1)
    assert q.bound(x, -y).item() < 0  # not clamped


def test_the_bound_moves_y_alone_and_fitting_moves_q_alone() -> None:
    q, x, y = make(), data(8, 5, "x").requires_grad_(), data(8, 3, "y").requires_grad_()
    (gradient,) = torch.autograd.grad(q.bound(x, y), [y], retain_graph=True)
    assert gradient.abs().sum() > 0
    q.bound(x, y).backward()
    assert torch.equal(y.grad, gradient)
    assert x.grad is None
    assert all(p.grad is None for p in q.parameters())

    y.grad = None
    before = [p.detach().clone() for p in q.parameters()]
    loss = q.fit(x, y)
    assert not loss.requires_grad
    assert x.grad is None
    assert y.grad is None
    assert all(p.grad is None for p in q.parameters())
    assert all(not torch.equal(p, b) for p, b in zip(q.parameters(), before, strict=True))


def test_gradient_in_y_is_that_of_the_definition() -> None:
    """Positives and negatives both carry it: with one variance for all, (mean_i - average mean) / (B D variance)."""
    q, x, y = make(), data(9, 5, "x"), data(9, 3, "y").requires_grad_()
    for p in q.log_variance.parameters():
        p.data.zero_()
    (gradient,) = torch.autograd.grad(q.bound(x, y), [y])
    mean = q(x)[0].detach()
    torch.testing.assert_close(gradient, (mean - mean.mean(0)) / mean.numel())


def test_learning_loss_is_twice_the_negative_log_likelihood() -> None:
    q, x, y = make(), data(6, 5, "x"), data(6, 3, "y")
    mean, log_variance = q(x)
    log_q = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(y).sum(1).mean()
    expected = -2 * log_q - 3 * math.log(2 * math.pi)
    torch.testing.assert_close(q.learning_loss(x, y), expected)
    assert log_variance.abs().max() <= 1


def test_architecture_is_the_official_one() -> None:
    q = CLUB(7, 4, hidden=512)
    shapes = [tuple(p.shape) for p in q.parameters()]
    assert shapes == 2 * [(256, 7), (256,), (4, 256), (4,)]
    assert isinstance(q.log_variance[-1], nn.Tanh)


def test_state_survives_a_file_of_plain_values_and_continues_alike() -> None:
    q, x, y = make(), data(8, 5, "x"), data(8, 3, "y")
    q.fit(x, y, steps=3)
    handle = io.BytesIO()
    torch.save(q.state_dict(), handle)
    handle.seek(0)
    other = make()
    other.load_state_dict(torch.load(handle, weights_only=True))
    q.fit(x, y, steps=2)
    other.fit(x, y, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(q.parameters(), other.parameters(), strict=True))
