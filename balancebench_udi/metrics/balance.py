"""How a model uses its modalities, derived from the scores and the predictions that every record keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from balancebench_udi.metrics.predictions import coalitions, shapley


def masked(present: Sequence[str]) -> str:
    """The name of the read-out in which only the modalities ``present`` are left: ``masked/a+b``, ``masked/none``."""
    return f"masked/{'+'.join(present) or 'none'}"


def utilisation(scores: Mapping[str, float], modalities: Sequence[str]) -> dict[str, float]:
    """Conditional utilisation rate: what a modality adds to all the others, as a share of the accuracy of all.

    ``u(m | rest) = (A(all) - A(rest)) / A(all)``, at most 1; negative where the model is better off without m; 0 where
    nothing is right. A(S) is the accuracy with the features outside of S at zero. Wu et al., *Characterizing and
    overcoming the greedy nature of learning in multi-modal deep neural networks*, ICML 2022,
    https://arxiv.org/abs/2202.05306; they evaluate the rest by swapping in averaged features, we by zeros.

    Args:
        scores: of one split, with ``masked/...`` for every subset.
    """
    whole = scores[masked(modalities)]
    rest = {m: scores[masked([k for k in modalities if k != m])] for m in modalities}
    return {m: (whole - left) / whole if whole > 0 else 0.0 for m, left in rest.items()}


def complementarity(predictions: Mapping[str, Tensor], target: Tensor, modalities: Sequence[str]) -> dict[str, float]:
    """Which modality knew: shares of the samples, in [0, 1]. The division into cases is ours.

    With ``n`` of the single modalities right, a share is the mean over the samples of: ``only/m``: ``n = 1`` and m is
    the one; ``several``: ``n > 1``; ``fusion_only``: ``n = 0`` and the fusion is right; ``none``: ``n = 0`` and the
    fusion is wrong. These sum to 1. Beside them ``lost``: ``n > 0`` and the fusion is wrong. A single modality is read
    with the others masked in every method, as for its Shapley contribution: a head of its own would tell of another
    classifier, and not all methods have one.

    Args:
        predictions: read-out -> classes ``[N]``; ``fused`` and ``masked/m``.
        target: ``[N]``.
    """
    right = torch.stack([predictions[masked([m])] == target for m in modalities])
    fused = predictions["fused"] == target
    count = right.sum(0)
    cases = {f"only/{m}": (count == 1) & right[i] for i, m in enumerate(modalities)}
    cases |= {
        "several": count > 1,
        "fusion_only": (count == 0) & fused,
        "none": (count == 0) & ~fused,
        "lost": (count > 0) & ~fused,
    }
    return {name: found.double().mean().item() for name, found in cases.items()}


def sample_shapley(predictions: Mapping[str, Tensor], target: Tensor, modalities: Sequence[str]) -> dict[str, Tensor]:
    """``{m: [N]}`` Shapley contributions to whether a sample is right, float64 in [-1, 1].

    Their mean over the samples is ``shapley/m`` of the scores; their sum over the modalities is 1, 0 or -1: right with
    all of them and wrong with none, no difference, or the reverse.
    """
    value = {s: (predictions[masked(s)] == target).double() for s in coalitions(modalities)}
    return shapley(value, modalities)


def probe_gap(alone: Mapping[str, float], scores: Mapping[str, float], modalities: Sequence[str]) -> dict[str, float]:
    """What joint training cost each modality: what a probe reads in its encoder trained alone minus what it reads here.

    ``gap_m = A(probe on m's encoder trained alone) - A(probe on m's encoder here)``, in [-1, 1]; negative where the
    encoder has learned more here. Linear probes are those of Alain and Bengio, https://arxiv.org/abs/1610.01644; to
    take this difference is ours. Both sides are read by the same kind of classifier: a
    head of its own that is not trained to the end understates what an encoder has learned.

    Args:
        alone: scores, with ``probe/m``, of the same encoders trained alone under the same protocol, on the same split.
        scores: the same of the model in question; modalities without a probe on either side are left out.
    """
    return {m: alone[n] - scores[n] for m in modalities if (n := f"probe/{m}") in alone and n in scores}


def bayes_distance(
    scores: Mapping[str, float], bayes: Mapping[str, float], modalities: Sequence[str]
) -> dict[str, float]:
    """How far a model stays below the best accuracy that its inputs allow, where that is known; in [-1, 1].

    ``d(S) = A*(S) - A(S)`` with ``A*(S) = E max_y p(y | x_S)``, the accuracy of the Bayes classifier of the modalities
    S (Devroye, Györfi and Lugosi, *A Probabilistic Theory of Pattern Recognition*, 1996, chapter 2). ``fused``: of all
    modalities; ``m``: of what a probe reads in encoder m, or of m's own head where there is no probe.
    On a finite test split a good model may come out a little above, and so below 0 here.

    Args:
        scores: of the test split.
        bayes: ``a+b`` -> accuracy of the best classifier that sees the modalities a and b.
    """
    found = {"fused": bayes["+".join(modalities)] - scores["accuracy"]}
    for m in modalities:
        own = next((scores[name] for name in (f"probe/{m}", f"alone/{m}") if name in scores), None)
        if own is not None:
            found[m] = bayes[m] - own
    return found
