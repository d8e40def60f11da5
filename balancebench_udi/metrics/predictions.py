"""Metrics of predictions: accuracy, macro-F1, calibration, Shapley contributions, imbalance. Functions on tensors."""

from __future__ import annotations

import base64
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def accuracy(prediction: Tensor, target: Tensor) -> float:
    """Share of right predictions, in [0, 1]: one minus the mean zero-one loss. ``[N]`` and ``[N]``."""
    return (prediction == target).double().mean().item()


def macro_f1(prediction: Tensor, target: Tensor, classes: int) -> float:
    """Unweighted mean over all C classes of the F1 score, in [0, 1]; 0 where a class has neither truth nor prediction.

    ``mean_c 2 hit_c / (said_c + true_c)``. F is van Rijsbergen's, Information Retrieval, 1979. This is the "averaged
    F1" of Opitz & Burst, https://arxiv.org/abs/1911.03347, not the F1 of the mean precision and recall (Sokolova &
    Lapalme, Information Processing and Management 45(4), 2009).
    """
    hit = torch.bincount(target[prediction == target], minlength=classes).double()
    said = torch.bincount(prediction, minlength=classes).double()
    true = torch.bincount(target, minlength=classes).double()
    return (2 * hit / (said + true).clamp(min=1)).mean().item()


def top_k(logits: Tensor, target: Tensor, k: int) -> float:
    """Share of samples whose class is among the k highest logits, in [0, 1]. ``[N, C]`` with C >= k, and ``[N]``.

    1 at k = C. The top-5 error of ILSVRC is one minus it at k = 5: Russakovsky et al., IJCV 2015,
    https://arxiv.org/abs/1409.0575.
    """
    return (logits.topk(k, 1).indices == target[:, None]).any(1).double().mean().item()


def negative_log_likelihood(logits: Tensor, target: Tensor) -> float:
    """Mean of ``-log softmax(z)_y``, in nats; at least 0, no upper bound, ``log C`` where every class is as likely.

    The logarithmic score of Good, *Rational Decisions*, Journal of the Royal Statistical Society B 14(1), 1952.
    ``[N, C]`` and ``[N]``.
    """
    return F.cross_entropy(logits, target).item()


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error, in [0, 1]: the mean gap between confidence and accuracy, over bins of confidence.

    ``sum_b N_b / N |accuracy_b - confidence_b|`` over ``bins`` intervals of equal width, closed on the right. Guo et
    al., ICML 2017, https://arxiv.org/abs/1706.04599, where 15 bins come from.

    Args:
        confidence: ``[N]`` probability of the predicted class.
        correct: ``[N]`` whether it was right.
    """
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=place.device)
    gap.index_add_(0, place, correct.double() - confidence.double())
    return gap.abs().sum().item() / len(place)


def discrepancy(truth: Mapping[str, float]) -> dict[str, float]:
    """OGM's discrepancy ratio: how sure a modality is of the true class, over how sure the others are on average.

    ``rho_m = s_m / mean of s_k, k != m``, with ``s_m`` the sum over samples of m's probability of the true class; at
    least 0, without an upper bound; 1 is balanced, and for two modalities ``rho_a rho_b = 1``. Peng et al., CVPR 2022,
    Eq. 7, https://arxiv.org/abs/2203.15332; the mean over the others is our extension to more than two. Empty for a
    single modality; a modality whose others are never sure of the true class is left out.
    """
    found = {}
    for m, own in truth.items():
        others = [s for k, s in truth.items() if k != m]
        if others and sum(others) > 0:
            found[m] = own * len(others) / sum(others)
    return found


def coalitions(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every subset of the modalities, the empty one first, each in the given order."""
    return [s for size in range(len(modalities) + 1) for s in itertools.combinations(modalities, size)]


def shapley(value: Mapping[tuple[str, ...], Any], modalities: Sequence[str]) -> dict[str, Any]:
    """Shapley value of every modality for the set function ``value`` over :func:`coalitions`.

    ``phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! * (v(S + m) - v(S))``; the sum over m is
    ``v(all) - v(nothing)``. A mean of what m adds, so for v in [0, 1] it lies in [-1, 1]. Values may be numbers or
    tensors, one entry a sample. Shapley, A Value for n-Person Games, 1953. BalanceBenchmark,
    https://arxiv.org/abs/2502.10816, takes for v the accuracy with the other inputs at zero; our evaluation, with the
    other features at zero.
    """
    total = len(modalities)
    result: dict[str, Any] = dict.fromkeys(modalities, 0.0)
    for m in modalities:
        for s in coalitions([k for k in modalities if k != m]):
            weight = math.factorial(len(s)) * math.factorial(total - len(s) - 1) / math.factorial(total)
            joined = tuple(k for k in modalities if k in s or k == m)
            result[m] = result[m] + weight * (value[joined] - value[s])
    return result


def imbalance(contribution: Mapping[str, float]) -> tuple[float, float]:
    """How unevenly the modalities contribute, absolute and relative; 0 is balanced.

    Absolute: the mean over pairs of ``|phi_i - phi_j|``; in [0, 1] for Shapley values of a v in [0, 1], as each of
    these differences is. Relative: that divided by ``sum |phi|``, 0 where nothing contributes; in [0, 2 / M] for M > 1
    modalities, hence in [0, 1] for two, and 2 / M where only one contributes. Both are 0 for a single modality.

    Both are ours: BalanceBenchmark, https://arxiv.org/abs/2502.10816, plots a degree of imbalance that its code does
    not hold.
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
