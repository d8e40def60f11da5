"""What a dataset is to the rest of the library: three splits of aligned modalities, in memory or memory-mapped.

A dataset is a class with an ``Options`` dataclass and one method, :meth:`Dataset.load`. It reads files, checks them,
and returns a :class:`Bundle`. Nothing in it knows about methods, encoders' weights or training.
"""

from __future__ import annotations

import abc
import contextlib
import csv
import functools
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from balancebench_udi.config import Options as AnyOptions
from balancebench_udi.data.groups import Groups
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator


class Transform(Protocol):
    """From the stored batch on the device ``[B, ...]`` to the float batch of the encoder.

    Called with ``draws [B, self.draws]``, uniform in [0, 1), it augments each sample by its own row of them; called
    with None it does not augment. All randomness comes from the draws.
    """

    @property
    def draws(self) -> int:
        """Random numbers that augmenting one sample takes; 0 where nothing is augmented."""

    def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class Choosing(Protocol):
    """A transform that takes a part of each sample only: ``present(choose(x, rows, draws), draws)`` is what calling it
    with ``x[rows]`` gives, and the rest of ``x`` is neither read nor copied."""

    def choose(self, values: Tensor, rows: Tensor, draws: Tensor | None) -> Tensor:
        """What is taken, of the samples ``rows [B]`` of ``values [N, ...]``."""

    def present(self, chosen: Tensor, draws: Tensor | None) -> Tensor:
        """The float batch."""


@dataclass(frozen=True)
class Affine:
    """The transform of data that is not augmented: ``stored.float() * scale + shift``, per channel (dimension 1)."""

    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    draws: ClassVar[int] = 0

    @classmethod
    def normalise(cls, mean: tuple[float, ...], std: tuple[float, ...], peak: float = 255.0) -> Affine:
        """``(stored / peak - mean) / std``: torchvision's ToTensor and Normalize in one multiply-add."""
        scale = tuple(1.0 / (peak * s) for s in std)
        return cls(scale, tuple(-m / s for m, s in zip(mean, std, strict=True)))

    def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
        values = stored.to(torch.float32)
        if self.scale == (1.0,) and self.shift == (0.0,):
            return values
        shape = [1, len(self.scale)] + [1] * (values.dim() - 2)
        scale, shift = (_constant(v, values.device).view(shape) for v in (self.scale, self.shift))
        return torch.addcmul(shift, values, scale)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small tensor, made once: copying one to a GPU for every batch would wait for it."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class Split:
    """One split of N samples.

    Attributes:
        inputs: modality -> stored values ``[N, ...]``, or ``[R, ...]`` of which ``rows`` says which belong here.
        target: ``[N]`` int64.
        rows: ``[N]`` int64, the row of ``inputs`` that holds each sample; None where sample i lies in row i. So splits
            share one memory-mapped array.
        maps: the files behind ``inputs``, of which nothing is ever written.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    rows: Tensor | None = None
    maps: Sequence[mmap.mmap] = ()

    def __post_init__(self) -> None:
        n = len(self.target if self.rows is None else self.rows)
        if n != len(self.target):
            raise UserError(f"a split must have one row a sample ({len(self.target)}), found {n}")
        for m, values in self.inputs.items():
            if self.rows is None and len(values) != n:
                raise UserError(f"modality {m} must have one row a sample ({n}), found {len(values)}")
            if self.rows is not None and n and int(self.rows.max()) >= len(values):
                raise UserError(f"modality {m} must hold row {int(self.rows.max())}, found {len(values)} rows")

    def __len__(self) -> int:
        return len(self.target)

    def stored(self, m: str, index: Tensor) -> Tensor:
        """The stored values ``[B, ...]`` of samples ``index [B]``, copied."""
        return self.inputs[m].index_select(0, self.at(index))

    def at(self, index: Tensor) -> Tensor:
        """The rows ``[B]`` of ``inputs`` that hold the samples ``index [B]``."""
        return index if self.rows is None else self.rows[index]

    def let_go(self) -> None:
        """Let what was read of mapped files go from this process's memory; the system keeps it for the next time."""
        for file in self.maps if hasattr(mmap, "MADV_DONTNEED") else ():
            file.madvise(mmap.MADV_DONTNEED)

    def take(self, index: Tensor) -> Split:
        """The samples ``index``, in that order."""
        if self.rows is not None:
            return Split(self.inputs, self.target[index], self.rows[index], self.maps)
        return Split({m: values[index] for m, values in self.inputs.items()}, self.target[index])


@dataclass(frozen=True)
class Modality:
    """How one modality is presented to the networks.

    Attributes:
        kind: ``vector [D]``, ``sequence [T, D]``, ``digit [C, H, W]``, ``spectrogram [1, F, T]``,
            ``frames [3, T, H, W]``, ``flow [2, T, H, W]`` or ``tokens [L]`` (word ids as floats, 0 for padding);
            decides which encoders fit.
        shape: shape of one transformed sample, without the batch dimension.
        encoder: name of the encoder a protocol gets unless it names another.
        transform: from the stored batch to the float batch, on the device.
    """

    kind: str
    shape: tuple[int, ...]
    encoder: str
    transform: Transform = field(default_factory=Affine)


def _nothing() -> None:
    """What checks data that are read in full when they are loaded."""


