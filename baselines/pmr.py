"""PMR: prototypes tell which modality learns slower; it gets an extra loss, the faster one an entropy bonus."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi import Batch, Options, Output, Strategy, Task, check_window, option

EDGE = 1e-9
"""Tolerance when an epoch's progress is compared with a fraction of the run."""


@dataclass(frozen=True)
class PMROptions(Options):
    """Options of :class:`PMR`; ``coef="hard", mu=0, momentum=0, alpha=2`` is the official code on CREMA-D."""

    alpha: float = option(
        1.0, "weight of the prototype cross-entropy", source="official code, argparse and CGMNIST (else 2)", at_least=0
    )
    window: tuple[float, float] = option(
        (0.0, 0.7),
        "first and last epoch with prototype losses, both included, over the run's epochs; (1, 1) is never",
        source="official code, 0..70 of 100",
        at_least=0,
        at_most=1,
    )
    mu: float = option(1e-2, "weight of the entropy regularisation", source="paper, 1e-2 or 1e-3", at_least=0)
    entropy_until: float = option(
        0.1,
        "the entropy regularisation runs in the epochs before this fraction of the run",
        source="ours (paper: the first epochs)",
        at_least=0,
        at_most=1,
    )
    coef: str = option(
        "clip", "ratio clipped to [0, 1], or 1 wherever it is positive", source="paper", choices=("clip", "hard")
    )
    momentum: float = option(
        0.2, "share of the old prototypes that an update keeps", source="official code, argparse", at_least=0, at_most=1
    )
    subset: float = option(
        0.1, "share of every class of train that prototypes are made of", source="paper", above=0, at_most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window)


