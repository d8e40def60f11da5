"""Reads a strategy out on a split: the fused prediction, every modality by itself, every subset of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi.data.loader import Batch, Loader
from balancebench_udi.grads import dot, gradients, norm
from balancebench_udi.metrics import predictions as metric
from balancebench_udi.metrics.balance import masked
from balancebench_udi.metrics.features import cka, fit_probe
from balancebench_udi.strategy import Output, Strategy, evaluating

TOP = 5
"""``top5`` is read where there are more classes than this."""

PROBE_SAMPLES = 10_000
"""Most training samples that a probe is fitted to."""

Probes = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Reading:
    """``scores`` by name, and the class predicted by every read-out, ``{name: [N]}``.

    Read-outs: ``fused``; ``share/m`` (additive split of the fused logits); ``alone/m`` (the method's own head);
    ``masked/a+b`` (the features of all other modalities at zero; ``masked/none``: of all); ``probe/m`` (a linear
    classifier fitted to the frozen features of the train split).
    """

    scores: dict[str, float]
    predicted: dict[str, Tensor]


def evaluate(
    strategy: Strategy,
    loader: Loader,
    split: str,
    modalities: Sequence[str],
    subsets: bool = False,
    probes: Probes | None = None,
) -> Reading:
    """Evaluate on ``split`` with the inputs ``modalities``.

    Args:
        subsets: also read out every subset of the modalities and derive Shapley contributions and imbalance, and
            compare the features of every pair.
        probes: m -> classifier of features, see :func:`fit_probes`.

    Returns:
        Accuracies, macro-F1, calibration error and alignments in [0, 1], the loss in nats.
    """
    parts: dict[str, list[Tensor]] = {}
    logits, features, truth = [], [], []

    def note(name: str, scores: Tensor) -> None:
        parts.setdefault(name, []).append(scores.argmax(1))

    with evaluating(strategy), strategy.model.passes.paused():
        for batch in loader.ordered(split, modalities):
            output = strategy.predict(batch.inputs)
            note("fused", output.logits)
            logits.append(output.logits)
            for m, z in (strategy.shares(output.features) or {}).items():
                note(f"share/{m}", z)
            for m, z in output.unimodal.items():
                note(f"alone/{m}", z)
            truth.append({m: _truth(z, batch.target) for m, z in single(strategy, output).items()})
            for m, probe in (probes or {}).items():
                note(f"probe/{m}", probe(output.features[m]))
            if subsets:
                features.append(output.features)
                for present in metric.coalitions(list(modalities)):
                    seen = {m: f if m in present else torch.zeros_like(f) for m, f in output.features.items()}
                    note(masked(present), strategy.fuse(seen))

    predicted = {name: torch.cat(values).cpu() for name, values in parts.items()}
    target = loader.target(split).cpu()
    fused = torch.cat(logits).float().cpu()
    scores = {
        "accuracy": metric.accuracy(predicted["fused"], target),
        "macro_f1": metric.macro_f1(predicted["fused"], target, strategy.task.classes),
        "loss": metric.negative_log_likelihood(fused, target),
        "ece": metric.calibration_error(fused.softmax(1).amax(1), predicted["fused"] == target),
    }
    if strategy.task.classes > TOP:
        scores["top5"] = metric.top_k(fused, target, TOP)
    scores.update({n: metric.accuracy(p, target) for n, p in predicted.items() if n != "fused"})
    sure = {m: torch.stack([t[m] for t in truth]).sum().item() for m in truth[0]}
    scores.update({f"discrepancy/{m}": v for m, v in metric.discrepancy(sure).items()})
    if subsets:
        value = {s: scores[masked(s)] for s in metric.coalitions(list(modalities))}
        contribution = metric.shapley(value, list(modalities))
        scores.update({f"shapley/{m}": v for m, v in contribution.items()})
        scores["imbalance"], scores["imbalance_relative"] = metric.imbalance(contribution)
        whole = {m: torch.cat([f[m] for f in features]) for m in modalities}
        for a, b in itertools.combinations(modalities, 2):
            scores[f"cka/{a}+{b}"] = cka(whole[a], whole[b])
    return Reading(scores, predicted)


def fit_probes(strategy: Strategy, loader: Loader, modalities: Sequence[str]) -> Probes:
    """A linear classifier on every encoder as it stands, fitted to the train split without augmentation.

    Of a split of more than ``PROBE_SAMPLES`` so many evenly spaced samples are taken, one modality after another, so
    that memory does not grow with the data.
    """
    size = loader.size("train")
    index = torch.arange(min(size, PROBE_SAMPLES)) * size // min(size, PROBE_SAMPLES)
    target = loader.target("train")[index.to(loader.device)]
    probes = {}
    for m in modalities:
        found = torch.empty(len(index), strategy.model.feature_sizes[m], device=loader.device)
        done = 0
        with evaluating(strategy), strategy.model.passes.paused():
            for batch in loader.ordered("train", [m], index):
                found[done : done + len(batch)] = strategy.model.encode(batch.inputs)[m]
                done += len(batch)
        probes[m] = fit_probe(found, target, strategy.task.classes)
    return probes


def compare_gradients(strategy: Strategy, loader: Loader, modalities: Sequence[str], samples: int) -> dict[str, float]:
    """How the fused loss and a modality's own loss pull at its encoder, on evenly spaced training samples.

    With ``g`` the gradient of the cross-entropy of the fused logits and ``g_m`` that of the logits of m (its own head,
    else its share), both with respect to all parameters of encoder m in eval mode: ``norm_ratio/m = ||g|| / ||g_m||``
    and ``cosine/m = <g, g_m> / (||g|| ||g_m||)``. Modalities whose encoder is frozen, that have no logits of their own,
    or of which a gradient vanishes are left out; with a single modality there is nothing to compare. Moves nothing.

    Ratios are positive, without an upper bound; cosines lie in [-1, 1] up to rounding. A negative one is a conflict in
    the sense of Yu et al., NeurIPS 2020, https://arxiv.org/abs/2001.06782; to compare these two gradients is ours.
    """
    if len(modalities) < 2:
        return {}
    every = max(1, loader.size("train") // samples)
    index = torch.arange(0, loader.size("train"), every)[:samples]
    pulls: dict[str, list[list[Tensor]]] = {}
    with evaluating(strategy), strategy.model.passes.paused(), torch.enable_grad():
        for batch in loader.ordered("train", modalities, index):
            for m, pull in _pulls(strategy, batch).items():
                if m not in pulls:
                    pulls[m] = pull
                    continue
                for total, part in zip(pulls[m], pull, strict=True):
                    torch._foreach_add_(total, part)
    found: dict[str, float] = {}
    for m, (whole, own) in pulls.items():
        sizes = norm(whole), norm(own)
        if all(size > 0 for size in sizes):
            found[f"norm_ratio/{m}"] = (sizes[0] / sizes[1]).item()
            found[f"cosine/{m}"] = (dot(whole, own) / (sizes[0] * sizes[1])).item()
    return found


def _pulls(strategy: Strategy, batch: Batch) -> dict[str, list[list[Tensor]]]:
    """m -> gradients of the fused loss and of its own, summed over the batch, with respect to encoder m."""
    output = strategy.predict(batch.inputs)
    fused = F.cross_entropy(output.logits, batch.target, reduction="sum")
    pulls = {}
    for m, z in single(strategy, output).items():
        if moved := [p for p in strategy.model.encoders[m].parameters() if p.requires_grad]:
            both = (fused, F.cross_entropy(z, batch.target, reduction="sum"))
            pulls[m] = [gradients(loss, moved, retain_graph=True) for loss in both]
    return pulls


def single(strategy: Strategy, output: Output) -> Mapping[str, Tensor]:
    """``{m: [B, C]}`` logits of each modality: of the method's own heads, else its shares, else none."""
    return output.unimodal or strategy.shares(output.features) or {}


def _truth(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over the batch of the probability of the true class, a scalar."""
    return logits.softmax(1).gather(1, target[:, None]).sum()
