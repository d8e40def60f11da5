"""The options of UDI: every choice that the paper leaves open, with the default we take."""

from __future__ import annotations

from dataclasses import dataclass

from balancebench_udi.branches import BranchOptions
from balancebench_udi.config import option
from balancebench_udi.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class UDIOptions(BranchOptions):
    """Options of UDI. A source of "ours" marks a choice that the accessible text of the paper leaves open."""

    anchor: str = option(
        AUTO, "auto, or the modality that leads whatever its accuracy (the paper's ablation, Table 4)", source="paper"
    )
    tie: float = option(
        0.5,
        "accuracy points within which the lower predictive entropy decides on the anchor",
        source="ours; the rule itself: paper",
        at_least=0,
        at_most=100,
    )
    tie_rule: str = option(
        "points",
        "how close counts as tied: within tie, or within one binomial standard error of the best validation accuracy",
        source="ours",
        choices=("points", "standard_error"),
    )
    follower_epochs: int | None = option(
        None, "epochs of a follower's phase; none: the run's epochs", source="ours", at_least=1
    )
    patience: int | None = option(
        None,
        "epochs without a better validation accuracy after which a phase alone or of a follower stops (15, say); none: "
        "never",
        source="ours",
        at_least=1,
    )
    warm_start: bool = option(
        False, "followers go on from their own unimodal weights instead of new ones", source="ours"
    )
    select: str = option(
        "follower",
        "whose validation accuracy picks a follower's best epoch: its own, or that of its anchors and it fused",
        source="ours",
        choices=("follower", "fused"),
    )
    weights: str = option(
        "dynamic",
        "dynamic: alpha from the alignment of gradients, once an epoch; static: alpha_con and alpha_com",
        source="paper",
        choices=("dynamic", "static"),
    )
    alpha_con: float = option(0.5, "weight of consistency with weights=static", source="paper's ablation", at_least=0)
    alpha_com: float = option(
        0.5, "weight of complementarity with weights=static", source="paper's ablation", at_least=0
    )
    unaligned: str = option(
        "zero",
        "alpha where neither gradient agrees with that of classification: zero, or hold the previous epoch's",
        source="ours",
        choices=("zero", "hold"),
    )
    smoothing: float = option(
        0.0,
        "share of the previous epoch's alpha in the new one, from a follower's second epoch on",
        source="ours",
        at_least=0,
        at_most=1,
    )
    controller_batch: str = option(
        "first",
        "the batch on which gradients are compared before an epoch: its first one, or the last of the previous epoch "
        "(in a follower's first epoch the first one)",
        source="ours",
        choices=("first", "previous"),
    )
    align: str = option(
        "encoder",
        "gradients that are compared: with respect to all parameters of the follower's encoder, to those of its last "
        "block, or to its features",
        source="ours",
        choices=("encoder", "last_block", "features"),
    )
    similarity: str = option(
        "dot", "how gradients are compared; the cosine ignores their length", source="paper", choices=("dot", "cosine")
    )
    temperature: float = option(1.0, "divides both logits in the consistency term", source="ours", above=0)
    estimator: str = option(
        "full",
        "pairs in CLUB: every anchor with every follower sample, or with one drawn at random",
        source="ours",
        choices=("full", "sampled"),
    )
    reduction: str = option(
        "mean",
        "CLUB over the feature dimensions; sum is the literal one",
        source="ours",
        choices=("mean", "sum"),
    )
    normalise: str = option(
        "layernorm",
        "features before CLUB: layernorm without parameters, without which the follower can lower the bound by growing "
        "its features; or none",
        source="ours",
        choices=("layernorm", "none"),
    )
    variance: str = option(
        "learned", "variance of q: learned, or one (CLUBMean)", source="CLUB, official code", choices=("learned", "one")
    )
    q_hidden: int = option(512, "twice the hidden width of q", source="ours", at_least=2)
    q_lr: float = option(1e-3, "learning rate of q's own Adam", source="ours", above=0)
    q_steps: int = option(1, "steps of q in one training step (5 in CLUB's own example)", source="ours", at_least=1)
    q_order: str = option(
        "before",
        "fit q before the follower's update, so that the bound is fresh, or after it",
        source="ours; after in CLUB, official code",
        choices=("before", "after"),
    )
    q_warmup_epochs: int = option(
        1, "epochs of q alone on the features of the initial follower", source="ours", at_least=0
    )
    followers: str = option(
        "independent",
        "with three modalities and more: every follower relates to the anchor alone, or sequential: to all branches "
        "before it as well, with the mean of the losses",
        source="ours",
        choices=("independent", "sequential"),
    )
    anchor_view: str = option(
        "batch",
        "what a follower sees of its anchors: their reading of the same augmented batch (made once where nothing is "
        "augmented), or cached: of the clean training split, once a phase",
        source="ours",
        choices=("batch", "cached"),
    )
    fusion: str = option(
        "sum",
        "prediction from the branches: sum of logits, mean of probabilities, logits weighted by validation accuracy; "
        "or probe: a linear classifier on all frozen features, trained in a phase of its own (report it separately)",
        source="ours",
        choices=("sum", "mean_probability", "accuracy_weighted", "probe"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "dynamic" and (self.alpha_con, self.alpha_com) != (0.5, 0.5):
            raise UserError(
                f"alpha_con and alpha_com must stay at 0.5 with weights=dynamic, found {self.alpha_con} and "
                f"{self.alpha_com}: set weights=static to use them"
            )
        if self.tie_rule != "points" and self.tie != 0.5:
            raise UserError(f"tie must stay at 0.5 with tie_rule={self.tie_rule}, found {self.tie}: set one of the two")
