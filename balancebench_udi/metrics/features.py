"""Metrics of features: what a linear classifier reads in them, and how much of one modality's the other's repeat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

PROBE_STEPS = 200
"""Most steps of L-BFGS; a probe that has converged stops before."""


def fit_probe(features: Tensor, target: Tensor, classes: int, penalty: float = 1.0) -> Callable[[Tensor], Tensor]:
    """A linear classifier on frozen features: ``[N, D]`` and ``[N]`` to a function from ``[B, D]`` to ``[B, C]``.

    Multinomial logistic regression on features standardised by their own mean and deviation, fitted to the end by
    L-BFGS: the minimum of ``sum_i CE_i + penalty / 2 ||W||^2`` (the bias is free), which scikit-learn calls
    ``C = 1 / penalty``; 1 is its default. Nothing is drawn at random. Its accuracy on other samples, in [0, 1], is what
    the encoder has made linearly readable: Alain and Bengio, https://arxiv.org/abs/1610.01644.
    """
    features = features.detach().float()
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    x = features - mean
    x /= deviation
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=PROBE_STEPS, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ weight + bias, target) + penalty / (2 * len(x)) * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    weight, bias = weight.detach(), bias.detach()
    return lambda seen: ((seen.float() - mean) / deviation) @ weight + bias


def cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two modalities' features ``[N, D]`` and ``[N, E]`` of the same samples.

    ``||Y' X||^2 / (||X' X|| ||Y' Y||)`` with centred columns and Frobenius norms, in [0, 1]: 1 where one is the other
    turned and scaled, about ``D / N`` where they have nothing to do with each other; 0 where one of them is constant.
    Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414.
    """
    x, y = (f.double() - f.double().mean(0) for f in (first, second))
    size = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return (torch.linalg.matrix_norm(y.T @ x).square() / size).item() if size > 0 else 0.0
