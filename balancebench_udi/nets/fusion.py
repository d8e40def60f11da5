"""Fusion: from the modalities' features ``{m: [B, D_m]}`` to logits ``[B, C]``.

Additive fusions (``concat``, ``sum``) split their logits exactly into one share a modality; the others have no such
split and say so by returning None.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi.errors import UserError, near_misses


class Fusion(nn.Module):
    """Base: ``forward(features) -> logits`` and, where the fusion is additive, ``shares``."""

    additive = False

    def __init__(self, sizes: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.classes = classes

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """``{m: [B, C]}`` whose sum is ``forward(features)``; None where the fusion is not additive."""
        return None


class Concat(Fusion):
    """One linear layer on the concatenated features; share of m: ``W_m f_m + b / M``."""

    additive = True

    def __init__(self, sizes: Mapping[str, int], classes: int) -> None:
        super().__init__(sizes, classes)
        self.out = nn.Linear(sum(sizes.values()), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.out(torch.cat([features[m] for m in self.sizes], 1))

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        columns = self.out.weight.split(list(self.sizes.values()), 1)
        bias = self.out.bias / len(self.sizes)
        return {m: F.linear(features[m], w, bias) for m, w in zip(self.sizes, columns, strict=True)}


class Sum(Fusion):
    """One linear layer a modality, logits added; share of m: its own layer's output, with its whole bias."""

    additive = True

    def __init__(self, sizes: Mapping[str, int], classes: int) -> None:
        super().__init__(sizes, classes)
        self.out = nn.ModuleDict({m: nn.Linear(size, classes) for m, size in sizes.items()})

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(self.shares(features).values())).sum(0)

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.out[m](features[m]) for m in self.sizes}


class FiLM(Fusion):
    """Perez et al., AAAI 2018: the first modality scales and shifts the second one's features."""

    def __init__(self, sizes: Mapping[str, int], classes: int) -> None:
        super().__init__(sizes, classes)
        self.first, self.second = _pair("film", sizes)
        self.film = nn.Linear(sizes[self.first], 2 * sizes[self.second])
        self.out = nn.Linear(sizes[self.second], classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        scale, shift = self.film(features[self.first]).chunk(2, 1)
        return self.out(scale * features[self.second] + shift)


class Gated(Fusion):
    """Kiela et al., 2018: the first modality's sigmoid gates the second one's projection."""

    def __init__(self, sizes: Mapping[str, int], classes: int) -> None:
        super().__init__(sizes, classes)
        self.first, self.second = _pair("gated", sizes)
        width = sizes[self.second]
        self.gate = nn.Linear(sizes[self.first], width)
        self.value = nn.Linear(sizes[self.second], width)
        self.out = nn.Linear(width, classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.out(torch.sigmoid(self.gate(features[self.first])) * self.value(features[self.second]))


def _pair(name: str, sizes: Mapping[str, int]) -> tuple[str, str]:
    check_fusion(name, len(sizes))
    first, second = sizes
    return first, second


FUSIONS: dict[str, type[Fusion]] = {"concat": Concat, "sum": Sum, "film": FiLM, "gated": Gated}


def check_fusion(name: str, modalities: int) -> type[Fusion]:
    """The class of fusion ``name``.

    Raises:
        UserError: an unknown fusion, or one that cannot take this many modalities.
    """
    if name not in FUSIONS:
        raise UserError(f"there is no fusion called {name!r}{near_misses(name, FUSIONS)}")
    if name in ("film", "gated") and modalities != 2:
        raise UserError(f"fusion {name} takes exactly 2 modalities, found {modalities}: use concat or sum")
    return FUSIONS[name]
