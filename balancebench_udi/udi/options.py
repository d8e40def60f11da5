"""The options of UDI: the choices of its paper, and those it leaves open that a table here varies."""

from __future__ import annotations

from dataclasses import dataclass

from balancebench_udi.branches import BranchOptions
from balancebench_udi.config import option
from balancebench_udi.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class UDIOptions(BranchOptions):
    """Options of UDI. A source of "ours" marks a choice that the paper does not state."""

    anchor: str = option(
        AUTO, "auto, or the modality that leads whatever its accuracy (Table 4 of the paper)", source="paper, 3.1"
    )
    weights: str = option(
        "dynamic",
        "dynamic: the controller sets both weights; static: alpha_con and alpha_com (Table 3 of the paper)",
        source="paper, 3.3",
        choices=("dynamic", "static"),
    )
    alpha_con: float = option(0.5, "weight of consistency with weights=static", source="ours", at_least=0)
    alpha_com: float = option(0.5, "weight of complementarity with weights=static", source="ours", at_least=0)
    task_loss: str = option(
        "fused",
        "the loss whose gradient the controller follows: cross-entropy of the fused prediction of follower and guides, "
        "or of the follower's own",
        source="paper, 3.3, Figure 2 and Algorithm 1",
        choices=("fused", "own"),
    )
    controller: str = option(
        "epoch",
        "when the controller sets the weights: in the first batch of every epoch, or in every batch",
        source="paper, 3.3; batch: its Algorithm 1",
        choices=("epoch", "batch"),
    )
    decoupled: bool = option(
        True,
        "train one follower after another on frozen guides; false: both terms and the controller inside joint training",
        source="paper, Table 2; how the latter is done is ours",
    )
    followers: str = option(
        "progressive",
        "with three modalities and more: a follower is guided by all branches before it, or independent: by the anchor",
        source="paper, A.2",
        choices=("progressive", "independent"),
    )
    information: str = option(
        "normalised",
        "scale of complementarity: features after a layer norm without parameters and a mean over dimensions, or "
        "as_written: features as they are, summed over dimensions",
        source="ours; as_written: paper, Eq. 8",
        choices=("normalised", "as_written"),
    )
    q_hidden: int = option(512, "twice the hidden width of q", source="CLUB, official code", at_least=2)
    q_steps: int = option(1, "steps of q before each step of a follower", source="paper, Algorithm 1", at_least=1)
    warm_start: bool = option(False, "followers go on from the weights of phase one instead of new ones", source="ours")
    follower_epochs: int | None = option(
        None, "epochs of a follower's phase; none: the run's epochs", source="ours", at_least=1
    )
    fusion: str = option(
        "sum",
        "prediction from the branches: sum of their logits, or classifier: the run's own linear fusion, trained on all "
        "frozen features after the last follower",
        source="paper, A.6: sum for two modalities, a classifier on concatenated features for CMU-MOSEI",
        choices=("sum", "classifier"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "dynamic" and (self.alpha_con, self.alpha_com) != (0.5, 0.5):
            raise UserError(
                f"alpha_con and alpha_com must stay at 0.5 with weights=dynamic, found {self.alpha_con} and "
                f"{self.alpha_com}: set weights=static to use them"
            )
        if not self.decoupled and (self.fusion != "sum" or self.warm_start):
            raise UserError(
                f"decoupled=false needs fusion=sum and warm_start=false, found {self.fusion} and "
                f"{str(self.warm_start).lower()}: set one or the other"
            )
