"""Arithmetic on lists of gradient tensors, on the device, in float32, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter], retain_graph: bool = False) -> list[Tensor]:
    """d loss / d parameters without touching ``.grad``; zeros where the loss does not reach a parameter."""
    found = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Inner product over all tensors of two lists, a scalar."""
    return torch.stack([p.sum() for p in torch._foreach_mul(list(first), list(second))]).sum()


def norm(values: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all tensors of a list, a scalar."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(values))))
