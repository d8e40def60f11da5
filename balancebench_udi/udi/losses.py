"""The pieces of UDI that are functions: consistency, gradient-aligned weights, choice of the anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-6
"""Two accuracies whose difference exceeds the tolerance by less than this, of float32 rounding, are within it."""


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of rows of log-probabilities ``[B, C]``, mean over B, in nats: 0 to ln 2."""
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2.0)
    both = log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)
    return 0.5 * both.sum(1).mean()


def normalised(scores: Tensor) -> Tensor:
    """``scores / sum`` of scores that are not negative, or zeros where none is positive; decided on the device."""
    total = scores.sum()
    return torch.where(total > 0, scores / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


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
