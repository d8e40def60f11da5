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
from balancebench_udi.seeding import derive
from balancebench_udi.strategy import Batch, Phase, Task, accuracy
from balancebench_udi.udi.club import CLUB
from balancebench_udi.udi.estimators import Estimators
from balancebench_udi.udi.losses import alignments, choose_anchor, jensen_shannon, normalised, standard_error
from balancebench_udi.udi.options import AUTO, UDIOptions

__all__ = ["CLUB", "UDI", "UDIOptions"]

TERMS = ("consistency", "complementarity")
PROBE = "probe"


@dataclass(frozen=True)
class Follow(Phase):
    """The phase in which ``follower`` is trained beside the frozen ``anchors`` (one, unless followers join them)."""

    anchors: tuple[str, ...] = ()
    follower: str = ""


class Guides(NamedTuple):
    """Features ``{a: [B, D_a]}`` and logits ``{a: [B, C]}`` of the anchors a."""

    features: dict[str, Tensor]
    logits: dict[str, Tensor]

    def take(self, rows: Tensor) -> Guides:
        """Those of the samples ``rows``."""
        return Guides({a: f[rows] for a, f in self.features.items()}, {a: z[rows] for a, z in self.logits.items()})


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
    With ``followers=sequential`` those already trained, in the order of fusion, are anchors of the next one as well: JS
    and I_CLUB are then means over its anchors, with a q for each. With ``fusion=probe`` a last phase of the run's
    epochs trains the run's own fusion, linear in the features, with cross-entropy, all encoders frozen.
    With alpha at 0 (``weights=static, alpha_con=0, alpha_com=0``) a follower's training is bit for bit that of a branch
    alone from the same initial weights. With one modality, UDI is that modality trained alone.
    ``patience`` ends phases alone and following early, never that of the probe.

    The authors' code was not available, nor was the whole paper: what is known of it is the losses, the choice of the
    anchor, and that alpha are "normalised positive alignments" from one batch an epoch. Every other default is our
    reading and an option; see :class:`UDIOptions` for the source of each. The first phases are those of every method
    that trains its branches alone, and are trained once for all of them.

    Logs: ``loss``, ``loss/classification``, ``loss/consistency``, ``loss/complementarity`` (nats; unweighted, may be
    negative while q is untrained), ``loss/q`` (see :meth:`CLUB.learning_loss`), ``alpha/consistency``,
    ``alpha/complementarity``. A term whose static weight is 0 is neither computed nor logged.

    Cost in passes of one encoder: phases alone, 1 forward + 1 backward each; a follower, 1 forward + 1 backward and 1
    forward of every anchor it has; for every epoch also 1 batch with 1 forward of both and 3 backward of the follower
    (with ``align=last_block`` of its last block, counted in full; with ``features`` of nothing); once an epoch of
    forward passes of both for q's warm-up. Where no anchor's data are augmented, or with ``anchor_view=cached``, the
    anchors' only cost is 1 forward over the training split for every follower. ``fusion=probe`` adds 1 forward of
    every encoder an epoch of its phase.
    ``controller_batch=previous`` makes all batches of the previous epoch again where the data are augmented.

    Raises:
        UserError: options out of their bounds; an ``anchor`` that is no modality of the dataset; ``fusion=probe`` where
            the run's own fusion is not linear.
    """

    name = "udi"
    idea = (
        "There is no joint loss: the strongest modality is trained alone and frozen, then guides the others. They"
        " learn to agree with its predictions and to add what its features lack, weighed anew in every batch."
    )
    version = 2
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
        if options.fusion == "probe" and not additive:
            raise UserError(
                f"{cls.name}.fusion=probe needs a linear fusion, found one that does not split into shares: "
                "choose the fusion concat or sum"
            )

    @classmethod
    def planned_epochs(cls, options: Any, epochs: int, modalities: Sequence[str]) -> int:
        alone = super().planned_epochs(options, epochs, modalities)
        probe = epochs if options.fusion == "probe" and len(modalities) > 1 else 0
        return alone + (len(modalities) - 1) * (options.follower_epochs or epochs) + probe

    def setup(self, task: Task) -> None:
        super().setup(task)
        count = len(task.modalities)
        self.register_buffer("alone_accuracy", torch.zeros(count))  # on validation, of the branches trained alone
        self.register_buffer("alone_entropy", torch.zeros(count))
        self.register_buffer("trust", torch.zeros(count))  # validation accuracy of the branches as they now are
        self.register_buffer("alpha", torch.zeros(len(TERMS)))
        self.seed = task.generator.initial_seed()
        self.aux_q = Estimators(self.options, self.model.feature_sizes, self.seed, task.device)
        self._cached: tuple[str, Guides] | None = None  # not saved: it follows from the anchors' weights

    @property
    def patience(self) -> int | None:
        return self.options.patience

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
        accuracy, tie = self.alone_accuracy.tolist(), self.options.tie / 100
        if self.options.tie_rule == "standard_error":
            tie = standard_error(max(accuracy), len(self.task.target("val")))
        return self.modalities[choose_anchor(accuracy, self.alone_entropy.tolist(), tie)]

    def facts(self) -> dict[str, Any]:
        """The anchor, and what validation said of every branch trained alone: accuracy in [0, 1], entropy in nats."""
        return {
            "anchor": self.anchor,
            "validation_accuracy": dict(zip(self.modalities, self.alone_accuracy.tolist(), strict=True)),
            "validation_entropy": dict(zip(self.modalities, self.alone_entropy.tolist(), strict=True)),
        }

    # -- the schedule ------------------------------------------------------------------------------------------------

    def phase(self, index: int) -> Phase | None:
        """Every branch alone, then every follower, both in the order of fusion, then the probe if there is one."""
        if index < len(self.modalities):
            return super().phase(index)
        anchor = self.anchor
        followers = [m for m in self.modalities if m != anchor]
        index -= len(self.modalities)
        if index >= len(followers):
            return self._probe() if index == len(followers) > 0 and self.options.fusion == "probe" else None
        m = followers[index]
        anchors = (anchor, *followers[:index]) if self.options.followers == "sequential" else (anchor,)
        return Follow(
            f"follow/{m}",
            self.options.follower_epochs or self.task.epochs,
            trainable=lambda name: self.is_branch(m, name),
            modalities=(*anchors, m) if self.terms and not self._reads_once(anchors) else (m,),
            monitor=(m,) if self.options.select == "follower" else (*anchors, m),
            keep=self.options.checkpoint,
            patience=self.patience,
            anchors=anchors,
            follower=m,
        )

    def _probe(self) -> Phase:
        """The run's own fusion on frozen features; every branch is in eval mode and gets no gradient."""
        return Phase(
            PROBE,
            self.task.epochs,
            trainable=lambda name: name.startswith("model.fusion."),
            keep=self.options.checkpoint,
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
        if self.terms and self._reads_once(phase.anchors):
            self._cached = phase.name, self._read_clean(phase)
        if "complementarity" in self.terms:
            self.aux_q.renew(phase.anchors, m)
            if options.q_warmup_epochs:
                self._warm_up(phase)

    def begin_epoch(self) -> None:
        """The controller: the epoch's alpha from one batch, in train mode, leaving everything else as it was."""
        phase, options = self.task.phase, self.options
        if not isinstance(phase, Follow) or options.weights == "static":
            return
        m, epoch = phase.follower, self.task.epoch
        previous = options.controller_batch == "previous" and epoch > 0
        batch = self.task.last_batch(epoch - 1) if previous else self.task.first_batch()
        encoder: Any = self.model.encoders[m]
        with _undisturbed(encoder, self.task.device):
            with torch.set_grad_enabled(options.align != "features"):
                features = self.model.encode({m: batch.inputs[m]})[m]
            if options.align == "features":
                wrt: list[Any] = [features.requires_grad_()]
            else:
                wrt = list((encoder if options.align == "encoder" else encoder.last_block()).parameters())
            losses = self._losses(phase, features, self.heads[m](features), self._guides(phase, batch), batch.target)
            classification, *others = [gradients(loss, wrt, retain_graph=True) for loss in losses.values()]
        scores = alignments(classification, others, cosine=options.similarity == "cosine")
        fresh = normalised(scores, self.alpha if options.unaligned == "hold" else torch.zeros_like(self.alpha))
        kept = options.smoothing if epoch > 0 else 0.0
        self.alpha.copy_(kept * self.alpha + (1 - kept) * fresh)

    def end_phase(self) -> None:
        """Note what validation says of a branch trained alone, and of a follower where the fusion asks for it."""
        phase = self.task.phase
        if isinstance(phase, Follow):
            if self.options.fusion == "accuracy_weighted":
                self.trust[self.modalities.index(phase.follower)] = self.validation(phase.follower)[0]
            return
        if phase.name == PROBE:
            return
        (m,) = phase.modalities or ()
        index = self.modalities.index(m)
        self.alone_accuracy[index], self.alone_entropy[index] = self.validation(m)
        self.trust[index] = self.alone_accuracy[index]

    # -- one step ----------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """A branch alone, the probe: cross-entropy. A follower: fit q, the three terms, the optimiser's step."""
        phase = self.task.phase
        if not isinstance(phase, Follow) or not self.terms:
            return super().step(batch)
        self.task.optimizer.zero_grad(set_to_none=True)
        features, logits = self.branch(phase.follower, batch.inputs)
        guides = self._guides(phase, batch)
        logs: dict[str, Tensor] = {}
        fits = "complementarity" in self.terms
        if fits and self.options.q_order == "before":
            logs["loss/q"] = self.aux_q.fit(guides.features, phase.follower, features)
        losses = self._losses(phase, features, logits, guides, batch.target)
        total = losses["classification"]
        for term, alpha in zip(TERMS, self.alpha.unbind(), strict=True):
            if term in losses:
                total = total + alpha * losses[term]
                logs[f"alpha/{term}"] = alpha
        total.backward()
        self.task.optimizer.step()
        if fits and self.options.q_order == "after":
            logs["loss/q"] = self.aux_q.fit(guides.features, phase.follower, features)
        logs.update({f"loss/{name}": loss.detach() for name, loss in losses.items()})
        return {"loss": total.detach(), "accuracy": accuracy(logits, batch.target), **logs}

    def _reads_once(self, anchors: Sequence[str]) -> bool:
        """Whether the anchors read the training split once a phase: as asked, or as every batch would say the same."""
        return self.options.anchor_view == "cached" or not any(self.task.augmented(a) for a in anchors)

    def _guides(self, phase: Follow, batch: Batch) -> Guides:
        """The anchors on the batch, as data."""
        if self._reads_once(phase.anchors):
            return self._clean(phase).take(batch.index)
        with torch.no_grad():
            read = {a: self.branch(a, batch.inputs) for a in phase.anchors}
        return Guides({a: f for a, (f, _) in read.items()}, {a: z for a, (_, z) in read.items()})

    def _clean(self, phase: Follow) -> Guides:
        """The anchors on the clean training split; read again, uncounted, where a resumed run has lost them."""
        if self._cached is None or self._cached[0] != phase.name:
            with self.model.passes.paused():
                self._cached = phase.name, self._read_clean(phase)
        return self._cached[1]

    def _read_clean(self, phase: Follow) -> Guides:
        features = self.task.collect(lambda batch: self.model.encode(batch.inputs), "train", modalities=phase.anchors)
        with torch.no_grad():
            return Guides(features, self.alone(features))

    def _losses(
        self, phase: Follow, features: Tensor, logits: Tensor, guides: Guides, target: Tensor
    ) -> dict[str, Tensor]:
        """Classification and the terms in use, unweighted scalars in nats."""
        losses = {"classification": F.cross_entropy(logits, target)}
        if "consistency" in self.terms:
            heat = self.options.temperature
            log_q = F.log_softmax(logits / heat, 1)
            gaps = [jensen_shannon(F.log_softmax(z / heat, 1), log_q) for z in guides.logits.values()]
            losses["consistency"] = torch.stack(gaps).mean()
        if "complementarity" in self.terms:
            permutation = self._shuffled(len(target)) if self.options.estimator == "sampled" else None
            losses["complementarity"] = self.aux_q.bound(guides.features, phase.follower, features, permutation)
        return losses

    def _shuffled(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.task.generator, device=self.task.device)

    def _warm_up(self, phase: Follow) -> None:
        """Fit q to the features of the initial follower, with batch statistics as in training; nothing else moves."""
        m, cached = phase.follower, self._reads_once(phase.anchors)
        encoder = self.model.encoders[m]

        def encode(batch: Batch) -> dict[str, Tensor]:
            encoder.train(len(batch) > 1)  # a single sample has no batch statistics
            return self.model.encode(batch.inputs)

        count = len(self.task.target("train"))
        order = self._shuffled(count)
        with _undisturbed(encoder, self.task.device):
            seen = self.task.collect(encode, "train", order, (m,) if cached else (*phase.anchors, m))
        if cached:
            seen.update(self._clean(phase).take(order).features)
        for _ in range(self.options.q_warmup_epochs):
            for rows in self._shuffled(count).tensor_split(self.task.steps_per_epoch):
                self.aux_q.fit({a: seen[a][rows] for a in phase.anchors}, m, seen[m][rows])

    # -- read-outs ---------------------------------------------------------------------------------------------------

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The branches' logits, weighted where the fusion weights them, or the probe's; None for mean probabilities."""
        if self._probes(features):
            return self.model.fusion.shares(features)
        logits = self.alone(features)
        if self.options.fusion in ("sum", "probe") or len(logits) == 1:
            return logits
        if self.options.fusion == "mean_probability":
            return None
        trust = torch.stack([self.trust[self.modalities.index(m)] for m in logits])
        weights = (trust / trust.sum().clamp_min(torch.finfo(trust.dtype).tiny)).unbind()
        return {m: w * z for w, (m, z) in zip(weights, logits.items(), strict=True)}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Sum of the shares, or the logarithm of the mean of probabilities, over the branches that are given.

        The probe speaks from its phase on, where all branches are given; before, and for some of them, the sum does.
        """
        if self._probes(features):
            return self.model.fusion(features)
        shares = self.shares(features)
        if shares is not None:
            return torch.stack(list(shares.values())).sum(0)
        log_p = torch.stack([F.log_softmax(z, 1) for z in self.alone(features).values()])
        return log_p.logsumexp(0) - math.log(len(log_p))

    def _probes(self, features: Mapping[str, Tensor]) -> bool:
        """Whether the probe predicts: in its phase, which is the last one and at whose end the run is read out."""
        phase = getattr(self.task, "phase", None)  # None before training
        return phase is not None and phase.name == PROBE and len(features) == len(self.modalities)


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
