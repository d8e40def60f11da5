"""UDI: one modality is trained alone and frozen; it guides the training of every other one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi.branches import BranchStrategy
from balancebench_udi.errors import UserError
from balancebench_udi.grads import gradients
from balancebench_udi.nets.model import seeded
from balancebench_udi.seeding import derive
from balancebench_udi.strategy import Batch, Phase, Task, accuracy
from balancebench_udi.udi.club import CLUB
from balancebench_udi.udi.losses import alignments, choose_anchor, jensen_shannon, normalised
from balancebench_udi.udi.options import AUTO, UDIOptions

__all__ = ["CLUB", "UDI", "UDIOptions"]

TERMS = ("consistency", "complementarity")


@dataclass(frozen=True)
class Follow(Phase):
    """The phase in which ``follower`` is trained beside the frozen ``anchor``."""

    anchor: str = ""
    follower: str = ""


class Guide(NamedTuple):
    """Features ``[B, D_a]`` and logits ``[B, C]`` of the anchor."""

    features: Tensor
    logits: Tensor


class UDI(BranchStrategy):
    """Unidirectional Dynamic Interaction, Wang et al., 2025, https://arxiv.org/abs/2509.02281.

    No joint loss: *Balanced Multimodal Learning: An Unidirectional Dynamic Interaction Perspective* trains modalities
    one after another, and information flows from the anchor to the followers only. Branch m is an encoder with features
    ``f^m [B, D_m]`` and a linear head with logits ``z^m [B, C]``, ``p^m = softmax(z^m)``.

    1. Every branch is trained alone with cross-entropy. The *anchor* a is the one with the highest validation accuracy;
       among branches at most ``tie`` points behind, the one with the lowest mean entropy of ``p^m`` (nats), then the
       first. It is frozen, batch-norm statistics included.
    2. Every other branch m, a *follower*, starts anew and minimises

       ``L = CE(z^m, y) + alpha_con JS(p^a, p^m) + alpha_com I_CLUB(f^a; f^m)``  (JS: Eq. 4),

       with JS the Jensen-Shannon divergence and I_CLUB an upper bound of the mutual information (:class:`CLUB`), both
       in nats. I_CLUB needs ``q(f^m | f^a)``, a network of its own with its own Adam, fitted one step a batch on
       detached features; features enter it after a layer norm without parameters, and the bound is a mean over
       dimensions. Its gradient reaches f^m only.
       At the start of every epoch, on its first batch, with ``g`` the gradients with respect to the follower's encoder,

       ``s_k = max(0, <g_cls, g_k>)``,  ``alpha_k = s_k / (s_con + s_com)``, or 0 where both are 0.

       This moves neither weights nor batch-norm statistics nor any generator but the method's own.
    3. Prediction: ``sum_m z^m``.

    For M > 2 every follower relates to the anchor alone; followers neither see nor influence one another, in any order.
    With alpha at 0 (``weights=static, alpha_con=0, alpha_com=0``) a follower's training is bit for bit that of a branch
    alone from the same initial weights. With one modality, UDI is that modality trained alone.

    The authors' code was not available, nor was the whole paper: what is known of it is the losses, the choice of the
    anchor, and that alpha are "normalised positive alignments" from one batch an epoch. Every other default is our
    reading and an option; see :class:`UDIOptions` for the source of each. The first phases are those of every method
    that trains its branches alone, and are trained once for all of them.

    Logs: ``loss``, ``loss/classification``, ``loss/consistency``, ``loss/complementarity`` (nats; unweighted, may be
    negative while q is untrained), ``loss/q`` (see :meth:`CLUB.learning_loss`), ``alpha/consistency``,
    ``alpha/complementarity``. A term whose static weight is 0 is neither computed nor logged.

    Cost in passes of one encoder: phases alone, 1 forward + 1 backward each; a follower, 1 forward + 1 backward and 1
    forward of the anchor; for every epoch also 1 batch with 1 forward of both and 3 backward of the follower; once an
    epoch of forward passes of both for q's warm-up.

    Raises:
        UserError: options out of their bounds; an ``anchor`` that is no modality of the dataset.
    """

    name = "udi"
    family = "strategy"
    reference = "Wang et al., arXiv 2509.02281"
    Options = UDIOptions

    alone_accuracy: Tensor
    alone_entropy: Tensor
    trust: Tensor
    alpha: Tensor

    @classmethod
    def check(cls, options: Any, modalities: Sequence[str], additive: bool) -> None:
        super().check(options, modalities, additive)
        if options.anchor != AUTO and options.anchor not in modalities:
            known = ", ".join([AUTO, *modalities])
            raise UserError(f"{cls.name}.anchor must be one of {known}, found {options.anchor!r}")

    @classmethod
    def planned_epochs(cls, options: Any, epochs: int, modalities: Sequence[str]) -> int:
        alone = super().planned_epochs(options, epochs, modalities)
        return alone + (len(modalities) - 1) * (options.follower_epochs or epochs)

    def setup(self, task: Task) -> None:
        super().setup(task)
        count = len(task.modalities)
        self.register_buffer("alone_accuracy", torch.zeros(count))  # on validation, of the branches trained alone
        self.register_buffer("alone_entropy", torch.zeros(count))
        self.register_buffer("trust", torch.zeros(count))  # validation accuracy of the branches as they now are
        self.register_buffer("alpha", torch.zeros(len(TERMS)))
        self.seed = task.generator.initial_seed()
        # Which modality leads is known only later: there is one network for every pair of widths that can occur.
        sizes = list(self.model.feature_sizes.values())
        pairs = {(x, y) for i, x in enumerate(sizes) for j, y in enumerate(sizes) if i != j}
        with seeded(self.seed, "q"):
            self.aux_q = nn.ModuleDict({f"{x}x{y}": self._make_q(x, y) for x, y in sorted(pairs)})

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of a follower's loss beside classification that are in use."""
        if self.options.weights == "dynamic":
            return TERMS
        given = (self.options.alpha_con, self.options.alpha_com)
        return tuple(term for term, alpha in zip(TERMS, given, strict=True) if alpha > 0)

    @property
    def anchor(self) -> str:
        """The modality that leads: a function of the options and of what validation said of the branches alone."""
        if self.options.anchor != AUTO:
            return self.options.anchor
        index = choose_anchor(self.alone_accuracy.tolist(), self.alone_entropy.tolist(), self.options.tie / 100)
        return self.modalities[index]

    def facts(self) -> dict[str, Any]:
        """The anchor, and what validation said of every branch trained alone: accuracy in [0, 1], entropy in nats."""
        return {
            "anchor": self.anchor,
            "validation_accuracy": dict(zip(self.modalities, self.alone_accuracy.tolist(), strict=True)),
            "validation_entropy": dict(zip(self.modalities, self.alone_entropy.tolist(), strict=True)),
        }

    # -- the schedule ------------------------------------------------------------------------------------------------

    def phase(self, index: int) -> Phase | None:
        """Every branch alone, then every follower, both in the order of fusion."""
        if index < len(self.modalities):
            return super().phase(index)
        anchor = self.anchor
        followers = [m for m in self.modalities if m != anchor]
        index -= len(self.modalities)
        if index >= len(followers):
            return None
        m = followers[index]
        return Follow(
            f"follow/{m}",
            self.options.follower_epochs or self.task.epochs,
            trainable=lambda name: self.is_branch(m, name),
            modalities=(anchor, m) if self.terms else (m,),
            monitor=(m,) if self.options.select == "follower" else (anchor, m),
            keep=self.options.checkpoint,
            anchor=anchor,
            follower=m,
        )

    def begin_phase(self) -> None:
        """A new follower, a new q and its warm-up, all from streams of this follower's own."""
        phase = self.task.phase
        if not isinstance(phase, Follow):
            return
        m, options = phase.follower, self.options
        self.task.generator.manual_seed(derive(self.seed, "follow", m))
        if not options.warm_start:  # in place: the optimiser holds these tensors
            self.model.encoders[m].load_state_dict(self.task.make_encoder(m, "follower", "encoder", m).state_dict())
            self.heads[m].load_state_dict(self.task.make_head(m, "follower", "head", m).state_dict())
        first = (0.0, 0.0) if options.weights == "dynamic" else (options.alpha_con, options.alpha_com)
        self.alpha.copy_(torch.tensor(first))
        if "complementarity" in self.terms:
            with seeded(self.seed, "q", m):
                fresh = self._make_q(*self._widths(phase))
            self._q(phase).load_state_dict(fresh.state_dict())
            if options.q_warmup_epochs:
                self._warm_up(phase)

    def begin_epoch(self) -> None:
        """The controller: the epoch's alpha from its first batch, in train mode, leaving everything else as it was."""
        phase, options = self.task.phase, self.options
        if not isinstance(phase, Follow) or options.weights == "static":
            return
        m, batch = phase.follower, self.task.first_batch()
        encoder = self.model.encoders[m]
        with _undisturbed(encoder, self.task.device):
            with torch.set_grad_enabled(options.align == "encoder"):
                features = self.model.encode({m: batch.inputs[m]})[m]
            wrt: list[Any] = list(encoder.parameters()) if options.align == "encoder" else [features.requires_grad_()]
            losses = self._losses(phase, features, self.heads[m](features), self._guide(phase, batch), batch.target)
            classification, *others = [gradients(loss, wrt, retain_graph=True) for loss in losses.values()]
        scores = alignments(classification, others, cosine=options.similarity == "cosine")
        fresh = normalised(scores, self.alpha if options.unaligned == "hold" else torch.zeros_like(self.alpha))
        kept = options.smoothing if self.task.epoch > 0 else 0.0
        self.alpha.copy_(kept * self.alpha + (1 - kept) * fresh)

    def end_phase(self) -> None:
        """Note what validation says of a branch trained alone, and of a follower where the fusion asks for it."""
        phase = self.task.phase
        if isinstance(phase, Follow):
            if self.options.fusion == "accuracy_weighted":
                self.trust[self.modalities.index(phase.follower)] = self.validation(phase.follower)[0]
            return
        (m,) = phase.modalities or ()
        index = self.modalities.index(m)
        self.alone_accuracy[index], self.alone_entropy[index] = self.validation(m)
        self.trust[index] = self.alone_accuracy[index]

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """A branch alone: cross-entropy. A follower: fit q, then the three terms, then the optimiser's step."""
        phase = self.task.phase
        if not isinstance(phase, Follow) or not self.terms:
            return super().step(batch)
        features, logits = self.branch(phase.follower, batch.inputs)
        guide = self._guide(phase, batch)
        logs: dict[str, Tensor] = {}
        fits = "complementarity" in self.terms
        if fits and self.options.q_order == "before":
            logs["loss/q"] = self._fit(phase, guide.features, features)
        losses = self._losses(phase, features, logits, guide, batch.target)
        total = losses["classification"]
        for term, alpha in zip(TERMS, self.alpha.unbind(), strict=True):
            if term in losses:
                total = total + alpha * losses[term]
                logs[f"alpha/{term}"] = alpha
        self.task.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.task.optimizer.step()
        if fits and self.options.q_order == "after":
            logs["loss/q"] = self._fit(phase, guide.features, features)
        logs.update({f"loss/{name}": loss.detach() for name, loss in losses.items()})
        return {"loss": total.detach(), "accuracy": accuracy(logits, batch.target), **logs}

    def _guide(self, phase: Follow, batch: Batch) -> Guide:
        """The anchor on the batch, as data."""
        with torch.no_grad():
            return Guide(*self.branch(phase.anchor, batch.inputs))

    def _losses(
        self, phase: Follow, features: Tensor, logits: Tensor, guide: Guide, target: Tensor
    ) -> dict[str, Tensor]:
        """Classification and the terms in use, unweighted scalars in nats."""
        losses = {"classification": F.cross_entropy(logits, target)}
        if "consistency" in self.terms:
            heat = self.options.temperature
            log_p, log_q = F.log_softmax(guide.logits / heat, 1), F.log_softmax(logits / heat, 1)
            losses["consistency"] = jensen_shannon(log_p, log_q)
        if "complementarity" in self.terms:
            permutation = self._shuffled(len(target)) if self.options.estimator == "sampled" else None
            x, y = self._scaled(guide.features), self._scaled(features)
            losses["complementarity"] = self._q(phase).bound(x, y, permutation)
        return losses

    # -- q -----------------------------------------------------------------------------------------------------------

    def _make_q(self, x_size: int, y_size: int) -> CLUB:
        options = self.options
        q = CLUB(x_size, y_size, options.q_hidden, options.q_lr, options.variance == "one", options.reduction)
        return q.to(self.task.device)

    def _widths(self, phase: Follow) -> tuple[int, int]:
        sizes = self.model.feature_sizes
        return sizes[phase.anchor], sizes[phase.follower]

    def _q(self, phase: Follow) -> CLUB:
        """Models the follower's features given the anchor's."""
        x, y = self._widths(phase)
        return self.aux_q[f"{x}x{y}"]  # type: ignore[return-value]

    def _fit(self, phase: Follow, anchor: Tensor, follower: Tensor) -> Tensor:
        return self._q(phase).fit(self._scaled(anchor), self._scaled(follower), self.options.q_steps)

    def _scaled(self, features: Tensor) -> Tensor:
        return F.layer_norm(features, features.shape[1:]) if self.options.normalise == "layernorm" else features

    def _shuffled(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.task.generator, device=self.task.device)

    def _warm_up(self, phase: Follow) -> None:
        """Fit q to the features of the initial follower, with batch statistics as in training; nothing else moves."""
        encoder = self.model.encoders[phase.follower]

        def encode(batch: Batch) -> dict[str, Tensor]:
            encoder.train(len(batch) > 1)  # a single sample has no batch statistics
            return self.model.encode(batch.inputs)

        count = len(self.task.target("train"))
        with _undisturbed(encoder, self.task.device):
            seen = self.task.collect(encode, "train", self._shuffled(count), (phase.anchor, phase.follower))
        for _ in range(self.options.q_warmup_epochs):
            for rows in self._shuffled(count).tensor_split(self.task.steps_per_epoch):
                self._fit(phase, seen[phase.anchor][rows], seen[phase.follower][rows])

    # -- read-outs ---------------------------------------------------------------------------------------------------

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The branches' logits, weighted where the fusion weights them; None for the mean of probabilities."""
        logits = self.alone(features)
        if self.options.fusion == "sum" or len(logits) == 1:
            return logits
        if self.options.fusion == "mean_probability":
            return None
        trust = torch.stack([self.trust[self.modalities.index(m)] for m in logits])
        weights = (trust / trust.sum().clamp_min(torch.finfo(trust.dtype).tiny)).unbind()
        return {m: w * z for w, (m, z) in zip(weights, logits.items(), strict=True)}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Sum of the shares, or the logarithm of the mean of probabilities, over the branches that are given."""
        shares = self.shares(features)
        if shares is not None:
            return torch.stack(list(shares.values())).sum(0)
        log_p = torch.stack([F.log_softmax(z, 1) for z in self.alone(features).values()])
        return log_p.logsumexp(0) - math.log(len(log_p))


@contextlib.contextmanager
def _undisturbed(encoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Passes inside leave the encoder's buffers (batch statistics) and torch's own generators as they were."""
    saved = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
