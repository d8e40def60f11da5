"""The two controls without any balancing: the joint loss, and the joint loss plus unimodal losses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor
from torch.nn import functional as F

from balancebench_udi import Batch, Output, Strategy, Task


class Joint(Strategy):
    """Joint training: one cross-entropy on the fused logits; the reference of every other method.

    Update: ``theta <- SGD(grad CE(fusion(f_1, ..., f_M), y))``. Read-outs: ``share`` where the fusion is additive.
    Cost: one forward and one backward pass of every encoder.
    """

    name = "joint"
    idea = (
        "One cross-entropy on the fused logits trains all encoders together. It is what every other method tries "
        "to improve on."
    )
    family = "none"
    reference = "the joint baseline of Peng et al., CVPR 2022, arXiv 2203.15332"

    def replay_key(self) -> Hashable | None:
        return ()


class Uniform(Strategy):
    """Joint loss plus one unimodal loss a modality, all with weight 1: the control of MMPareto.

    Update: ``L = CE(z, y) + sum_m CE(z_m, y)``, plain backward; ``z_m`` comes from a separate linear head on modality m
    (``alone``), ``z`` from the fusion. It isolates what the unimodal losses do without any Pareto weighting.
    Cost: one forward and one backward pass of every encoder.
    """

    name = "uniform"
    idea = (
        "The joint loss plus one classification loss a modality, all with weight 1. It shows what the added "
        "losses do without any weighting."
    )
    family = "objective"
    reference = "uniform baseline of Wei & Hu, ICML 2024, arXiv 2405.17730"

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.heads = task.make_heads()

    def replay_key(self) -> Hashable | None:
        return ()

    def alone(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.heads[m](f) for m, f in features.items()}

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        fused = F.cross_entropy(output.logits, batch.target)
        own = {m: F.cross_entropy(z, batch.target) for m, z in output.unimodal.items()}
        logs = {"loss/fused": fused.detach(), **{f"loss/{m}": value.detach() for m, value in own.items()}}
        total = fused
        for value in own.values():
            total = total + value
        return total, logs
