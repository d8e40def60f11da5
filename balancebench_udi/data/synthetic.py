"""A generated dataset of known information: the best accuracy any subset of its modalities allows is computed exactly.

**Model.** The class ``c`` is uniform over ``C`` classes. Write ``T_p`` for the channel that keeps a symbol with
probability ``p`` (its *fidelity*) and otherwise replaces it by a uniform one of the ``C`` symbols; fidelities multiply
when channels follow one another. Modality ``m`` of strength ``s_m`` shows three symbols:

- *redundant*: ``R_m = T_{s_m}(R)`` of a common ``R = T_r(c)``. Ordered by strength, each modality sees a further
  degraded copy of what the stronger one sees, so the weaker one adds nothing to it;
- *unique*: ``U_m = T_{u_m s_m}(c)``, independent of everything else given ``c``;
- *synergistic*: ``A_m``, a share of the secret ``S = T_g(c)``: uniform and ``sum_m A_m = S (mod C)``. All shares
  together reveal ``S``, any fewer are independent of it.

The target is ``y = c``, except with probability ``label_noise`` a uniform one of the other classes, in every split.

**Bayes accuracy.** A subset ``V`` of modalities is worth exactly the independent symbols ``R_m`` of its strongest
member, ``U_m`` of each, and ``S`` if it is complete: ``K`` views of ``c`` with fidelities ``p_k``. As
``P(T_p(c) = x | c) = p [x = c] + (1 - p) / C``,

    A(V) = 1/C  sum_x  max_c  prod_k P(x_k | c),

where the sum over the ``C^K`` symbols is taken over the ways in which the ``K`` views can agree (set partitions, at
most 4140), each counted ``C (C-1) ... (C-j+1)`` times for ``j`` distinct symbols. With label noise ``e`` it is
``(1 - e) A + e (1 - A) / (C - 1)``.

**Features.** Each symbol picks one of ``C`` random unit vectors in its own third of ``dims`` dimensions; the three are
rotated by a random orthogonal matrix, and a vector uniform in direction and in length up to ``noise`` times half the
smallest distance of two code vectors is added. As ``noise < 1``, the nearest code vector is always the right one: the
features carry the symbols without loss and the accuracies above are those of the features, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import perm, prod
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Affine, Bundle, Dataset, Modality, Split, fingerprint
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator

_PER_MODALITY = "; one value a modality, the last one holds for all further modalities"
_MIN_DISTANCE = 1e-3  # between code vectors, so that float32 rounding (1e-7) cannot matter
_GRID = 8  # side of the grid of patches that presents features as spectrogram and frames
_VIDEO_SIDE = 224


@dataclass(frozen=True)
class SyntheticOptions(Options):
    """Options of :class:`Synthetic`."""

    modalities: int = option(2, "number of modalities", source="ours", at_least=2, at_most=6)
    classes: int = option(6, "number of classes", source="ours", at_least=2)
    strength: tuple[float, ...] = option(
        (1.0, 0.6),
        "fidelity with which a modality shows its redundant and unique symbols" + _PER_MODALITY,
        source="ours",
        at_least=0,
        at_most=1,
    )
    redundancy: float = option(0.4, "fidelity of the common symbol to the class", source="ours", at_least=0, at_most=1)
    unique: tuple[float, ...] = option(
        (0.6,), "fidelity of the unique symbols to the class" + _PER_MODALITY, source="ours", at_least=0, at_most=1
    )
    synergy: float = option(
        0.3, "fidelity to the class of the secret that all modalities share", source="ours", at_least=0, at_most=1
    )
    label_noise: float = option(
        0.0, "probability of a wrong target; at most (classes - 1) / classes", source="ours", at_least=0
    )
    scale: tuple[float, ...] = option(
        (1.0,),
        "factor on the features: a small one slows learning and leaves the information as it is" + _PER_MODALITY,
        source="ours",
        above=0,
    )
    noise: float = option(
        0.5, "length of the feature noise, as a share of what would make a symbol unreadable", source="ours", at_least=0
    )
    dims: int = option(48, "length of a modality's feature vector", source="ours", at_least=6)
    n_train: int = option(2000, "training samples", source="ours", at_least=1)
    n_val: int = option(500, "validation samples", source="ours", at_least=1)
    n_test: int = option(2000, "test samples", source="ours", at_least=1)
    data_seed: int = option(0, "seed of codes and samples, whatever the run's seed", source="ours", at_least=0)
    shape: str = option(
        "vector",
        "presentation: vector, or av: a spectrogram [1, 257, 188] and frames [3, frames, 224, 224] made from the "
        "vectors on the device, for tests of speed",
        source="ours",
        choices=("vector", "av"),
    )
    frames: int = option(3, "frames a sample, for the shape av", source="ours", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "unique", "scale"):
            if not 1 <= len(getattr(self, name)) <= self.modalities:
                found = len(getattr(self, name))
                raise UserError(f"{name} must have 1 to {self.modalities} values, one a modality, found {found}")
        most = (self.classes - 1) / self.classes
        if self.label_noise > most:
            raise UserError(f"label_noise must be <= {most:.4g} for {self.classes} classes, found {self.label_noise}")
        if self.noise >= 1:
            raise UserError(f"noise must be < 1, found {self.noise}")
        if self.shape == "av" and self.modalities != 2:
            raise UserError(f"shape av must have 2 modalities, audio and visual, found {self.modalities}")
        if self.shape == "av" and self.dims > _GRID**2:
            raise UserError(f"dims must be <= {_GRID**2} for the shape av, found {self.dims}")

    def of(self, name: str, m: int) -> float:
        """The value of the per-modality option ``name`` for modality ``m``."""
        values: tuple[float, ...] = getattr(self, name)
        return values[min(m, len(values) - 1)]


class Synthetic(Dataset):
    """Modalities of chosen strength, redundancy, uniqueness and synergy; see the module for the model.

    Modalities are ``m0``, ``m1``, ... of ``[dims]`` float32 (``audio`` and ``visual`` for the shape ``av``).
    ``facts["bayes_accuracy"]`` holds, for every non-empty subset (``"m0"``, ``"m1"``, ``"m0+m1"``), the expected test
    accuracy, in [0, 1], of the best classifier of that subset, in closed form.
    """

    name = "synthetic"
    reference = "ours; terms after Williams and Beer, Nonnegative Decomposition of Multivariate Information (2010)"
    Options = SyntheticOptions

    def load(self, root: Path | None) -> Bundle:
        """Draw the samples; ``root`` is not used.

        Raises:
            UserError: more classes than ``dims`` dimensions can tell apart; more samples than fit in memory.
        """
        options: SyntheticOptions = self.options
        _check_memory(options)
        names = ("audio", "visual") if options.shape == "av" else tuple(f"m{m}" for m in range(options.modalities))
        codes = [Code.draw(options, m) for m in range(options.modalities)]
        splits, integers = {}, []
        for split, n in (("train", options.n_train), ("val", options.n_val), ("test", options.n_test)):
            target, symbols = draw_symbols(options, n, split)
            inputs = {}
            for m, name in enumerate(names):
                stream = generator(options.data_seed, "noise", split, m)
                inputs[name] = codes[m].encode(symbols[m], options.noise, stream) * options.of("scale", m)
            splits[split] = Split(inputs, target)
            integers += [target, symbols]
        return Bundle(
            modalities=_present(options, names),
            classes=tuple(f"c{c}" for c in range(options.classes)),
            fingerprint=fingerprint(
                {"dataset": self.name, "version": self.version, "options": options.as_dict()}, *integers
            ),
            facts={
                "generated": True,
                "bayes_accuracy": bayes_accuracies(options, names),
                "counts": {split: len(rows) for split, rows in splits.items()},
            },
            groups=None,
            **splits,
        )


def _check_memory(options: SyntheticOptions) -> None:
    """Refuse what this machine cannot hold: the system may grant the memory and then end the process."""
    count = options.n_train + options.n_val + options.n_test
    codes = 8 * (3 * options.classes * options.dims + options.classes**2 + 2 * options.dims**2)
    needed = options.modalities * (count * (4 * options.dims + 24) + codes)  # what is kept; more while it is drawn
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > there:
        raise UserError(
            f"the data of synthetic must fit in this machine's memory of {there // 2**30} GB, found {count} samples "
            f"of {options.dims} dims and {options.classes} classes, which take {needed // 2**30} GB: choose fewer"
        )


def draw_symbols(options: SyntheticOptions, n: int, split: str) -> tuple[Tensor, Tensor]:
    """``n`` samples of the discrete model.

    Returns:
        targets ``[N]`` and symbols ``[M, N, 3]`` (redundant, unique, synergistic), int64 in ``0..classes-1``.
    """

    def uniform(*labels: object) -> Tensor:
        return torch.randint(options.classes, (n,), generator=generator(options.data_seed, split, *labels))

    def happens(probability: float, *labels: object) -> Tensor:
        return torch.rand(n, generator=generator(options.data_seed, split, *labels)) < probability

    def channel(symbol: Tensor, fidelity: float, *labels: object) -> Tensor:
        return torch.where(happens(fidelity, "keep", *labels), symbol, uniform("other", *labels))

    label = uniform("class")
    count = range(options.modalities)
    strength = [options.of("strength", m) for m in count]

    copy, before = channel(label, options.redundancy, "redundant"), 1.0
    redundant = {}
    for m in sorted(count, key=lambda m: -strength[m]):
        copy = channel(copy, strength[m] / before if before else 0.0, "redundant", m)
        redundant[m], before = copy, strength[m]

    shares = [uniform("share", m) for m in count[:-1]]
    secret = channel(label, options.synergy, "secret")
    shares.append((secret - torch.stack(shares).sum(0)) % options.classes)

    symbols = [
        torch.stack([redundant[m], channel(label, options.of("unique", m) * strength[m], "unique", m), shares[m]], 1)
        for m in count
    ]
    shift = 1 + torch.randint(options.classes - 1, (n,), generator=generator(options.data_seed, split, "wrong"))
    wrong = happens(options.label_noise, "label_noise")
    return torch.where(wrong, (label + shift) % options.classes, label), torch.stack(symbols)


def bayes_accuracies(options: SyntheticOptions, names: tuple[str, ...]) -> dict[str, float]:
    """Subset of modalities, ``"m0+m1"``, -> accuracy of the best classifier that sees it and nothing else."""
    accuracies = {}
    for size in range(1, len(names) + 1):
        for subset in combinations(range(len(names)), size):
            strength = [options.of("strength", m) for m in subset]
            views = [options.redundancy * max(strength)]
            views += [options.of("unique", m) * s for m, s in zip(subset, strength, strict=True)]
            if size == len(names):
                views.append(options.synergy)
            clean = bayes_accuracy(views, options.classes)
            noisy = (1 - options.label_noise) * clean + options.label_noise * (1 - clean) / (options.classes - 1)
            accuracies["+".join(names[m] for m in subset)] = noisy
    return accuracies


def bayes_accuracy(fidelities: list[float], classes: int) -> float:
    """Accuracy of the best guess of a uniform class from independent views of it with these fidelities (see above)."""
    fidelities = [p for p in fidelities if p > 0]
    right = [p + (1 - p) / classes for p in fidelities]
    wrong = [(1 - p) / classes for p in fidelities]
    total = 0.0
    for groups in _partitions(len(fidelities)):
        best = max(
            (prod(right[k] if k in group else wrong[k] for k in range(len(fidelities))) for group in groups),
            default=1.0,
        )
        total += perm(classes, len(groups)) * best
    return total / classes


def _partitions(count: int) -> Iterator[list[set[int]]]:
    """Every way to split ``range(count)`` into non-empty groups."""
    if count == 0:
        yield []
        return
    for groups in _partitions(count - 1):
        for i in range(len(groups)):
            yield [g | {count - 1} if i == j else g for j, g in enumerate(groups)]
        yield [*groups, {count - 1}]


@dataclass(frozen=True)
class Code:
    """How the three symbols of one modality become features.

    Attributes:
        vectors: ``[3, C, dims]`` float64, orthogonal between the three kinds of symbol.
        margin: half the smallest distance of two vectors of one kind.
    """

    vectors: Tensor
    margin: float

    @classmethod
    def draw(cls, options: SyntheticOptions, m: int) -> Code:
        """The code of modality ``m``, the same for all splits.

        Raises:
            UserError: two vectors are too close to tell apart.
        """
        stream = generator(options.data_seed, "code", m)
        width = options.dims // 3
        blocks = torch.randn(3, options.classes, width, generator=stream, dtype=torch.float64)
        blocks = F.normalize(blocks, dim=2)
        distance = min(float(F.pdist(block).min()) for block in blocks)
        if distance < _MIN_DISTANCE:
            raise UserError(
                f"dims must be large enough to tell {options.classes} classes apart, found {options.dims}; raise it"
            )
        rotation = torch.linalg.qr(torch.randn(options.dims, options.dims, generator=stream, dtype=torch.float64))[0]
        vectors = torch.stack([block @ rotation[i * width : (i + 1) * width] for i, block in enumerate(blocks)])
        return cls(vectors, distance / 2)

    def encode(self, symbols: Tensor, noise: float, stream: torch.Generator) -> Tensor:
        """Symbols ``[N, 3]`` to features ``[N, dims]`` float32, noise at most ``noise * margin`` long."""
        clean = torch.stack([self.vectors[i].float()[symbols[:, i]] for i in range(3)]).sum(0)
        n, dims = len(symbols), self.vectors.shape[2]
        direction = F.normalize(torch.randn(n, dims, generator=stream), dim=1)
        return clean + direction * (torch.rand(n, 1, generator=stream) * noise * self.margin)

    def decode(self, features: Tensor) -> Tensor:
        """Features ``[N, dims]``, undone of the modality's scale, to the symbols ``[N, 3]``, without error."""
        return (features.double() @ self.vectors.mT).argmax(2).T


@dataclass(frozen=True)
class Patches:
    """Transform that lays ``[B, dims]`` features out as constant patches of an image, repeated where they run out."""

    shape: tuple[int, ...]
    grid: int = _GRID
    draws: ClassVar[int] = 0

    def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
        channels, *_, height, width = self.shape
        cells = torch.arange(channels * self.grid**2, device=stored.device) % stored.shape[1]
        coarse = stored[:, cells].view(-1, channels, self.grid, self.grid)
        image = F.interpolate(coarse, (height, width), mode="nearest")
        if len(self.shape) == 3:
            return image
        frames = image.unsqueeze(2).expand(-1, *self.shape)
        return frames.contiguous(memory_format=torch.channels_last_3d)  # as encoders want it: they need no copy


def _present(options: SyntheticOptions, names: tuple[str, ...]) -> dict[str, Modality]:
    if options.shape == "vector":
        return {name: Modality("vector", (options.dims,), "mlp", Affine()) for name in names}
    audio, visual = (1, 257, 188), (3, options.frames, _VIDEO_SIDE, _VIDEO_SIDE)
    return {
        "audio": Modality("spectrogram", audio, "resnet18", Patches(audio)),
        "visual": Modality("frames", visual, "resnet18", Patches(visual)),
    }
