"""CLUB: an upper bound of mutual information that can be minimised, after Cheng et al., ICML 2020, arXiv 2006.12013."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CLUB(nn.Module):
    """``I(x; y)`` from above, with ``q(y|x) = N(mean(x), diag exp log_variance(x))``, and the optimiser that fits q.

    Mean and log-variance are two perceptrons with one hidden layer of ``hidden // 2`` units (ReLU); tanh keeps the
    log-variance in [-1, 1]. With a q that fits badly the value is no bound and may be negative; it is not clamped.
    The optimiser's state is part of ``state_dict``, so that an interrupted run goes on unchanged.

    Args:
        x_size: length of x, on which q is conditioned.
        y_size: length of y, which q models.
        hidden: twice the width of the hidden layers, as in the official code's ``CLUB``.
        lr: learning rate of Adam.
        reduction: ``mean`` or ``sum`` of the bound over the dimensions of y.
    """

    def __init__(
        self,
        x_size: int,
        y_size: int,
        hidden: int = 512,
        lr: float = 1e-3,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        width = max(1, hidden // 2)
        self.mean = nn.Sequential(nn.Linear(x_size, width), nn.ReLU(), nn.Linear(width, y_size))
        self.log_variance = nn.Sequential(nn.Linear(x_size, width), nn.ReLU(), nn.Linear(width, y_size), nn.Tanh())
        self.reduction = reduction
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr, fused=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``[B, D_y]`` of y given x ``[B, D_x]``."""
        return self.mean(x), self.log_variance(x)

    def learning_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """``mean_i sum_d (y - mean)^2 exp(-l) + l``: twice the negative log-likelihood of q, without its constant."""
        mean, log_variance = self(x)
        return ((y - mean).square() * (-log_variance).exp() + log_variance).sum(1).mean()

    def fit(self, x: Tensor, y: Tensor, steps: int = 1) -> Tensor:
        """``steps`` of Adam on :meth:`learning_loss` of the detached x and y; the loss before the last one."""
        for _ in range(steps):
            loss = self.learning_loss(x.detach(), y.detach())
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def bound(self, x: Tensor, y: Tensor) -> Tensor:
        """Estimate in nats, a scalar; its gradient reaches y and nothing else.

        ``1/2 mean_i sum_d exp(-l_i) (mean_j (y_j - mean_i)^2 - (y_i - mean_i)^2)``: pairs (x_i, y_j) of all samples
        against the true ones, from batch moments, at a cost linear in B. Both sides carry gradient.

        Args:
            x: ``[B, D_x]``.
            y: ``[B, D_y]``.
        """
        with torch.no_grad():  # x is data and q is frozen here
            mean, log_variance = self(x)
        centre = y.mean(0)  # around which the squares of the two sides cancel least
        offset = y - centre
        gap = offset.square().mean(0) - offset.square() + 2 * offset * (mean - centre)
        value = 0.5 * gap * (-log_variance).exp()
        return value.mean() if self.reduction == "mean" else value.sum(1).mean()

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's state: tensors and plain values."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