@dataclass(frozen=True)
class Bundle:
    """A loaded dataset.

    Attributes:
        modalities: name -> :class:`Modality`, in the order of fusion.
        classes: names of the classes; targets index into it.
        fingerprint: 12 hex digits over the source's bytes and everything that was done to them.
        facts: anything worth keeping beside a record (``generated``, Bayes accuracies, counts), JSON types.
        verify: a function that checks the stored values in full, unless that was done before, and raises UserError if
            they are damaged; called before a run is trained on them.
        groups: which samples of the test split belong together (of one subject, video, speaker); None where all are
            exchangeable.
    """

    modalities: Mapping[str, Modality]
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    verify: Any = field(default=_nothing, repr=False, compare=False)  # typed, it would refuse **splits
    groups: Groups | None = None

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            split = getattr(self, name)
            if len(split) == 0:
                raise UserError(f"the {name} split must hold at least one sample, found none")
            if set(split.inputs) != set(self.modalities):
                raise UserError(f"the {name} split must hold {sorted(self.modalities)}, found {sorted(split.inputs)}")
            for m, modality in self.modalities.items():
                found = tuple(modality.transform(split.stored(m, torch.tensor([0])), None).shape[1:])
                if found != tuple(modality.shape):
                    raise UserError(f"a sample of modality {m} must have shape {tuple(modality.shape)}, found {found}")
            low, high = int(split.target.min()), int(split.target.max())
            if low < 0 or high >= len(self.classes):
                raise UserError(f"targets must lie in 0..{len(self.classes) - 1}, found {low}..{high} in {name}")
        if self.groups is not None and len(self.groups.members) != len(self.test):
            raise UserError(
                f"groups must have one number a test sample ({len(self.test)}), found {len(self.groups.members)}"
            )

    def split(self, name: str) -> Split:
        """``train``, ``val`` or ``test``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


class Dataset(abc.ABC):
    """Base of every dataset: a name, options and ``load``.

    Attributes:
        name: as on the command line.
        version: raised when what it loads changes.
        reference: who published it.
        needs: what must lie below ``--data-root``, and where to get it; empty for embedded data.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reference: ClassVar[str]
    needs: ClassVar[str] = ""
    Options: ClassVar[type[AnyOptions]] = AnyOptions

    def __init__(self, options: AnyOptions | None = None) -> None:
        self.options: Any = options if options is not None else self.Options()

    @abc.abstractmethod
    def load(self, root: Path | None) -> Bundle:
        """Read, check and prepare the data.

        Args:
            root: the user's ``--data-root``; ``None`` where none was given.

        Raises:
            UserError: absent or damaged files, with what was expected and how to get it.
        """


def require_root(dataset: Dataset, root: Path | None) -> Path:
    """``root``, or the sentence that tells the user to give one."""
    if root is None:
        raise UserError(f"dataset {dataset.name} needs --data-root DIR with {dataset.needs}; none was given")
    if not os.path.isdir(root):  # Path.is_dir raises where a name is too long
        raise UserError(f"--data-root must be a folder with {dataset.needs}; {root} is not a folder")
    return root


def inside(root: Path, folder: str, *holds: str) -> Path:
    """``root/folder`` or, where there is none but ``root`` itself has one of ``holds`` in it, ``root``."""
    here = not (root / folder).is_dir() and any((root / name).exists() for name in holds)
    return root if here else root / folder


@contextlib.contextmanager
def long_cells(text: str) -> Iterator[None]:
    """Within it, ``csv`` reads cells as long as ``text``; otherwise 131072 characters, a setting of the process."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, len(text)))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def fingerprint(parameters: Mapping[str, Any], *parts: bytes | np.ndarray | Tensor) -> str:
    """12 hex digits of SHA-256 over canonical JSON of ``parameters`` and the raw bytes of ``parts``.

    Give it integer data and source bytes, never the result of float arithmetic, which differs between machines.
    """
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, separators=(",", ":")).encode())
    for part in parts:
        if isinstance(part, Tensor):
            part = part.numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        digest.update(part)
    return digest.hexdigest()[:12]


def mean_and_scale(fit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What standardises each feature of ``fit`` ``[..., D]``: its mean and 1 / standard deviation, 0 where constant.

    Returns:
        Two arrays ``[D]``; ``(values - mean) * scale`` is standard.
    """
    rows = tuple(range(fit.ndim - 1))
    std = fit.std(axis=rows)
    return fit.mean(axis=rows), np.divide(1.0, std, out=np.zeros_like(std), where=np.ptp(fit, axis=rows) > 0)


def stratified_holdout(target: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``range(N)`` into (kept, held out) with about ``share`` of every class held out, at least one a class.

    Returns:
        Two sorted int64 index tensors, disjoint, together everything.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"the share of validation samples must lie between 0 and 1, found {share}")
    stream = generator(seed, "holdout")
    held = []
    for c in torch.unique(target):
        rows = torch.nonzero(target == c).flatten()
        if len(rows) < 2:
            raise UserError(
                f"every class needs at least 2 training samples to hold some out, found {len(rows)} of class {c}; add "
                "samples, or a validation split"
            )
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held.append(rows[torch.randperm(len(rows), generator=stream)[:count]])
    held_out = torch.cat(held).sort().values
    mask = torch.ones(len(target), dtype=torch.bool)
    mask[held_out] = False
    return torch.nonzero(mask).flatten(), held_out
