"""UDI: one modality is trained alone and frozen; it guides the training of every other one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi.branches import BranchStrategy
from balancebench_udi.errors import UserError
from balancebench_udi.grads import dot, gradients
from balancebench_udi.strategy import Batch, Phase, Task, accuracy
from balancebench_udi.udi.club import CLUB
from balancebench_udi.udi.estimators import Estimators
from balancebench_udi.udi.losses import choose_anchor, jensen_shannon, normalised
from balancebench_udi.udi.options import AUTO, UDIOptions

__all__ = ["CLUB", "UDI", "UDIOptions"]

TERMS = ("consistency", "complementarity")
CLASSIFIER = "classifier"
TIE = 0.005
"""Difference in validation accuracy up to which branches count as similar, and entropy decides. Ours: the paper has no
number."""


@dataclass(frozen=True)
class Follow(Phase):
    """The phase in which ``followers`` (one, unless training is joint) are guided by the ``guides``."""

    guides: tuple[str, ...] = ()
    followers: tuple[str, ...] = ()


class Read(NamedTuple):
    """Features ``{m: [B, D_m]}`` and logits ``{m: [B, C]}`` of branches."""

    features: dict[str, Tensor]
    logits: dict[str, Tensor]


class UDI(BranchStrategy):
    """Unidirectional Dynamic Interaction, Wang et al., 2025, https://arxiv.org/abs/2509.02281.

    No joint loss: *Balanced Multimodal Learning: An Unidirectional Dynamic Interaction Perspective* trains modalities
    one after another, and information flows from the anchor to the followers only. Branch m is an encoder with features
    ``f^m [B, D_m]`` and a linear head with logits ``z^m [B, C]``, ``y^m = softmax(z^m)``.

    1. Every branch is trained alone with cross-entropy (Eq. 3). The *anchor* has the highest validation accuracy; among
       branches at most half a point behind, the lowest mean entropy of ``y^m`` decides. It is frozen.
    2. The others, the *followers*, are trained in descending order of validation accuracy. Follower m starts anew and
       minimises (Eq. 12)

       ``L = CE(z^m, target) + a_con L_con + a_com L_com``,
       ``L_con = JS(softmax(sum_g z^g), y^m)``  (Eq. 4),  ``L_com = mean_g I_CLUB(f^g; f^m)``  (Eq. 8),

       over its guides g: the anchor and the followers before it (A.2, Eq. 26 and 27), all frozen. JS and I_CLUB are in
       nats, means over the batch. I_CLUB, an upper bound of mutual information from all B^2 pairs (:class:`CLUB`),
       needs ``q(f^m | f^g)``, a small network for every guide with an Adam of its own, fitted by maximum likelihood on
       detached features before every step (Algorithm 1, line 14).
    3. The controller (Eq. 13 to 16) sets both weights by how the gradients agree with that of the *fused* loss
       ``L_cls = CE(sum_g z^g + z^m, target)``, with respect to the follower alone:

       ``xi_k = max(0, <grad L_cls, grad L_k>)``,  ``a_k = xi_k / (xi_con + xi_com)``, or 0 where both are 0,

       over the parameters that both gradients have: encoder and head for L_con, the encoder for L_com.
    4. Prediction: ``sum_m z^m``; with ``fusion=classifier``, which the paper has on CMU-MOSEI, the run's own linear
       fusion, trained with cross-entropy on all frozen features in a last phase of the run's epochs.

    What the paper leaves open, and our reading: the half point of step 1; that followers start anew (``warm_start``);
    the mini-batch of the controller, here the first one of an epoch; q's width, and one step of it; the best epoch of a
    branch, by its own validation accuracy. ``controller=batch`` follows Algorithm 1, where the text of 3.3 has one
    batch an epoch. Features enter I_CLUB after a layer norm without parameters and I_CLUB is a mean over dimensions,
    where Eq. 8 has neither (``information=as_written``): without the norm a follower lowers the bound by the size of
    its features alone, and the sum over dimensions makes a_com follow the width of the encoder. Table 2's "controller
    only" is ``decoupled=false``: after step 1, which chooses the anchor, all branches start anew and are trained
    together on ``CE(sum_m z^m, target) + sum_m (a_con L_con + a_com L_com)``, the anchor's outputs detached in both
    terms.

    With both weights at 0 (``weights=static, alpha_con=0, alpha_com=0``) a follower's training is bit for bit that of a
    branch alone from the same initial weights. With one modality, UDI is that modality trained alone. The phases of
    step 1 are those of every method that trains its branches alone, and are trained once for all of them.

    Logs: ``loss``, ``loss/classification`` (of the branch, or of all in joint training), ``loss/consistency``,
    ``loss/complementarity`` (nats; unweighted, may be negative while q is untrained), ``loss/q`` (see
    :meth:`CLUB.learning_loss`), ``alpha/consistency``, ``alpha/complementarity``; of several followers trained together
    the means. A term whose static weight is 0 is neither computed nor logged.

    Cost in passes of one encoder: step 1, 1 forward + 1 backward each; a follower, 1 forward + 1 backward and 1 forward
    of every guide, once a phase where the guides' data are not augmented; the controller another 3 backward of the
    follower in one batch an epoch (in every batch with ``controller=batch``).

    Raises:
        UserError: options out of their bounds; an ``anchor`` that is no modality of the dataset; ``fusion=classifier``
            where the run's own fusion is not linear.
    """

    name = "udi"
    idea = (
        "There is no joint loss: the strongest modality is trained alone and frozen, then guides the others. They"
        " learn to agree with its predictions and to add what its features lack, as far as that helps the fused"
        " prediction."
    )
    version = 3
    family = "strategy"
    reference = "Wang et al., arXiv 2509.02281"
    Options = UDIOptions

    alone_accuracy: Tensor
    alone_entropy: Tensor
    alpha: Tensor

    @classmethod
    def check(cls, options: Any, modalities: Sequence[str], additive: bool) -> None:
        super().check(options, modalities, additive)
        if options.anchor != AUTO and options.anchor not in modalities:
            known = ", ".join([AUTO, *modalities])
            raise UserError(f"{cls.name}.anchor must be one of {known}, found {options.anchor!r}")
        if options.fusion == CLASSIFIER and not additive:
            raise UserError(
                f"{cls.name}.fusion={CLASSIFIER} needs a linear fusion, found one that does not split into shares: "
                "choose the fusion concat or sum"
            )

    @classmethod
    def planned_epochs(cls, options: Any, epochs: int, modalities: Sequence[str]) -> int:
        alone = super().planned_epochs(options, epochs, modalities)
        followers = len(modalities) - 1
        stages = followers if options.decoupled else min(followers, 1)
        classifier = epochs if options.fusion == CLASSIFIER and followers else 0
        return alone + stages * (options.follower_epochs or epochs) + classifier

    def setup(self, task: Task) -> None:
        super().setup(task)
        count = len(task.modalities)
        self.register_buffer("alone_accuracy", torch.zeros(count))  # on validation, of the branches trained alone
        self.register_buffer("alone_entropy", torch.zeros(count))
        self.register_buffer("alpha", torch.zeros(count, len(TERMS)))  # a row a modality
        self.aux_q = Estimators(self.options, self.model.feature_sizes, task.generator.initial_seed(), task.device)
        self._cached: tuple[str, Read] | None = None  # not saved: it follows from the guides' weights
        self._first = False  # whether the controller acts in the next step, and not in those after it

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of a follower's loss beside classification that are in use."""
        if self.options.weights == "dynamic":
            return TERMS
        given = (self.options.alpha_con, self.options.alpha_com)
        return tuple(term for term, alpha in zip(TERMS, given, strict=True) if alpha > 0)

    @property
    def order(self) -> list[str]:
        """The modalities, anchor first, then by descending validation accuracy of the branches alone."""
        accuracy = self.alone_accuracy.tolist()
        if self.options.anchor != AUTO:
            anchor = self.options.anchor
        else:
            anchor = self.modalities[choose_anchor(accuracy, self.alone_entropy.tolist(), TIE)]
        return sorted(self.modalities, key=lambda m: (m != anchor, -accuracy[self.modalities.index(m)]))

    def facts(self) -> dict[str, Any]:
        """The anchor, and what validation said of every branch trained alone: accuracy in [0, 1], entropy in nats."""
        return {
            "anchor": self.order[0],
            "validation_accuracy": dict(zip(self.modalities, self.alone_accuracy.tolist(), strict=True)),
            "validation_entropy": dict(zip(self.modalities, self.alone_entropy.tolist(), strict=True)),
        }

    # -- the schedule ------------------------------------------------------------------------------------------------

    def phase(self, index: int) -> Phase | None:
        """Every branch alone, in the order of fusion; then the followers; then the classifier if there is one."""
        count = len(self.modalities)
        if index < count:
            return super().phase(index)
        index -= count
        anchor, *followers = self.order
        epochs = self.options.follower_epochs or self.task.epochs
        if not self.options.decoupled:
            if index > 0 or not followers:
                return None
            return Follow(
                "joint",
                epochs,
                trainable=lambda name: any(self.is_branch(m, name) for m in self.modalities),
                keep=self.options.checkpoint,
                guides=(anchor,),
                followers=tuple(followers),
            )
        if index >= len(followers):
            return self._classifier() if index == len(followers) > 0 and self.options.fusion == CLASSIFIER else None
        m = followers[index]
        guides = (anchor, *followers[:index]) if self.options.followers == "progressive" else (anchor,)
        return Follow(
            f"follow/{m}",
            epochs,
            trainable=lambda name: self.is_branch(m, name),
            modalities=(*guides, m) if self.terms and not self._reads_once(guides) else (m,),
            monitor=(m,),
            keep=self.options.checkpoint,
            guides=guides,
            followers=(m,),
        )

    def _classifier(self) -> Phase:
        """The run's own fusion on frozen features; every branch is in eval mode and gets no gradient."""
        return Phase(
            CLASSIFIER,
            self.task.epochs,
            trainable=lambda name: name.startswith("model.fusion."),
            keep=self.options.checkpoint,
        )

    def begin_phase(self) -> None:
        """New followers and new q, each from a stream of its own."""
        phase = self.task.phase
        if not isinstance(phase, Follow):
            return
        options = self.options
        fresh = phase.followers if options.decoupled else self.modalities
        for m in () if options.warm_start else fresh:  # in place: the optimiser holds these tensors
            self.model.encoders[m].load_state_dict(self.task.make_encoder(m, "follower", "encoder", m).state_dict())
            self.heads[m].load_state_dict(self.task.make_head(m, "follower", "head", m).state_dict())
        if options.weights == "static":
            self.alpha.copy_(torch.tensor([options.alpha_con, options.alpha_com]))
        if "complementarity" in self.terms:
            self.aux_q.renew(phase.guides, phase.followers)
        if options.decoupled and self.terms and self._reads_once(phase.guides):
            self._cached = phase.name, self._read_clean(phase)

    def begin_epoch(self) -> None:
        self._first = self.options.weights == "dynamic" and self.options.controller == "epoch"

    def end_phase(self) -> None:
        """Note what validation says of a branch trained alone."""
        phase = self.task.phase
        if not isinstance(phase, Follow) and phase.name != CLASSIFIER:
            (m,) = phase.modalities or ()
            index = self.modalities.index(m)
            self.alone_accuracy[index], self.alone_entropy[index] = self.validation(m)

    # -- one step ----------------------------------------------------------------------------------------------------

    @property
    def controls(self) -> bool:
        """Whether the controller acts in the next step."""
        return self._first or (self.options.weights, self.options.controller) == ("dynamic", "batch")

    def replay_key(self) -> Hashable | None:
        return None if self._first and isinstance(self.task.phase, Follow) else ()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """A branch alone, the classifier: cross-entropy. A follower: fit q, the controller, the three terms."""
        phase = self.task.phase
        if not isinstance(phase, Follow):
            return super().step(batch)
        if self.options.decoupled and not self.terms:
            return super().step(batch)
        self.task.optimizer.zero_grad(set_to_none=True)
        if self.options.decoupled:
            (m,) = phase.followers
            features, logits = self.branch(m, batch.inputs)
            read, guides = Read({m: features}, {m: logits}), self._guides(phase, batch)
            fused = self._together(guides) + logits
            classification = F.cross_entropy(logits, batch.target)
        else:
            every = self.model.encode(batch.inputs)
            read = Read(every, self.alone(every))
            (anchor,) = phase.guides
            guides = Read({anchor: every[anchor]}, {anchor: read.logits[anchor].detach()})
            fused = self._together(read)
            classification = F.cross_entropy(fused, batch.target)
        total, logs = classification, {"loss/classification": classification.detach()}
        told: dict[str, list[Tensor]] = {}
        for m in phase.followers:
            index = self.modalities.index(m)
            if "complementarity" in self.terms:
                told.setdefault("loss/q", []).append(self.aux_q.fit(guides.features, m, read.features[m]))
            losses = self._terms(guides, m, read)
            if self.controls:
                task = fused if self.options.task_loss == "fused" else read.logits[m]
                self.alpha[index] = self._weights(m, F.cross_entropy(task, batch.target), losses)
            for term, alpha in zip(TERMS, self.alpha[index].clone().unbind(), strict=True):
                if term in losses:
                    total = total + alpha * losses[term]
                    told.setdefault(f"alpha/{term}", []).append(alpha)
                    told.setdefault(f"loss/{term}", []).append(losses[term].detach())
        total.backward()
        self.task.optimizer.step()
        self._first = False
        logs |= {name: torch.stack(values).mean() for name, values in told.items()}
        seen = read.logits[phase.followers[0]] if self.options.decoupled else fused
        return {"loss": total.detach(), "accuracy": accuracy(seen, batch.target), **logs}

    def _terms(self, guides: Read, m: str, read: Read) -> dict[str, Tensor]:
        """L_con and L_com of follower m, unweighted scalars in nats, as far as they are in use."""
        losses = {}
        if "consistency" in self.terms:
            leading, own = self._together(guides), read.logits[m]
            losses["consistency"] = jensen_shannon(F.log_softmax(leading, 1), F.log_softmax(own, 1))
        if "complementarity" in self.terms:
            losses["complementarity"] = self.aux_q.bound(guides.features, m, read.features[m])
        return losses

    def _weights(self, m: str, task: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
        """The controller: ``a_con, a_com`` from the gradients with respect to branch m."""
        branch = [*self.model.encoders[m].parameters(), *self.heads[m].parameters()]
        reference, *others = [gradients(loss, branch, retain_graph=True) for loss in (task, *losses.values())]
        scores = torch.stack([dot(reference, other) for other in others]).clamp_min(0)
        return normalised(scores)

    @staticmethod
    def _together(read: Read) -> Tensor:
        """Sum of the logits ``[B, C]``."""
        return torch.stack(list(read.logits.values())).sum(0)

    def _reads_once(self, guides: Sequence[str]) -> bool:
        """Whether the guides read the training split once a phase, as every batch would say the same."""
        return not any(self.task.augmented(g) for g in guides)

    def _guides(self, phase: Follow, batch: Batch) -> Read:
        """The guides on the batch, as data."""
        if self._reads_once(phase.guides):
            clean = self._clean(phase)
            return Read(*({g: x[batch.index] for g, x in part.items()} for part in clean))
        with torch.no_grad():
            read = {g: self.branch(g, batch.inputs) for g in phase.guides}
        return Read({g: f for g, (f, _) in read.items()}, {g: z for g, (_, z) in read.items()})

    def _clean(self, phase: Follow) -> Read:
        """The guides on the clean training split; read again, uncounted, where a resumed run has lost them."""
        if self._cached is None or self._cached[0] != phase.name:
            with self.model.passes.paused():
                self._cached = phase.name, self._read_clean(phase)
        return self._cached[1]

    def _read_clean(self, phase: Follow) -> Read:
        features = self.task.collect(lambda batch: self.model.encode(batch.inputs), "train", modalities=phase.guides)
        with torch.no_grad():
            return Read(features, self.alone(features))

    # -- read-outs ---------------------------------------------------------------------------------------------------

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The branches' logits, or the shares of the classifier where it speaks."""
        return self.model.fusion.shares(features) if self._classifies(features) else self.alone(features)

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Sum of the branches' logits; the classifier's from its phase on, where all branches are given."""
        return self.model.fusion(features) if self._classifies(features) else super().fuse(features)

    def _classifies(self, features: Mapping[str, Tensor]) -> bool:
        """Whether the classifier predicts: in its phase, which is the last one and at whose end the run is read out."""
        phase = getattr(self.task, "phase", None)  # None before training
        return phase is not None and phase.name == CLASSIFIER and len(features) == len(self.modalities)
