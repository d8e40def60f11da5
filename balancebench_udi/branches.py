"""Methods without a joint loss: one branch (encoder and linear head) a modality, each trained alone first."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi.config import Options, option
from balancebench_udi.strategy import Batch, Phase, Strategy, Task


@dataclass(frozen=True)
class BranchOptions(Options):
    """Options of every method that trains its modalities alone first."""

    checkpoint: str = option(
        "best_val",
        "weights a branch is left with: of its best validation epoch or of the last",
        source="ours, our reading of UDI",
        choices=("best_val", "last"),
    )


class BranchStrategy(Strategy):
    """Base: phase m < M trains branch m alone with cross-entropy; ``alone`` reads the branches' own heads.

    These phases are the same in every subclass with the same patience, so they are trained once and reused.
    Features come from ``model.encoders``, classifiers from ``heads``; the model's own fusion is not used.
    """

    family = "none"
    Options = BranchOptions

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.heads = task.make_heads()

    @property
    def modalities(self) -> list[str]:
        return self.task.modalities

    @property
    def patience(self) -> int | None:
        """Epochs without a better validation accuracy after which a branch alone stops; None: it never stops early."""
        return None

    def is_branch(self, m: str, name: str) -> bool:
        """Whether the tensor ``name`` belongs to branch m."""
        return name.startswith((f"model.encoders.{m}.", f"heads.{m}."))

    def phase(self, index: int) -> Phase | None:
        """Branch ``index``, alone, for the run's epochs or until its patience is over."""
        if index >= len(self.modalities):
            return None
        m = self.modalities[index]
        rule = "" if self.patience is None else f"/patience={self.patience}"
        return Phase(
            f"alone/{m}",
            self.task.epochs,
            trainable=lambda name: self.is_branch(m, name),
            modalities=(m,),
            keep=self.options.checkpoint,
            shared=f"alone/{m}{rule}",
            patience=self.patience,
        )

    @classmethod
    def planned_epochs(cls, options: Any, epochs: int, modalities: Sequence[str]) -> int:
        return epochs * len(modalities)

    def replay_key(self) -> Hashable | None:
        return ()

    def branch(self, m: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features ``[B, D_m]`` and logits ``[B, C]`` of branch m."""
        features = self.model.encode({m: inputs[m]})[m]
        return features, self.heads[m](features)

    def alone(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.heads[m](f) for m, f in features.items()}

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The fused logits are the sum of the branches' logits, so every branch's logits are its share."""
        return self.alone(features)

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Sum of the logits of the branches whose features are given."""
        return torch.stack(list(self.alone(features).values())).sum(0)

    def validation(self, m: str) -> tuple[Tensor, Tensor]:
        """Accuracy and mean predictive entropy (nats) of branch m on the validation split; device scalars.

        A reading, like the trainer's own validation: its passes are not counted as training.
        """

        def probe(batch: Batch) -> dict[str, Any]:
            log_p = F.log_softmax(self.branch(m, batch.inputs)[1], 1)
            return {"hit": log_p.argmax(1) == batch.target, "entropy": -(log_p.exp() * log_p).sum(1)}

        with self.model.passes.paused():
            seen = self.task.collect(probe, "val", modalities=(m,))
        return seen["hit"].float().mean(), seen["entropy"].mean()
