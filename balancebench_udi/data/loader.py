"""Batches: which samples in which order, moved to the device and transformed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from balancebench_udi.data.base import Bundle, Split
from balancebench_udi.seeding import generator

EVALUATION_BATCH = 512
RESIDENT_SHARE = 0.5
"""On a GPU the splits stay in device memory where they take at most this share of what is free."""


@dataclass(frozen=True)
class Batch:
    """``inputs {m: [B, ...]}``, ``target [B]``, ``index [B]`` into the base train split, ``keep {m: [B]}`` or None."""

    inputs: Mapping[str, Tensor]
    target: Tensor
    index: Tensor
    keep: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class View:
    """One epoch's training set as references into the base split.

    Attributes:
        index: ``[V]`` int64 rows of the base split, repeats allowed.
        keep: ``{m: [V]}`` bool, False where the modality is hidden; None hides nothing.
        group: ``[V]`` int64; batches never mix groups. None puts all in one.
    """

    index: Tensor
    keep: Mapping[str, Tensor] | None = None
    group: Tensor | None = None


class Loader:
    """Batches of a bundle. Order and augmentation depend on (seed, epoch) alone, never on the method.

    Args:
        bundle: the dataset.
        device: where batches live.
        batch_size: training samples in a batch; a last batch of one sample is left out (batch norm cannot train on it).
        seed: the run's seed.
    """

    def __init__(self, bundle: Bundle, device: torch.device, batch_size: int, seed: int) -> None:
        self.bundle = bundle
        self.device = device
        self.batch_size = batch_size
        self.seed = seed
        self.splits = {name: _place(bundle.split(name), device) for name in ("train", "val", "test")}

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def target(self, split: str) -> Tensor:
        """``[N]`` int64 on the device."""
        return self.splits[split].target.to(self.device)

    def train(self, epoch: int, modalities: Sequence[str], view: View | None = None) -> Iterator[Batch]:
        """One epoch of shuffled, augmented training batches with the named modalities."""
        streams = {m: generator(self.seed, "augment", epoch, m, device=self.device) for m in modalities}
        base = self.splits["train"]
        for rows in self._order(epoch, view):
            if view is None:
                yield self._batch(base, rows, modalities, streams)
            else:
                hidden = view.keep
                keep = None if hidden is None else {m: hidden[m][rows].to(self.device) for m in modalities}
                yield self._batch(base, view.index[rows], modalities, streams, keep)

    def last(self, epoch: int, modalities: Sequence[str]) -> Batch:
        """The last batch of :meth:`train` without a view.

        Augmentation draws from one stream an epoch, so that its last batch needs all those before it. Where making the
        last batch draws nothing, it does not depend on them and they are not made.
        """
        streams = {m: generator(self.seed, "augment", epoch, m, device=self.device) for m in modalities}
        before = {m: stream.get_state() for m, stream in streams.items()}
        batch = self._batch(self.splits["train"], self._order(epoch, None)[-1], modalities, streams)
        if all(torch.equal(before[m], stream.get_state()) for m, stream in streams.items()):
            return batch
        *_, batch = self.train(epoch, modalities)
        return batch

    def steps(self, view: View | None = None) -> int:
        """Number of batches in one epoch."""
        return len(self._order(0, view))

    def ordered(
        self, split: str, modalities: Sequence[str], index: Tensor | None = None, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[Batch]:
        """A split (or its rows ``index``) in order, not augmented, nothing dropped."""
        rows = torch.arange(self.size(split)) if index is None else index.cpu()
        for chunk in rows.split(batch_size):
            yield self._batch(self.splits[split], chunk, modalities, {})

    def _order(self, epoch: int, view: View | None) -> list[Tensor]:
        stream = generator(self.seed, "order", epoch)
        total = self.size("train") if view is None else len(view.index)
        order = torch.randperm(total, generator=stream)
        if view is None or view.group is None:
            chunks = list(order.split(self.batch_size))
        else:
            group = view.group.cpu()[order]
            chunks = [c for g in group.unique() for c in order[group == g].split(self.batch_size)]
            chunks = [chunks[i] for i in torch.randperm(len(chunks), generator=stream).tolist()]
        return [c for c in chunks if len(c) > 1 or total == 1]

    def _batch(
        self,
        split: Split,
        rows: Tensor,
        modalities: Sequence[str],
        streams: Mapping[str, torch.Generator],
        keep: Mapping[str, Tensor] | None = None,
    ) -> Batch:
        there = rows.to(split.target.device)
        inputs = {}
        for m in modalities:
            stored = split.inputs[m].index_select(0, there).to(self.device, non_blocking=True)
            inputs[m] = self.bundle.modalities[m].transform(stored, streams.get(m))
        return Batch(inputs, split.target[there].to(self.device), rows.to(self.device), keep)


def _place(split: Split, device: torch.device) -> Split:
    """The split in device memory where it fits, else where it was."""
    if device.type != "cuda":
        return split
    size = sum(x.numel() * x.element_size() for x in split.inputs.values())
    free, _ = torch.cuda.mem_get_info(device)
    if size > RESIDENT_SHARE * free:
        return split
    return Split({m: x.to(device) for m, x in split.inputs.items()}, split.target.to(device))
