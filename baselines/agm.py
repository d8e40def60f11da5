"""AGM: scale what is back-propagated through each modality's Shapley share of the fused logits."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi import Batch, Options, Output, Strategy, Task, check_window, option
from balancebench_udi.grads import norm

FLOOR = 1e-8
"""Least probability in a score (official code): a score is at most ``-log 1e-8 = 18.42``."""


@dataclass(frozen=True)
class AGMOptions(Options):
    """Options of AGM."""

    alpha: float = option(
        1.5,
        "strength of the modulation; 0 modulates nothing",
        source="authors' reply for CREMA-D (AV-MNIST 2.5, UR-Funny 4.0; argparse 1.0)",
        at_least=0,
    )
    window: tuple[float, float] = option(
        (0.0, 1.0),
        "first and last point of the run at which gradients are modulated, both included: epoch e (from 0) of E is in "
        "where first <= e / E <= last; 1,1 is never",
        source="authors' reply: the whole run",
        at_least=0,
        at_most=1,
    )
    cap: float | None = option(
        10.0,
        "largest tau - r in the exponent of a coefficient; none: no limit",
        source="official code, CREMA-D (UR-Funny: 7; AV-MNIST, AVE, MOSEI: none)",
        above=0,
    )
    clip_above: float | None = option(
        1.0,
        "gradients are clipped in a step in which an element of the fusion's weight gradient is larger in size than "
        "this; none: never",
        source="official code, CREMA-D (UR-Funny: 5)",
        at_least=0,
    )
    clip_norm: float = option(
        1.0, "norm to which all gradients together are clipped", source="official code, CREMA-D (UR-Funny: 5)", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window)


class AGM(Strategy):
    """Adaptive gradient modulation: every modality's Shapley logits carry their own coefficient in the backward pass.

    Li, Li, Hu, Lei, Li, Zhou: Boosting Multi-modal Model Performance with Adaptive Gradient Modulation, ICCV 2023,
    https://arxiv.org/abs/2308.07686.

    The network is a set function of the modalities: ``f(S) [B, C]`` are its logits with the *inputs* outside S at zero.
    ``f(all)`` is the train-mode pass; every other ``f(S)`` is taken after it in eval mode, with gradient; ``f(none)``
    counts as 0. Then::

        phi_m = sum over S without m of |S|! (M-|S|-1)! / M! (f(S + m) - f(S))    [B, C], sum_m phi_m = f(all)
        s_m   = mean_i -log max(softmax(phi_m)[i, y_i], 1e-8)
        r_m   = exp(M / (M-1) (mean_j s_j - s_m)),   tau_m the same of the running means of s before this batch
        kappa_m = exp(alpha min(tau_m - r_m, cap))

    and ``d CE / d phi_m`` is multiplied by ``kappa_m``. No hooks are needed: with ``g = d CE(z, y) / d z`` detached,
    the gradient is that of ``sum_m kappa_m <g, phi_m>``, which is linear in the ``f(S)``. For M = 2::

        (kappa_1 + kappa_2)/2 <g, f(all)> + (kappa_1 - kappa_2)/2 <g, f(1) - f(2)>

    A modality that does better than its history demands (``r > tau``) gets ``kappa < 1``. The fusion is modulated too.
    The running means are over all steps, inside the window or not.

    Neutral: ``alpha=0`` and ``clip_above=none``, or a window of ``1,1``: equal to joint, bit by bit.

    Departures from the official code: every encoder sees its own modality only, so the ablated passes need no more than
    ``encoder(x)`` and ``encoder(0)`` in eval mode, the second on one sample; coefficients are back at 1 after the
    window (there the last ones stay); ``f(none)`` is not computed; the clip is a ``torch.where`` and belongs to the
    window like the rest; cap and clip are the same for any number of modalities. An optimiser that normalises its
    gradient (AdamW) cancels what the kappas have in common.

    Logs: ``kappa/m`` (as applied: 1 outside the window) and ``score/m`` (nats).
    Cost: two forward and two backward passes of every encoder on the batch and one on a single sample (outside the
    window no backward of the extra ones), and ``2^M - 1`` evaluations of the fusion; official code: 4 and 3 at M = 2.

    Raises:
        UserError: options out of bounds.
    """

    name = "agm"
    idea = (
        "The fused logits are split into Shapley contributions of the modalities, and each contribution gets its "
        "own factor in the backward pass. A modality that is ahead of its usual share is slowed, one behind it is"
        " sped up."
    )
    family = "optimization"
    reference = "Li et al., ICCV 2023, arXiv 2308.07686"
    min_modalities = 2
    Options = AGMOptions

    shapley: Tensor
    running: Tensor
    steps: Tensor

    def setup(self, task: Task) -> None:
        super().setup(task)
        names = task.modalities
        self.coalitions = [set(s) for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]
        self.register_buffer("shapley", shapley_weights(names, self.coalitions), persistent=False)
        self.register_buffer("running", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

    @property
    def active(self) -> bool:
        """Whether the current epoch lies in the window."""
        return self.task.within(self.options.window)

    def replay_key(self) -> Hashable | None:
        return self.active

    def ablated(self, batch: Batch) -> list[Tensor]:
        """``f(S) [B, C]`` of every coalition but none and all, in eval mode; batch-norm statistics stay as they are."""
        with eval_mode(self.model):
            # in eval mode samples do not see one another: the input of zeros goes along as one more
            inputs = {m: torch.cat([x, torch.zeros_like(x[:1])]) for m, x in batch.inputs.items()}
            encoded = self.model.encode(inputs)
            present = self._hide({m: f[:-1] for m, f in encoded.items()}, batch)
            absent = self._hide({m: f[-1:].expand_as(present[m]) for m, f in encoded.items()}, batch)
            partial = self.coalitions[:-1]
            features = {m: torch.cat([(present if m in s else absent)[m] for s in partial]) for m in present}
            return list(self.fuse(features).split(len(batch)))

    @staticmethod
    def _hide(features: Mapping[str, Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """Features of the samples' hidden modalities at zero, as in :meth:`forward`."""
        if batch.keep is None:
            return features
        return {m: f * batch.keep[m].unsqueeze(1) for m, f in features.items()}

    def scores(self, logits: Tensor, target: Tensor) -> Tensor:
        """``s [M]`` from the detached logits ``[2^M - 1, B, C]`` of the coalitions."""
        weights = self.shapley.to(logits)[:, :, None, None]
        shares = (weights * logits).sum(1) / math.factorial(len(weights))
        mass = F.softmax(shares, 2).gather(2, target.expand(len(shares), -1).unsqueeze(2))
        return -mass.clamp_min(FLOOR).log().mean((1, 2))

    def coefficients(self, score: Tensor) -> Tensor:
        """``kappa [M]`` of this step's scores against the running means."""
        gap = standing(self.running).to(score) - standing(score)
        return torch.exp(self.options.alpha * gap.clamp_max(math.inf if self.options.cap is None else self.options.cap))

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint loss's value with the modulated gradient; the running means take this batch in."""
        joint, logs = super().loss(output, batch)
        with torch.set_grad_enabled(self.active):
            logits = torch.stack([*self.ablated(batch), output.logits])
        score = self.scores(logits.detach(), batch.target)
        kappa = self.coefficients(score) if self.active else torch.ones_like(score)
        self.steps += 1
        self.running += (score - self.running) / self.steps
        for m, k, s in zip(self.task.modalities, kappa, score, strict=True):
            logs[f"kappa/{m}"], logs[f"score/{m}"] = k, s
        if not self.active:
            return joint, logs
        fused = output.logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(fused, batch.target), fused)
        weights = (kappa[:, None] * self.shapley).sum(0) / math.factorial(len(kappa))
        surrogate = (weights[:, None, None] * gradient * logits).sum()
        return joint.detach() + surrogate - surrogate.detach(), logs

    def after_backward(self, output: Output, batch: Batch) -> None:
        """Clip all gradients where the fusion's are large, inside the window."""
        if not self.active or self.options.clip_above is None:
            return
        head = [p.grad for p in self.model.fusion.parameters() if p.grad is not None and p.dim() >= 2]
        every = [p.grad for p in self.parameters() if p.grad is not None]
        largest = torch.stack(torch._foreach_norm(head, math.inf)).max()
        factor = (self.options.clip_norm / (norm(every) + 1e-6)).clamp_max(1.0)
        torch._foreach_mul_(every, torch.where(largest > self.options.clip_above, factor, 1.0))


def shapley_weights(names: list[str], coalitions: list[set[str]]) -> Tensor:
    """``[M, 2^M - 1]``: M! times the weight of ``f(S)`` in ``phi_m``; whole numbers, so that kappa = 1 is exact."""
    count, f = len(names), math.factorial
    rows = [
        [f(len(s) - 1) * f(count - len(s)) if m in s else -f(len(s)) * f(count - len(s) - 1) for s in coalitions]
        for m in names
    ]
    return torch.tensor(rows, dtype=torch.float32)


def standing(score: Tensor) -> Tensor:
    """``r [M]``: exp of how far the others' scores lie above a modality's own, on average; > 1 is better than they."""
    count = len(score)
    return torch.exp(count / (count - 1) * (score.mean() - score))


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, with gradient as outside; every part's own mode restored afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
