"""The pieces of UDI that are functions: consistency, gradient-aligned weights, choice of the anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from balancebench_udi.grads import dot, norm

ROUNDING = 1e-6
"""Two accuracies whose difference exceeds the tolerance by less than this, of float32 rounding, are within it."""


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of rows of log-probabilities ``[B, C]``, mean over B, in nats: 0 to ln 2."""
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2.0)
    both = log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)
    return 0.5 * both.sum(1).mean()


def alignments(reference: Sequence[Tensor], others: Sequence[Sequence[Tensor]], cosine: bool = False) -> Tensor:
    """Positive part of the inner product (or cosine) of each gradient in ``others`` with ``reference``, ``[K]``."""
    products = torch.stack([dot(reference, other) for other in others])
    if cosine:
        lengths = torch.stack([norm(other) for other in others]) * norm(reference)
        products = products / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    return products.clamp_min(0)


def normalised(scores: Tensor, otherwise: Tensor) -> Tensor:
    """``scores / sum``, or ``otherwise`` where no score is positive; decided on the device."""
    total = scores.sum()
    return torch.where(total > 0, scores / total.clamp_min(torch.finfo(total.dtype).tiny), otherwise)


def standard_error(accuracy: float, count: int) -> float:
    """``sqrt(A (1 - A) / N)``: binomial standard error of an accuracy A in [0, 1] on N samples."""
    return math.sqrt(accuracy * (1 - accuracy) / count)


def choose_anchor(accuracy: Sequence[float], entropy: Sequence[float], tie: float) -> int:
    """Index of the most accurate modality; among those at most ``tie`` worse, of the one with the lowest entropy.

    Args:
        accuracy: in [0, 1].
        entropy: mean predictive entropy, in nats.
        tie: tolerance as a fraction of 1.

    Returns:
        The lowest index where entropies are equal, too.
    """
    best = max(accuracy)
    close = [i for i, a in enumerate(accuracy) if best - a <= tie + ROUNDING]
    return min(close, key=lambda i: entropy[i])
