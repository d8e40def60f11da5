"""Metrics of predictions: accuracy, macro-F1, Shapley contributions, imbalance. Plain functions on tensors."""

from __future__ import annotations

import base64
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def accuracy(prediction: Tensor, target: Tensor) -> float:
    """Share of right predictions, in [0, 1]. ``[N]`` and ``[N]``."""
    return (prediction == target).double().mean().item()


def macro_f1(prediction: Tensor, target: Tensor, classes: int) -> float:
    """Unweighted mean over all C classes of the F1 score, 0 where a class has neither truth nor prediction."""
    hit = torch.bincount(target[prediction == target], minlength=classes).double()
    said = torch.bincount(prediction, minlength=classes).double()
    true = torch.bincount(target, minlength=classes).double()
    return (2 * hit / (said + true).clamp(min=1)).mean().item()


def coalitions(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every subset of the modalities, the empty one first, each in the given order."""
    return [s for size in range(len(modalities) + 1) for s in itertools.combinations(modalities, size)]


def shapley(value: Mapping[tuple[str, ...], float], modalities: Sequence[str]) -> dict[str, float]:
    """Shapley value of every modality for the set function ``value`` over :func:`coalitions`.

    ``phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! * (v(S + m) - v(S))``; the sum over m is
    ``v(all) - v(nothing)``.
    """
    total = len(modalities)
    result = dict.fromkeys(modalities, 0.0)
    for m in modalities:
        for s in coalitions([k for k in modalities if k != m]):
            weight = math.factorial(len(s)) * math.factorial(total - len(s) - 1) / math.factorial(total)
            joined = tuple(k for k in modalities if k in s or k == m)
            result[m] += weight * (value[joined] - value[s])
    return result


def imbalance(contribution: Mapping[str, float]) -> tuple[float, float]:
    """How unevenly the modalities contribute, absolute and relative; 0 is balanced.

    Absolute: the mean over pairs of ``|phi_i - phi_j|``. Relative: that divided by ``sum |phi|``; for two modalities
    it lies in [0, 1]; 0 where nothing contributes.
    """
    values = list(contribution.values())
    pairs = [abs(a - b) for a, b in itertools.combinations(values, 2)]
    absolute = sum(pairs) / len(pairs) if pairs else 0.0
    size = sum(map(abs, values))
    return absolute, absolute / size if size > 0 else 0.0


def pack(values: Tensor) -> str:
    """``[N]`` class indices as text: base64 of zlib of little-endian uint16."""
    return base64.b64encode(zlib.compress(values.cpu().numpy().astype("<u2").tobytes(), 9)).decode()


def unpack(text: str) -> Tensor:
    """The inverse of :func:`pack`, int64."""
    return torch.from_numpy(np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2").astype(np.int64))