class PMR(Strategy):
    """Prototypical Modal Rebalance, Fan et al., CVPR 2023, https://arxiv.org/abs/2211.07089.

    A prototype ``c_k^m [D_m]`` is the mean feature of class k in modality m. With Euclidean distances (not squared),

        ``p^m(k|x) = softmax_k(-||f_m - c_k^m||)``,  ``S_m = sum_i p^m(y_i|x_i)``,
        ``PCE_m = mean_i -log p^m(y_i|x_i)``,  ``H_m = mean_i H(p^m(.|x_i))``,
        ``beta_m = clip(max_j S_j / S_m - 1, 0, 1)``,  ``gamma_m = clip(S_m / min_j S_j - 1, 0, 1)``,
        ``L = CE(z, y) + alpha sum_m beta_m PCE_m - mu sum_m gamma_m H_m``.

    The slower modality is pulled to its prototypes, the faster one is kept undecided while training begins. For two
    modalities this is the paper's rule with ``rho = S_0 / S_1``; for three it is the rule that later work uses. The
    coefficients are constants of the graph. PCE and H reach only encoder m; the fusion learns from CE alone.
    With ``coef="hard"``, beta_m is 1 for every modality slower than the fastest and gamma_m is 1 for every one faster
    than the slowest; ties are 0.

    Prototypes: computed before training and after every epoch with ``c <- momentum * c + (1 - momentum) * c_new``
    (at first ``c <- c_new``), from ``subset`` of every class of train (at least one sample), drawn once; in eval mode,
    without augmentation; not after the last epoch that needs them. A class that train lacks is left out of the softmax.

    Window: epoch e of E (from 0) has these terms where ``window[0] <= e / E <= window[1]``, the entropy also needs
    ``e / E < entropy_until``. (0, 0.7) is the official 0..70 of 100, both included. With alpha = mu = 0, or an empty
    window such as (1, 1), the run is bit for bit that of joint.

    Departures from the official code: the magnitude of the coefficients and the entropy term follow the paper (the code
    has weights of 0 or 1 and no entropy term); the subset is fixed and stratified and comes from train (the code takes
    the first tenth of a shuffled, augmented epoch, where a missing class gives NaN, and for CGMNIST the test split);
    no extra bottleneck in the encoders; the momentum holds from the first epoch's end on (there from the second's);
    distance 0 has gradient 0 (there NaN).

    Logs: ``score/m`` (S_m / B), ``beta/m`` and ``gamma/m`` (dimensionless), ``pce/m`` and ``entropy/m`` (nats).
    Cost: as joint, B x C x sum D_m for distances, and ``subset`` of an epoch forward after each epoch.

    Raises:
        UserError: fewer than two modalities, or options out of their bounds.
    """

    name = "pmr"
    idea = (
        "The slower modality is pulled towards the mean features of its classes by a loss of its own. Early in "
        "training the faster modality is kept undecided by an entropy term."
    )
    family = "objective"
    reference = "Fan et al., CVPR 2023, arXiv 2211.07089"
    min_modalities = 2
    Options = PMROptions

    subset: Tensor
    present: Tensor

    def setup(self, task: Task) -> None:
        super().setup(task)
        target = task.target("train")
        rows = [stratum(target, c, self.options.subset, task.generator) for c in range(task.classes)]
        self.register_buffer("subset", torch.cat(rows).sort().values)
        self.register_buffer("present", torch.bincount(target, minlength=task.classes) > 0)
        for m, size in self.model.feature_sizes.items():
            self.register_buffer(prototype_name(m), torch.zeros(task.classes, size, device=task.device))

    @property
    def prototypes(self) -> dict[str, Tensor]:
        """``{m: [C, D_m]}``; rows of classes that train lacks are zero."""
        return {m: getattr(self, prototype_name(m)) for m in self.task.modalities}

    def strengths(self, epoch: int) -> tuple[float, float]:
        """(alpha, mu) in force in ``epoch``; 0 where that term is off."""
        options = self.options
        if not self.task.within(options.window, epoch):
            return 0.0, 0.0
        early = epoch / self.task.epochs < options.entropy_until - EDGE
        return options.alpha, options.mu if early else 0.0

    def replay_key(self) -> Hashable | None:
        return self.strengths(self.task.epoch)

    def begin_phase(self) -> None:
        self.update_prototypes(0, momentum=0.0)

    def end_epoch(self) -> None:
        self.update_prototypes(self.task.epoch + 1, momentum=self.options.momentum)

    def update_prototypes(self, epoch: int, momentum: float) -> None:
        """Make them ready for ``epoch``: ``c <- momentum * c + (1 - momentum) * c_new``, if they are used again."""
        if not any(any(self.strengths(e)) for e in range(epoch, self.task.epochs)):
            return
        features = self.task.collect(lambda batch: self.model.encode(batch.inputs), "train", self.subset)
        member = F.one_hot(self.task.target("train")[self.subset], self.task.classes)
        count = member.sum(0).clamp_min(1).unsqueeze(1)
        for m, old in self.prototypes.items():
            new = member.to(old).T @ features[m].to(old) / count
            old.copy_(new if momentum == 0 else momentum * old + (1 - momentum) * new)

    def log_posterior(self, m: str, features: Tensor) -> Tensor:
        """``log p^m(k|x) [B, C]``: log-softmax over minus the distances to the prototypes."""
        distance = torch.cdist(features, self.prototypes[m], compute_mode="donot_use_mm_for_euclid_dist")
        return F.log_softmax((-distance).masked_fill(~self.present, torch.finfo(distance.dtype).min), 1)

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total = F.cross_entropy(output.logits, batch.target)
        alpha, mu = self.strengths(self.task.epoch)
        if alpha == 0 and mu == 0:
            return total, {}
        log_p = {m: self.log_posterior(m, f) for m, f in output.features.items()}
        true = [p.detach().gather(1, batch.target.unsqueeze(1)).exp().sum() for p in log_p.values()]
        score = torch.stack(true)
        beta, gamma = coefficients(score, self.options.coef)
        logs = {}
        for m, s, b, g in zip(log_p, score, beta, gamma, strict=True):
            logs.update({f"score/{m}": s / len(batch), f"beta/{m}": b, f"gamma/{m}": g})
            if alpha:
                pce = F.nll_loss(log_p[m], batch.target)
                logs[f"pce/{m}"] = pce.detach()
                total = total + alpha * b * pce
            if mu:
                entropy = -(log_p[m].exp() * log_p[m]).sum(1).mean()
                logs[f"entropy/{m}"] = entropy.detach()
                total = total - mu * g * entropy
        return total, logs


def prototype_name(m: str) -> str:
    """The buffer of modality m's prototypes."""
    return f"prototype_{m}"


def stratum(target: Tensor, c: int, share: float, generator: torch.Generator) -> Tensor:
    """Rows of ``share`` of class c, at least one where there is any, drawn from ``generator``."""
    rows = torch.nonzero(target == c).flatten()
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order[: max(1, round(share * len(rows)))].to(rows.device)]


def coefficients(score: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(beta, gamma) ``[M]`` from the scores ``S [M]``: how far each modality lags the fastest and leads the slowest."""
    score = score.clamp_min(torch.finfo(score.dtype).tiny)
    high, low = score.max(), score.min()
    if kind == "hard":
        return (score < high).to(score), (score > low).to(score)
    return (high / score - 1).clamp(0, 1), (score / low - 1).clamp(0, 1)
