"""Reads a strategy out on a split: the fused prediction, every modality by itself, every subset of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi.data.loader import Loader
from balancebench_udi.metrics import predictions as metric
from balancebench_udi.strategy import Strategy, evaluating


@dataclass(frozen=True)
class Reading:
    """``scores`` by name, and the class predicted by every read-out, ``{name: [N]}``.

    Read-outs: ``fused``; ``share/m`` (additive split of the fused logits); ``alone/m`` (the method's own head);
    ``masked/a+b`` (the features of all other modalities at zero; ``masked/none``: of all).
    """

    scores: dict[str, float]
    predicted: dict[str, Tensor]


def evaluate(
    strategy: Strategy, loader: Loader, split: str, modalities: Sequence[str], subsets: bool = False
) -> Reading:
    """Evaluate on ``split`` with the inputs ``modalities``.

    Args:
        subsets: also read out every subset of the modalities and derive Shapley contributions and imbalance.

    Returns:
        Accuracies and macro-F1 in [0, 1], the loss in nats.
    """
    parts: dict[str, list[Tensor]] = {}
    losses = []

    def note(name: str, logits: Tensor) -> None:
        parts.setdefault(name, []).append(logits.argmax(1))

    with evaluating(strategy), strategy.model.passes.paused():
        for batch in loader.ordered(split, modalities):
            output = strategy.predict(batch.inputs)
            note("fused", output.logits)
            losses.append(F.cross_entropy(output.logits, batch.target, reduction="sum"))
            for m, logits in (strategy.shares(output.features) or {}).items():
                note(f"share/{m}", logits)
            for m, logits in output.unimodal.items():
                note(f"alone/{m}", logits)
            if subsets:
                for present in metric.coalitions(list(modalities)):
                    seen = {m: f if m in present else torch.zeros_like(f) for m, f in output.features.items()}
                    note(f"masked/{'+'.join(present) or 'none'}", strategy.fuse(seen))

    predicted = {name: torch.cat(values).cpu() for name, values in parts.items()}
    target = loader.target(split).cpu()
    scores = {
        "accuracy": metric.accuracy(predicted["fused"], target),
        "macro_f1": metric.macro_f1(predicted["fused"], target, strategy.task.classes),
        "loss": torch.stack(losses).sum().item() / len(target),
    }
    scores.update({n: metric.accuracy(p, target) for n, p in predicted.items() if n != "fused"})
    if subsets:
        value = {s: scores[f"masked/{'+'.join(s) or 'none'}"] for s in metric.coalitions(list(modalities))}
        contribution = metric.shapley(value, list(modalities))
        scores.update({f"shapley/{m}": v for m, v in contribution.items()})
        scores["imbalance"], scores["imbalance_relative"] = metric.imbalance(contribution)
    return Reading(scores, predicted)
