"""The networks q of UDI: one for every pair of anchor and follower that are in use at the same time."""

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
    """Fits ``q(f^m | f^a)`` and bounds ``I(f^a; f^m)`` with it, as a mean over the anchors a; see :class:`CLUB`.

    Which modality leads is known only later, so there is a network for every pair that can occur: of widths with one
    anchor at a time, of modalities where followers become anchors.

    Args:
        options: of UDI.
        sizes: ``{m: D_m}``.
        seed: every network starts from a stream of it.
        device: where they live.
    """

    def __init__(self, options: UDIOptions, sizes: Mapping[str, int], seed: int, device: torch.device) -> None:
        super().__init__()
        self.options, self.sizes, self.seed, self.device = options, dict(sizes), seed, device
        pairs = {self._key(a, m): (sizes[a], sizes[m]) for a in sizes for m in sizes if a != m}
        with seeded(seed, "q"):
            for key, widths in sorted(pairs.items(), key=lambda pair: (pair[1], pair[0])):
                self[key] = self._make(*widths)

    def renew(self, anchors: Iterable[str], m: str) -> None:
        """Start the networks of follower m again, from a stream of its own."""
        with seeded(self.seed, "q", m):
            fresh = {a: self._make(self.sizes[a], self.sizes[m]) for a in anchors}
        for a, q in fresh.items():
            self._of(a, m).load_state_dict(q.state_dict())

    def fit(self, given: Mapping[str, Tensor], m: str, features: Tensor) -> Tensor:
        """``q_steps`` steps of every q on detached features; mean of their losses before the last step.

        Args:
            given: features ``[B, D_a]`` of every anchor.
            m: the follower.
            features: its own, ``[B, D_m]``.
        """
        y = self._scaled(features)
        losses = [self._of(a, m).fit(self._scaled(x), y, self.options.q_steps) for a, x in given.items()]
        return torch.stack(losses).mean()

    def bound(self, given: Mapping[str, Tensor], m: str, features: Tensor, permutation: Tensor | None) -> Tensor:
        """Mean over the anchors of :meth:`CLUB.bound`, in nats; arguments as in :meth:`fit`."""
        y = self._scaled(features)
        return torch.stack([self._of(a, m).bound(self._scaled(x), y, permutation) for a, x in given.items()]).mean()

    def _key(self, a: str, m: str) -> str:
        return f"{a}>{m}" if self.options.followers == "sequential" else f"{self.sizes[a]}x{self.sizes[m]}"

    def _of(self, a: str, m: str) -> CLUB:
        return cast(CLUB, self[self._key(a, m)])

    def _make(self, x_size: int, y_size: int) -> CLUB:
        options = self.options
        q = CLUB(x_size, y_size, options.q_hidden, options.q_lr, options.variance == "one", options.reduction)
        q.to(self.device)
        recordable(q.optimizer)
        return q

    def _scaled(self, features: Tensor) -> Tensor:
        return F.layer_norm(features, features.shape[1:]) if self.options.normalise == "layernorm" else features
