"""Training steps on a GPU as replays of a recorded one: a single launch instead of several hundred."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from balancebench_udi.data.loader import Batch
from balancebench_udi.strategy import Strategy

FIRST = 2
"""Steps that run as they are before one like them is recorded: they make the optimiser's state and load kernels."""


@dataclass
class Logs:
    """What a step logs: ``values [n]`` on the device, in the order of ``names``."""

    names: tuple[str, ...]
    values: Tensor


@dataclass
class Recording:
    """A CUDA graph of one step, the tensors it reads its batch from, and what it leaves behind."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    logs: Logs
    forward: Mapping[str, int]
    backward: Mapping[str, int]


class Steps:
    """Calls ``strategy.step``, on a GPU by replay where the strategy allows it.

    A step of two ResNet-18 is some 800 kernels, of two small networks 150. Launching them one by one from Python takes
    a GPU's host longer than the GPU needs to run them; a recorded step is launched as a whole. It does the same
    arithmetic in the same order: results are bit for bit those of steps that are not replayed.

    A recording holds for one key: phase, learning rate, form of the batch and :meth:`Strategy.replay_key`. Where the
    key changes, the first steps run as they are and then one is recorded. A step that cannot be recorded (one that
    waits for the device, say) is never replayed.

    Args:
        strategy: set up, on ``device``.
        device: without CUDA every step runs as it is.
        batch_size: of a full batch; smaller ones run as they are.
    """

    def __init__(self, strategy: Strategy, device: torch.device, batch_size: int) -> None:
        self.strategy = strategy
        self.device = device
        self.batch_size = batch_size
        self.allowed = device.type == "cuda"
        self.replayed = 0
        """Steps so far that were replays."""
        self._key: Hashable = None
        self._seen = 0
        self._recording: Recording | None = None

    def __call__(self, batch: Batch, phase: int, lr: float) -> Logs:
        """One update."""
        own = self.strategy.replay_key() if self.allowed and len(batch) == self.batch_size else None
        if own is None:
            return self._step(batch)
        key = (phase, lr, own, tuple((name, x.shape, x.dtype) for name, x in _tensors(batch).items()))
        if key != self._key:
            self.forget()
            self._key = key
        self._seen += 1
        if self._seen <= FIRST:
            return self._step(batch)
        if self._recording is None:
            self._recording = self._record(batch)
            if self._recording is None:
                self.allowed = False
                return self._step(batch)
        return self._replay(self._recording, batch)

    def forget(self) -> None:
        """Let the recording and its memory go."""
        self._key, self._seen, self._recording = None, 0, None

    def _step(self, batch: Batch) -> Logs:
        logs = self.strategy.step(batch)
        values = [torch.as_tensor(value, device=self.device) for value in logs.values()]
        return Logs(tuple(logs), torch.stack(values))

    def _record(self, batch: Batch) -> Recording | None:
        """Record a step without running it; None where that cannot be."""
        passes = self.strategy.model.passes
        before = dict(passes.forward), dict(passes.backward)
        still = Batch(
            {m: x.clone() for m, x in batch.inputs.items()},
            batch.target.clone(),
            batch.index.clone(),
            None if batch.keep is None else {m: x.clone() for m, x in batch.keep.items()},
        )
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # a recording keeps memory of its own
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.strategy.task.generator)
        try:
            graph.capture_begin(capture_error_mode="thread_local")  # a thread may be reading ahead
            try:
                logs = self._step(still)
            finally:
                graph.capture_end()
        except RuntimeError:
            return None
        finally:
            counted = [
                {m: now[m] - then[m] for m in now}
                for now, then in zip((passes.forward, passes.backward), before, strict=True)
            ]
            passes.forward.update(before[0])
            passes.backward.update(before[1])
        return Recording(graph, still, logs, *counted)

    def _replay(self, recording: Recording, batch: Batch) -> Logs:
        for still, x in zip(_tensors(recording.batch).values(), _tensors(batch).values(), strict=True):
            still.copy_(x)
        recording.graph.replay()
        self.replayed += 1
        passes = self.strategy.model.passes
        for m, count in recording.forward.items():
            passes.forward[m] += count
            passes.backward[m] += recording.backward[m]
        return recording.logs


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """All tensors of a batch, by name."""
    found = {f"inputs/{m}": x for m, x in batch.inputs.items()}
    found |= {"target": batch.target, "index": batch.index}
    return found | {f"keep/{m}": x for m, x in (batch.keep or {}).items()}
