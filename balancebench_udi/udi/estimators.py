"""The networks q of UDI: one for every pair of guide and follower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi.nets.model import seeded
from balancebench_udi.strategy import recordable
from balancebench_udi.udi.club import CLUB
from balancebench_udi.udi.options import UDIOptions


class Estimators(nn.ModuleDict):
    """Fits ``q(f^m | f^g)`` and bounds ``I(f^g; f^m)`` with it, as a mean over the guides g; see :class:`CLUB`.

    Args:
        options: of UDI.
        sizes: ``{m: D_m}``.
        seed: every network starts from a stream of it.
        device: where they live.
    """

    def __init__(self, options: UDIOptions, sizes: Mapping[str, int], seed: int, device: torch.device) -> None:
        super().__init__()
        self.options, self.sizes, self.seed, self.device = options, dict(sizes), seed, device
        with seeded(seed, "q"):
            for g in sizes:
                for m in sizes:
                    if g != m:
                        self[f"{g}>{m}"] = self._make(g, m)

    def renew(self, guides: Iterable[str], followers: Iterable[str]) -> None:
        """Start the networks of the followers again, from a stream of each one's own."""
        for m in followers:
            with seeded(self.seed, "q", m):
                fresh = {g: self._make(g, m) for g in guides}
            for g, q in fresh.items():
                self._of(g, m).load_state_dict(q.state_dict())

    def fit(self, given: Mapping[str, Tensor], m: str, features: Tensor) -> Tensor:
        """``q_steps`` steps of every q on detached features; mean of their losses before the last step.

        Args:
            given: features ``[B, D_g]`` of every guide.
            m: the follower.
            features: its own, ``[B, D_m]``.
        """
        y = self._scaled(features)
        losses = [self._of(g, m).fit(self._scaled(x), y, self.options.q_steps) for g, x in given.items()]
        return torch.stack(losses).mean()

    def bound(self, given: Mapping[str, Tensor], m: str, features: Tensor) -> Tensor:
        """Mean over the guides of :meth:`CLUB.bound`, in nats; arguments as in :meth:`fit`."""
        y = self._scaled(features)
        return torch.stack([self._of(g, m).bound(self._scaled(x), y) for g, x in given.items()]).mean()

    def _of(self, g: str, m: str) -> CLUB:
        return cast(CLUB, self[f"{g}>{m}"])

    def _make(self, g: str, m: str) -> CLUB:
        options = self.options
        reduction = "mean" if options.information == "normalised" else "sum"
        q = CLUB(self.sizes[g], self.sizes[m], options.q_hidden, reduction=reduction)
        q.to(self.device)
        recordable(q.optimizer)
        return q

    def _scaled(self, features: Tensor) -> Tensor:
        return F.layer_norm(features, features.shape[1:]) if self.options.information == "normalised" else features
