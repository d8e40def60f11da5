"""Batches: which samples in which order, moved to the device and transformed there."""

from __future__ import annotations

import copy
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from balancebench_udi.data.base import Bundle, Choosing, Split
from balancebench_udi.seeding import generator

EVALUATION_BATCH = 512
"""Most samples in a batch that is not trained on."""
EVALUATION_BYTES = {"cpu": 2**24, "cuda": 2**29}
"""Most bytes of such a batch, by device: activations take some ten times as much."""
RESIDENT_SHARE = 0.5
"""On a GPU a split stays in device memory where it takes at most this share of what is free."""
AHEAD = 2
"""Batches that are read ahead for a GPU from a split that does not fit."""
READ = 2**23
"""Bytes that are read of a memory map before they are let go: of samples larger than a page few stay in use, whatever
the data's size; of small ones the system maps their neighbours, too."""
_CHUNK = 1024  # samples copied to a GPU at once


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
    """Batches of a bundle. Order depends on (seed, epoch) alone, augmentation on (seed, epoch, modality, sample).

    On a GPU a split lives in device memory where it fits; of one that does not, a thread reads batches ahead into
    pinned memory. There a batch is transformed on a stream of its own, while the step before it still runs. On a CPU a
    batch is read where it is, from memory or from the memory map.

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
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._read = 0

    def without_test(self) -> Loader:
        """The same batches of ``train`` and ``val``, and no test split: neither here nor in :attr:`bundle`."""
        made = copy.copy(self)
        made.splits = {name: split for name, split in self.splits.items() if name != "test"}
        made.bundle = copy.copy(self.bundle)
        object.__setattr__(made.bundle, "test", None)
        return made

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def target(self, split: str) -> Tensor:
        """``[N]`` int64 on the device."""
        return self.splits[split].target.to(self.device)

    def train(self, epoch: int, modalities: Sequence[str], view: View | None = None) -> Iterator[Batch]:
        """One epoch of shuffled, augmented training batches with the named modalities."""
        order = self._order(epoch, view)
        rows = order if view is None else [view.index.cpu()[chunk] for chunk in order]
        draws = self._draws(epoch, modalities)
        batches = self._batches(self.splits["train"], rows, modalities, draws)
        if view is None or view.keep is None:
            yield from batches
            return
        for batch, chunk in zip(batches, order, strict=True):
            keep = {m: view.keep[m][chunk].to(self.device) for m in modalities}
            yield Batch(batch.inputs, batch.target, batch.index, keep)

    def last(self, epoch: int, modalities: Sequence[str]) -> Batch:
        """The last batch of :meth:`train` without a view."""
        rows = self._order(epoch, None)[-1:]
        (batch,) = self._batches(self.splits["train"], rows, modalities, self._draws(epoch, modalities))
        return batch

    def steps(self, view: View | None = None) -> int:
        """Number of batches in one epoch."""
        return len(self._order(0, view))

    def ordered(
        self, split: str, modalities: Sequence[str], index: Tensor | None = None, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """A split (or its samples ``index``) in order, not augmented, nothing dropped."""
        rows = torch.arange(self.size(split)) if index is None else index.cpu()
        if batch_size is None:
            size = 4 * sum(math.prod(self.bundle.modalities[m].shape) for m in modalities)
            batch_size = max(1, min(EVALUATION_BATCH, EVALUATION_BYTES[self.device.type] // size))
        yield from self._batches(self.splits[split], list(rows.split(batch_size)), modalities, {})

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

    def _draws(self, epoch: int, modalities: Sequence[str]) -> dict[str, Tensor]:
        """One row of random numbers a training sample, of the modalities that are augmented; the same on any device."""
        counts = {m: self.bundle.modalities[m].transform.draws for m in modalities}
        return {
            m: torch.rand(self.size("train"), count, generator=generator(self.seed, "augment", epoch, m))
            for m, count in counts.items()
            if count
        }

    def _batches(
        self, split: Split, rows: Sequence[Tensor], modalities: Sequence[str], draws: Mapping[str, Tensor]
    ) -> Iterator[Batch]:
        made = self._made(split, rows, modalities, draws)
        return made if self._stream is None else beside(made, self._stream)

    def _made(
        self, split: Split, rows: Sequence[Tensor], modalities: Sequence[str], draws: Mapping[str, Tensor]
    ) -> Iterator[Batch]:
        if not rows:
            return
        there = split.target.device
        draws = {m: table.to(there) for m, table in draws.items()}

        transforms = {m: self.bundle.modalities[m].transform for m in modalities}

        def read(index: Tensor) -> tuple[Batch, dict[str, Tensor]]:
            chosen = {m: table[index] for m, table in draws.items()}
            stored = {}
            for m, transform in transforms.items():
                if isinstance(transform, Choosing):
                    stored[m] = transform.choose(split.inputs[m], split.at(index), chosen.get(m))
                else:
                    stored[m] = split.stored(m, index)
            self._read += sum(x.nbytes for x in stored.values())
            if self._read > READ:
                split.let_go()
                self._read = 0
            return Batch(stored, split.target[index], index), chosen

        def pinned(index: Tensor) -> tuple[Batch, dict[str, Tensor]]:
            batch, chosen = read(index)
            stored = {m: x.pin_memory() for m, x in batch.inputs.items()}
            return (
                Batch(stored, batch.target.pin_memory(), batch.index.pin_memory()),
                {m: x.pin_memory() for m, x in chosen.items()},
            )

        def present(batch: Batch, chosen: Mapping[str, Tensor]) -> Batch:
            inputs = {}
            for m, transform in transforms.items():
                drawn = chosen[m].to(self.device, non_blocking=True) if m in chosen else None
                last = transform.present if isinstance(transform, Choosing) else transform
                inputs[m] = last(batch.inputs[m].to(self.device, non_blocking=True), drawn)
            target, index = (x.to(self.device, non_blocking=True) for x in (batch.target, batch.index))
            return Batch(inputs, target, index)

        rows = torch.cat(list(rows)).to(there).split([len(chunk) for chunk in rows])  # one copy an epoch
        if there.type == self.device.type:
            for index in rows:
                yield present(*read(index))  # by no name: what is stored must not wait beside the step
        else:
            for parts in ahead(pinned, rows, AHEAD):
                yield present(*parts)


def beside(batches: Iterator[Batch], stream: torch.cuda.Stream) -> Iterator[Batch]:
    """``batches`` of a GPU, each made on ``stream`` before what is done with the one before it is launched."""
    device = stream.device
    stream.wait_stream(torch.cuda.current_stream(device))  # for what they are made of

    def make() -> tuple[Batch | None, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return next(batches, None), stream.record_event()

    try:
        batch, made = make()
        while batch is not None:
            following = make()
            user = torch.cuda.current_stream(device)
            user.wait_event(made)
            for x in (*batch.inputs.values(), batch.target, batch.index):
                x.record_stream(user)
            yield batch
            batch, made = following
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)


T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], values: Sequence[T], depth: int) -> Iterator[R]:
    """``map(function, values)``, computed by a thread up to ``depth`` values before they are asked for.

    What the function raises is raised here. The thread ends when the iterator is closed.
    """
    results: queue.Queue[tuple[R | None, BaseException | None]] = queue.Queue()
    room = threading.Semaphore(depth)
    closed = threading.Event()

    def work() -> None:
        for value in values:
            room.acquire()
            if closed.is_set():
                return
            try:
                results.put((function(value), None))
            except BaseException as error:
                results.put((None, error))
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in values:
            result, error = results.get()
            if error is not None:
                raise error
            room.release()
            yield result  # type: ignore[misc]
    finally:
        closed.set()
        room.release()
        thread.join()


def _place(split: Split, device: torch.device) -> Split:
    """The split in device memory where it fits, else where it was; another run may fill that memory meanwhile."""
    if device.type != "cuda":
        return split
    size = sum(x[:1].numel() * x.element_size() for x in split.inputs.values()) * len(split)
    free, _ = torch.cuda.mem_get_info(device)
    if size > RESIDENT_SHARE * free:
        return split
    inputs = {}
    for m, x in split.inputs.items():
        try:
            inputs[m] = torch.empty(len(split), *x.shape[1:], dtype=x.dtype, device=device)
        except torch.OutOfMemoryError:
            return split
        for chunk in torch.arange(len(split)).split(_CHUNK):  # a memory map need not fit into this machine's memory
            inputs[m][chunk[0] : chunk[-1] + 1] = split.stored(m, chunk)
            split.let_go()
    return Split(inputs, split.target.to(device))
