"""The two controls that never train jointly: every modality alone, and the sum of their logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from balancebench_udi import Task
from balancebench_udi.branches import BranchStrategy


class Unimodal(BranchStrategy):
    """Every modality alone: M independent networks; the prediction is that of the best one on validation.

    What "unimodal" means in PMR's and UDI's tables: encoder and linear head trained alone with cross-entropy, neither a
    read-out of a joint model (``share``) nor a probe. ``alone/m`` is each network's accuracy. The fused prediction
    follows the network with the highest validation accuracy (the first on a tie), so that its accuracy is that of the
    best single modality, chosen without the test split.
    Cost: one forward and one backward pass of every encoder an epoch, as joint.
    """

    name = "unimodal"
    idea = (
        "Every modality is trained alone; the prediction is that of the modality which is best on validation. It "
        "is the bar that fusion has to clear."
    )
    independent_phases = True
    reference = "unimodal baseline of Fan et al., CVPR 2023, arXiv 2211.07089"

    best: Tensor
    scores: Tensor

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.register_buffer("scores", torch.zeros(len(task.modalities)))
        self.register_buffer("best", torch.zeros(len(task.modalities)))

    def end_phase(self) -> None:
        """Note the branch's validation accuracy; the best branch so far speaks for all."""
        (m,) = self.task.phase.modalities or ()
        index = self.modalities.index(m)
        self.scores[index] = self.validation(m)[0]
        self.best.zero_()
        self.best[self.scores[: index + 1].argmax()] = 1.0

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return self.alone(features) if len(features) == 1 else None

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        logits = self.alone(features)
        if len(logits) == 1:
            return next(iter(logits.values()))
        weights = self.best.unbind()
        return torch.stack([w * z for w, z in zip(weights, logits.values(), strict=True)]).sum(0)


class Ensemble(BranchStrategy):
    """The sum of the logits of networks trained alone: the control of UDI, whose fusion it shares.

    ``z = sum_m z_m``. Its training is that of ``unimodal``; with the same specification it is reused.
    Cost: one forward and one backward pass of every encoder an epoch, as joint.
    """

    name = "ensemble"
    idea = (
        "Every modality is trained alone, then their logits are added. It shows what fusion gives without any "
        "interaction in training."
    )
    independent_phases = True
    reference = "the phase-one ensemble of UDI, Wang et al., arXiv 2509.02281"
