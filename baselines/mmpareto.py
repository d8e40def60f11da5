"""MMPareto: each encoder follows the Pareto combination of the multimodal and its own unimodal gradient."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi import Batch, Options, Output, Strategy, Task, option
from balancebench_udi.grads import dot, gradients, norm
from balancebench_udi.strategy import accuracy

TINY = 1e-12
"""Added to the norm that divides; a gradient that vanishes altogether stays zero."""


@dataclass(frozen=True)
class MMParetoOptions(Options):
    """Options of :class:`MMPareto`."""

    gamma: float = option(1.5, "how much encoder gradients are enlarged", source="official code", above=0)
    rescale: str = option(
        "tensor",
        "whether the lost magnitude is restored per parameter tensor or per encoder",
        source="official code",
        choices=("tensor", "encoder"),
    )
    weights: str = option(
        "pareto",
        "min-norm weights in conflict, or the plain sum always (an ablation that leaves gamma alone)",
        source="official code",
        choices=("pareto", "uniform"),
    )


class MMPareto(Strategy):
    """MultiModal Pareto, Wei & Hu, ICML 2024, https://arxiv.org/abs/2405.17730.

    Losses: ``L_mm = CE(fusion(f), y)`` and one ``L_m = CE(head_m(f_m), y)`` a modality, each with its own linear head.
    For encoder m, with ``G_mm`` and ``G_m`` the gradients of L_mm and L_m over all its parameters as one vector (batch
    norm included),

        ``w = 1/2``  if ``<G_mm, G_m> > 0``,
        ``w = <G_m - G_mm, G_m> / ||G_mm - G_m||^2``  otherwise: the point of least norm between the two,
        ``h = 2 w G_mm + 2 (1 - w) G_m``,  ``s = G_mm + G_m``,
        ``gradient = gamma * max(1, ||s|| / ||h||) * h``.

    ``rescale="tensor"`` takes the two norms per parameter tensor (official), ``"encoder"`` over the whole encoder:
    only then is the update in every conflict a descent direction of both losses. Where G_m = -c G_mm exactly, h is zero
    up to rounding and stays finite. Fusion and heads get their plain gradients, without gamma. Evaluation uses the
    fusion (``alone`` reads the heads). The same rule holds for any number of modalities.

    ``weights="uniform"`` keeps w = 1/2, so that gradient = gamma * s: it shows what gamma does by itself, in one
    backward pass. With gamma = 1 it is bit for bit the method uniform. With ``"pareto"`` and gamma = 1, steps without
    conflict equal uniform's up to the order of summation. No setting equals joint, which has no unimodal losses.

    Departures from the official code: the learning rate follows the run's schedule (there it is built, never stepped);
    heads start as everywhere in this benchmark; two backward passes an encoder, not four (s is the sum of the two
    gradients, and L_m reaches no other encoder). The clamps of the official solver act only on weights below 0.001
    or above 0.999.

    Under Adam or AdamW gamma and the rescaling cancel almost wholly; the method is meant for SGD.

    Logs: ``loss/fused`` and ``loss/m`` (nats), ``weight/m`` (w, of L_mm's gradient), ``cosine/m`` between the two.
    Cost: one forward and two backward passes of every encoder (with ``weights="uniform"`` one).

    Raises:
        UserError: fewer than two modalities, or options out of their bounds.
    """

    name = "mmpareto"
    idea = (
        "Where the joint loss and a modality's own loss pull an encoder in opposite directions, their gradients "
        "are combined so that both losses fall. The combined gradient is then enlarged to keep the noise that "
        "helps generalisation."
    )
    family = "objective"
    reference = "Wei & Hu, ICML 2024, arXiv 2405.17730"
    min_modalities = 2
    Options = MMParetoOptions

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.heads = task.make_heads()

    def replay_key(self) -> Hashable | None:
        return ()

    def alone(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.heads[m](f) for m, f in features.items()}

    def losses(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """``L_mm`` and ``{m: L_m}``."""
        own = {m: F.cross_entropy(z, batch.target) for m, z in output.unimodal.items()}
        return F.cross_entropy(output.logits, batch.target), own

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.total(*self.losses(output, batch))

    @staticmethod
    def total(fused: Tensor, own: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses, and what to log of them."""
        total = fused
        for value in own.values():
            total = total + value
        return total, {"loss/fused": fused.detach(), **{f"loss/{m}": value.detach() for m, value in own.items()}}

    def after_backward(self, output: Output, batch: Batch) -> None:
        """With uniform weights: only enlarge the encoders' gradients."""
        if self.options.gamma != 1:
            torch._foreach_mul_(
                [p.grad for p in self.model.encoders.parameters() if p.grad is not None], self.options.gamma
            )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if self.options.weights == "uniform":
            return super().step(batch)
        self.task.optimizer.zero_grad(set_to_none=True)
        output = self.forward(batch)
        fused, own = self.losses(output, batch)
        encoders = {m: list(self.model.encoders[m].parameters()) for m in own}
        fusion = list(self.model.fusion.parameters())
        every = [*fusion, *(p for parameters in encoders.values() for p in parameters)]
        multimodal = dict(zip(every, gradients(fused, every, retain_graph=True), strict=True))
        total, logs = self.total(fused, own)
        for p in fusion:
            p.grad = multimodal[p]
        for m, parameters in encoders.items():
            head = list(self.heads[m].parameters())
            unimodal = gradients(own[m], [*parameters, *head])
            g_mm, g_m = [multimodal[p] for p in parameters], unimodal[: len(parameters)]
            combined, weight, cosine = combine(g_mm, g_m, self.options.gamma, self.options.rescale)
            for p, g in zip([*parameters, *head], [*combined, *unimodal[len(parameters) :]], strict=True):
                p.grad = g
            logs.update({f"weight/{m}": weight, f"cosine/{m}": cosine})
        self.task.optimizer.step()
        return {"loss": total.detach(), "accuracy": accuracy(output.logits, batch.target), **logs}


def combine(g_mm: list[Tensor], g_m: list[Tensor], gamma: float, rescale: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """(gradient tensors of one encoder, weight of ``g_mm``, cosine), all on the device."""
    a, b, c = norm(g_mm).square(), norm(g_m).square(), dot(g_mm, g_m)
    least = (b - c) / (a + b - 2 * c).clamp_min(torch.finfo(a.dtype).tiny)
    weight = torch.where(c > 0, torch.full_like(c, 0.5), least)
    h = torch._foreach_add(torch._foreach_mul(g_mm, 2 * weight), torch._foreach_mul(g_m, 2 * (1 - weight)))
    s = torch._foreach_add(g_mm, g_m)
    if rescale == "encoder":
        torch._foreach_mul_(h, gamma * (norm(s) / (norm(h) + TINY)).clamp_min(1))
    else:
        lost = torch.stack(torch._foreach_norm(s)) / (torch.stack(torch._foreach_norm(h)) + TINY)
        torch._foreach_mul_(h, list((gamma * lost.clamp_min(1)).unbind()))
    return list(h), weight, c / (a.sqrt() * b.sqrt()).clamp_min(torch.finfo(a.dtype).tiny)
