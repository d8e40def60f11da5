"""OGM and OGM-GE: shrink the gradient of the stronger modality's encoder, after the joint backward pass."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi import Batch, Options, Output, Strategy, Task, UserError, check_window, option

SMALL = 1e-12
"""Least score S_m (ours): keeps the ratios finite where a modality gives its true classes no mass at all."""


@dataclass(frozen=True)
class OGMOptions(Options):
    """Options of OGM."""

    alpha: float = option(
        0.8, "strength of the damping; 0 damps nothing", source="official code, CREMA-D (VGGSound: 0.1)", at_least=0
    )
    window: tuple[float, float] = option(
        (0.0, 0.5),
        "first and last point of the run at which gradients are modulated, both included: epoch e (from 0) of E is in "
        "where first <= e / E <= last; 1,1 is never",
        source="official code: epochs 0 to 50 of 100",
        at_least=0,
        at_most=1,
    )
    noise: bool = option(False, "gradient-noise enhancement (GE)", source="official code: OGM without, OGM-GE with")
    k_form: str = option(
        "tanh_alpha_rho",
        "coefficient of a damped modality: 1 - tanh(alpha rho), or 1 - alpha tanh(rho - 1), which needs alpha <= 1",
        source="CVPR paper and official code; the other form is reported of the journal version",
        choices=("tanh_alpha_rho", "alpha_tanh_rho_minus_1"),
    )
    readout: str = option(
        "share",
        "unimodal logits behind the ratio: the modality's share of the fused logits (additive fusions only), or the "
        "fused logits with the other modalities' features at zero",
        source="official code; masked as in the journal version",
        choices=("share", "masked"),
    )
    tensors: str = option(
        "auto",
        "which encoder tensors are modulated: conv (exactly 4 dimensions, as official), matrix (2 or more), or auto "
        "(conv in an encoder that has such tensors, else matrix)",
        source="official code: conv; auto is ours, or vector and sequence encoders would be left alone silently",
        choices=("auto", "conv", "matrix"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window)
        if self.k_form == "alpha_tanh_rho_minus_1" and self.alpha > 1:
            raise UserError(
                f"alpha must be <= 1 with k_form=alpha_tanh_rho_minus_1, found {self.alpha}: a larger one turns "
                "gradients round"
            )


@dataclass(frozen=True)
class OGMGEOptions(OGMOptions):
    """Options of OGM-GE: those of OGM, with the noise on."""

    noise: bool = option(True, "gradient-noise enhancement (GE)", source="official code: OGM_GE")


class OGM(Strategy):
    """On-the-fly gradient modulation: the gradient of every dominant modality's encoder is multiplied by k in (0, 1).

    Peng, Wei, Deng, Wang, Hu: Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022,
    https://arxiv.org/abs/2203.15332; more than two modalities as in the journal version, TPAMI 2024,
    https://arxiv.org/abs/2410.11582.

    With unimodal logits ``z_m [B, C]`` (option ``readout``) of the joint forward pass, after ``CE(z, y).backward()``::

        S_m   = sum_i softmax(z_m)[i, y_i]
        rho_m = mean over j != m of S_m / S_j
        k_m   = 1 - tanh(alpha rho_m)    where m is dominant, else exactly 1
        g    <- k_m g                    for the gradient g of every modulated tensor of encoder m

    Dominant is each modality with ``rho_m > 1``. With two modalities that is exactly one of them, the one with the
    larger S; a tie damps the first. With more it may be several, never the one with the smallest S, and none where all
    tie. ``k`` is not continuous: it falls from 1 to ``1 - tanh(alpha)`` where ``rho`` passes 1. Batch norm, biases and
    the fusion are not touched.

    Neutral: ``alpha=0`` without noise, or a window of ``1,1``: bit-identical to joint.

    Departures from the official code: modalities are found by module, not by substrings of parameter names (which
    leave a renamed model unmodulated); the share of a ``sum`` fusion has its whole bias in training and in evaluation;
    the window is in fractions of the run. An optimiser that normalises its gradient (AdamW) cancels most of a slowly
    varying k.

    Logs: ``rho/m`` and ``k/m`` (as applied: 1 outside the window).
    Cost: one forward and one backward pass of every encoder, and one more evaluation of the fusion a modality.

    Raises:
        UserError: ``readout=share`` with a fusion that has no additive split; ``tensors=conv`` with an encoder that has
            no 4-dimensional tensor; options out of bounds.
    """

    name = "ogm"
    idea = (
        "The gradient of the encoder that is ahead is damped, the more the further ahead it is. The encoder that "
        "lags gets time to learn."
    )
    family = "optimization"
    reference = "Peng et al., CVPR 2022, arXiv 2203.15332"
    min_modalities = 2
    Options = OGMOptions

    @classmethod
    def check(cls, options: Any, modalities: Sequence[str], additive: bool) -> None:
        super().check(options, modalities, additive)
        if options.readout == "share" and not additive:
            raise UserError(
                f"{cls.name} with readout=share needs a fusion whose logits split into one share a modality, found one "
                f"that does not: set {cls.name}.readout=masked, or the fusion to concat or sum"
            )

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.modulated = {m: self._choose(m, encoder) for m, encoder in self.model.encoders.items()}
        self._noise = torch.empty(0)

    def _choose(self, m: str, encoder: nn.Module) -> list[nn.Parameter]:
        """The tensors of encoder m that are modulated; never none."""
        conv = [p for p in encoder.parameters() if p.dim() == 4]
        matrix = [p for p in encoder.parameters() if p.dim() >= 2]
        chosen = {"auto": conv or matrix, "conv": conv, "matrix": matrix}[self.options.tensors]
        if not chosen:
            raise UserError(
                f"{self.name} with tensors={self.options.tensors} needs weights of that form in every encoder, found "
                f"none in that of {m}: set {self.name}.tensors=auto or choose another encoder"
            )
        return chosen

    @property
    def active(self) -> bool:
        """Whether the current epoch lies in the window."""
        return self.task.within(self.options.window)

    def replay_key(self) -> Hashable | None:
        return self.active

    @torch.no_grad()
    def unimodal_logits(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """``M`` tensors ``[B, C]``, by the option ``readout``, detached."""
        shares = self.shares(features) if self.options.readout == "share" else None
        if shares is not None:
            return list(shares.values())
        hidden = {m: torch.zeros_like(f) for m, f in features.items()}
        return [self.fuse({**hidden, m: f}) for m, f in features.items()]

    @torch.no_grad()
    def ratios(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """``rho [M]``: how much more mass a modality gives to the true classes than the others do, on average."""
        mass = F.softmax(torch.stack(list(logits)), 2).gather(2, target.expand(len(logits), -1).unsqueeze(2))
        score = mass.sum((1, 2)).clamp_min(SMALL)
        pairs = score.unsqueeze(1) / score
        return pairs.fill_diagonal_(0.0).sum(1) / (len(score) - 1)

    def coefficients(self, rho: Tensor) -> Tensor:
        """``k [M]`` in [0, 1], exactly 1 for every modality that is not dominant."""
        dominant = rho > 1
        if len(rho) == 2:
            dominant = torch.stack([~dominant[1], dominant[1]])
        alpha = self.options.alpha
        damped = 1 - torch.tanh(alpha * rho)
        if self.options.k_form == "alpha_tanh_rho_minus_1":
            damped = 1 - alpha * torch.tanh(rho - 1)
        return torch.where(dominant, damped, 1.0)

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint loss; the coefficients of the step are formed beside it, detached."""
        loss, logs = super().loss(output, batch)
        rho = self.ratios(self.unimodal_logits(output.features), batch.target)
        self._k = self.coefficients(rho) if self.active else torch.ones_like(rho)
        for m, ratio, k in zip(output.features, rho, self._k, strict=True):
            logs[f"rho/{m}"], logs[f"k/{m}"] = ratio, k
        return loss, logs

    def after_backward(self, output: Output, batch: Batch) -> None:
        """Scale the gradients, inside the window, and add the noise where it is on."""
        if not self.active:
            return
        for m, k in zip(output.features, self._k, strict=True):
            gradients = [p.grad for p in self.modulated[m] if p.grad is not None]
            if not gradients:  # a frozen encoder
                continue
            deviations = _deviations(gradients) if self.options.noise else []
            torch._foreach_mul_(gradients, k)
            if self.options.noise:
                torch._foreach_addcmul_(gradients, self._normal(gradients), deviations)

    def _normal(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Standard normal tensors of the given shapes, in one draw from the method's own stream.

        They are good until the next draw.
        """
        sizes = [g.numel() for g in like]
        if len(self._noise) < sum(sizes):  # kept: on a CPU new memory costs half as much as the numbers in it
            self._noise = like[0].new_empty(sum(sizes))
        flat = self._noise[: sum(sizes)].normal_(generator=self.task.generator)
        return [part.view(g.shape) for part, g in zip(flat.split(sizes), like, strict=True)]


class OGMGE(OGM):
    """OGM with gradient-noise enhancement: the noise of SGD that the damping takes away is put back.

    As :class:`OGM`, and inside the window, for every modulated tensor of *every* encoder, also one with ``k = 1``::

        g <- k_m g + N(0, sigma^2) elementwise,  sigma = std(g) + 1e-8

    with one ``sigma`` a tensor: the unbiased standard deviation of the gradient *before* it is scaled. The noise comes
    from the method's own stream; the official code draws from the global one, which shifts every later random number.

    Neutral: ``alpha=0`` and ``noise=false``, or a window of ``1,1``: bit-identical to joint.
    Cost: that of OGM, and one random number a modulated weight.
    """

    name = "ogm_ge"
    idea = (
        "OGM with noise added to the gradients. It puts back the noise of stochastic gradient descent that the "
        "damping takes away."
    )
    Options = OGMGEOptions


def _deviations(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Unbiased standard deviation + 1e-8 of each tensor, scalars; of a single element 1e-8."""
    return list(torch._foreach_add([g.std(correction=min(1, g.numel() - 1)) for g in gradients], 1e-8))
