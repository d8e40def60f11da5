"""Trains one run: phases, epochs, checkpoints, snapshots of the best epoch, evaluation at the end.

The trainer owns batches, seeds, precision and time. It knows no method; a method knows it only as a ``Task``.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from balancebench_udi.data.base import Bundle
from balancebench_udi.data.loader import Batch, Loader
from balancebench_udi.errors import RunFailed, UserError
from balancebench_udi.evaluation import compare_gradients, evaluate, fit_probes
from balancebench_udi.interruption import asked, unsaved
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.nets.model import build_model
from balancebench_udi.replay import Logs, Steps
from balancebench_udi.seeding import derive
from balancebench_udi.spec import RunSpec, Schedule
from balancebench_udi.store import Store
from balancebench_udi.strategy import Phase, Strategy, Task

Tick = Callable[[str, int], None]
"""``tick(phase name, training steps done)``: called after every epoch, for the progress bar."""

Watch = Callable[[Mapping[str, Any]], None]
"""``watch(entry)``: called with every entry of the curves, also with those of a phase that was reused or resumed."""

READINGS = ("last", "best_val", "best_test")
COMPARED, FEWEST_COMPARED = 20, 8
"""Gradients are compared on at most one of so many training samples, and on no fewer than so many."""


@dataclass
class Progress:
    """Everything a run needs to go on after it was killed; plain values and CPU tensors only."""

    phase: int = 0
    epoch: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, list[float]] = field(default_factory=dict)
    """Reading -> [score, epoch] of the current phase."""
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    """A phase -> {reading: {"epoch": e, "tensors": {name: tensor}}}."""
    costs: list[dict[str, Any]] = field(default_factory=list)
    """A phase -> what it took; see :meth:`Trainer._cost`."""
    wall_seconds: float = 0.0
    """Of the processes before this one, up to the checkpoint that the next went on from."""


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """Learning-rate factor at ``progress`` in [0, 1): epochs done over epochs of the phase."""
    if schedule.name == "step":
        return schedule.factor if progress >= schedule.at - 1e-9 else 1.0
    if schedule.name == "steps":
        return schedule.factor ** int((progress + 1e-9) / schedule.at)
    if schedule.name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


class Trainer:
    """One run from its specification to its result.

    Args:
        spec: the run.
        bundle: its dataset, loaded.
        method: the class of its method.
        options: the method's options.
        device: where to train.
        store: where checkpoints and shared phases live; None keeps nothing.
        checkpoint_every: least seconds between two checkpoints; 0 writes one after every epoch. One is also written
            before a signal ends the call, see :mod:`interruption`.
        tick: progress callback.
        watch: gets the curves as they grow.
    """

    def __init__(
        self,
        spec: RunSpec,
        bundle: Bundle,
        method: type[Strategy],
        options: Any,
        device: torch.device,
        store: Store | None = None,
        checkpoint_every: float = 20.0,
        tick: Tick = lambda phase, steps: None,
        watch: Watch = lambda entry: None,
    ) -> None:
        self._begun = time.perf_counter()
        self.spec = spec
        self.store = store
        self.checkpoint_every = checkpoint_every
        self.tick = tick
        self.watch = watch
        self.device = device
        shapes = {m: modality.shape for m, modality in bundle.modalities.items()}
        autocast = {"fp32": None, "bf16": torch.bfloat16}[spec.precision]
        model = build_model(
            {m: dict(e) for m, e in spec.encoders.items()},
            shapes,
            spec.fusion,
            len(bundle.classes),
            spec.seed,
            autocast,
        ).to(device)
        self.loader = Loader(bundle, device, spec.batch_size, spec.seed)
        self.task = Task(spec, model, self.loader, shapes)
        self.strategy = method(options)
        self.strategy.setup(self.task)
        self.strategy.to(device)
        self.task._module = self.strategy
        self.steps = Steps(self.strategy, device, spec.batch_size)
        self.progress = Progress()
        self._saved_at = time.monotonic()

    # -- the whole run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train what is left, evaluate, and return ``{"result": ..., "cost": ...}`` as JSON types.

        Raises:
            RunFailed: a loss or a score that is not finite.
        """
        with self._stream():
            optimizer_state = self._resume()
            while (phase := self._phase()) is not None:
                if optimizer_state is None and self._reuse(phase):
                    continue
                self._train_phase(phase, optimizer_state)
                optimizer_state = None
            return self._outcome()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        """On a GPU, a stream of the run's own: steps cannot be recorded on the default one."""
        if self.device.type != "cuda":
            yield
            return
        outside, own = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        own.wait_stream(outside)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            outside.wait_stream(own)

    def _phase(self) -> Phase | None:
        phase = self.strategy.phase(self.progress.phase)
        if phase is not None:
            self.task.phase = phase
        return phase

    def _train_phase(self, phase: Phase, optimizer_state: dict[str, Any] | None) -> None:
        progress = self.progress
        self._freeze(phase)
        optimizer = self.task.optimizer = self.task.make_optimizer(
            p for n, p in self.strategy.named_parameters() if phase.trainable(n) and not is_auxiliary(n)
        )
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        else:
            progress.epoch = 0
            progress.best = {}
            progress.snapshots.append({})
            progress.costs.append(self._cost(phase))
            with self._metered():
                self.strategy.begin_phase()
        schedule = Schedule(**self.spec.schedule)
        while not self._over(phase):
            epoch = progress.epoch
            lr = float(self.spec.optimizer["lr"]) * schedule_factor(schedule, epoch / phase.epochs)
            for group in optimizer.param_groups:
                group["lr"] = lr
            self.task.epoch = epoch
            give_back_memory()
            with self._metered():
                train = self._train_epoch(phase)
            give_back_memory()
            self._validate(phase, epoch, lr, train)
            progress.epoch = epoch + 1
            unsaved(self.store is not None)
            if not self._over(phase):
                self._checkpoint(optimizer)
        self.steps.forget()
        self._close(phase)

    def _over(self, phase: Phase) -> bool:
        """Every epoch of the phase is done, or its patience is over; known from the saved progress alone."""
        done = self.progress.epoch
        if phase.patience is not None and done > 0:
            best = int(self.progress.best["best_val"][1])
            if done - 1 - best >= phase.patience:
                return True
        return done >= phase.epochs

    def _train_epoch(self, phase: Phase) -> dict[str, float]:
        torch.manual_seed(derive(self.spec.seed, "global", self.progress.phase, self.task.epoch))  # of every device
        strategy = self.strategy
        self._modes(phase)
        strategy.begin_epoch()
        totals: dict[tuple[str, ...], Tensor] = {}
        seen = steps = 0
        for batch in self.loader.train(
            self.task.epoch, phase.modalities or self.task.modalities, strategy.sample_view()
        ):
            logs = self.step(batch)
            if not steps and not self.task.epoch:
                give_back_memory()  # a phase's first step leaves the optimiser's state among what is free again
            values = logs.values * len(batch)
            totals[logs.names] = totals[logs.names] + values if logs.names in totals else values
            seen += len(batch)
            steps += 1
        strategy.end_epoch()
        means: dict[str, float] = {}
        for names, sums in totals.items():  # the epoch's only wait for the device
            means |= {n: means.get(n, 0.0) + value / seen for n, value in zip(names, sums.tolist(), strict=True)}
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise RunFailed(
                    f"the training {name} must stay finite, found {mean} in epoch {self.task.epoch} of phase "
                    f"{phase.name} ({self.spec.method}, seed {self.spec.seed}): lower optimizer.lr (now "
                    f"{self.spec.optimizer['lr']}) or check the method's options"
                )
        self.tick(phase.name, steps)
        return means

    def step(self, batch: Batch) -> Logs:
        """One update of the current phase."""
        return self.steps(batch, self.progress.phase, self.task.optimizer.param_groups[0]["lr"])

    def _validate(self, phase: Phase, epoch: int, lr: float, train: dict[str, float]) -> None:
        started = time.perf_counter()
        progress = self.progress
        seen = phase.monitor or phase.modalities or tuple(self.task.modalities)
        splits = ["val", "test"] if self.spec.test_each_epoch else ["val"]
        scores = {split: evaluate(self.strategy, self.loader, split, seen).scores for split in splits}
        if phase.shared is not None:  # another method would split the same logits differently, or not at all
            scores = {s: {n: v for n, v in found.items() if not n.startswith("share/")} for s, found in scores.items()}
        pull = compare_gradients(self.strategy, self.loader, seen, self._compared())
        entry = {"phase": phase.name, "epoch": epoch, "lr": lr, "train": train, **scores}
        self._note([{**entry, "gradients": pull} if pull else entry])
        tensors: dict[str, Tensor] | None = None
        for reading, split in (("best_val", "val"), ("best_test", "test")):
            if split not in scores:
                continue
            score = scores[split]["accuracy"]
            if reading not in progress.best or score > progress.best[reading][0]:
                progress.best[reading] = [score, epoch]
                tensors = tensors or self._snapshot(phase)
                progress.snapshots[-1][reading] = {"epoch": epoch, "tensors": tensors}
        progress.costs[-1]["evaluation_seconds"] += time.perf_counter() - started

    def _compared(self) -> int:
        """Samples on which gradients are compared after an epoch: a batch, but not much of an epoch's work."""
        return min(self.spec.batch_size, max(FEWEST_COMPARED, self.loader.size("train") // COMPARED))

    def _note(self, entries: Iterable[dict[str, Any]]) -> None:
        for entry in entries:
            self.progress.curves.append(entry)
            self.watch(entry)

    def _close(self, phase: Phase) -> None:
        """The phase is trained: keep its last weights, put the kept ones in place, share them, go on."""
        progress = self.progress
        progress.snapshots[-1]["last"] = {"epoch": progress.epoch - 1, "tensors": self._snapshot(phase)}
        if phase.shared is not None and self.store is not None:
            stage = {
                "snapshots": progress.snapshots[-1],
                "cost": progress.costs[-1],
                "curves": [c for c in progress.curves if c["phase"] == phase.name],
                "from": self.spec.key,
            }
            self.store.save_state(self._stage_path(phase), stage)
        self._enter(phase)

    def _enter(self, phase: Phase) -> None:
        """Stand on the phase's kept weights and begin the next one."""
        load_tensors(self.strategy, self.progress.snapshots[-1][phase.keep]["tensors"])
        with self._metered():
            self.strategy.end_phase()
        self.progress.phase += 1
        self.progress.epoch = 0

    # -- phases that several methods share ---------------------------------------------------------------------------

    def _stage_path(self, phase: Phase) -> Path:
        assert self.store is not None
        assert phase.shared is not None
        return self.store.stage_path(self.spec.stage_key(phase.shared))

    def _reuse(self, phase: Phase) -> bool:
        """Take a phase that another run has trained identically. True where there was one."""
        if phase.shared is None or self.store is None:
            return False
        stage = self.store.load_state(
            self._stage_path(phase), lambda state: self._fits(state, phase), f"phase {phase.name} is trained again"
        )
        if stage is None:
            return False
        self.progress.snapshots.append(stage["snapshots"])
        self.progress.costs.append({**stage["cost"], "phase": phase.name, "reused_from": stage["from"]})
        self._note({**c, "phase": phase.name} for c in stage["curves"])
        self.tick(phase.name, phase.epochs * self.task.steps_per_epoch)
        self._enter(phase)
        return True

    def _fits(self, stage: Mapping[str, Any], phase: Phase) -> bool:
        """Whether a stage holds what the phase trains, in every reading."""
        own, readings = _shapes(self._snapshot(phase)), stage["snapshots"]
        return (
            {"curves", "from"} <= stage.keys()
            and stage["cost"].keys() == self._cost(phase).keys()
            and phase.keep in readings
            and all(_shapes(reading["tensors"]) == own for reading in readings.values())
        )

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        if self.store is None or (time.monotonic() - self._saved_at < self.checkpoint_every and not asked()):
            return
        state = {
            "progress": {**vars(self.progress), "wall_seconds": self.wall_seconds()},
            "strategy": self.strategy.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": self.task.generator.get_state(),
        }
        self.store.save_state(self.store.checkpoint_path(self.spec), state)
        self._saved_at = time.monotonic()
        unsaved(False)

    def wall_seconds(self) -> float:
        """Since the trainer was made, and of the processes that the run was interrupted in."""
        return self.progress.wall_seconds + time.perf_counter() - self._begun

    def _resume(self) -> dict[str, Any] | None:
        """Go back to the last checkpoint, if there is one; returns the optimiser's state."""
        if self.store is None:
            return None
        names = {"progress", "strategy", "optimizer", "generator"}
        state = self.store.load_state(
            self.store.checkpoint_path(self.spec),
            lambda state: (
                names <= state.keys()
                and state["progress"].keys() == vars(self.progress).keys()
                and fits(self.strategy, state["strategy"])
            ),
            "the run starts again",
        )
        if state is None:
            return None
        self.progress = Progress(**state["progress"])
        for entry in self.progress.curves:
            self.watch(entry)
        self.strategy.load_state_dict(state["strategy"])
        self.task.generator.set_state(state["generator"])
        self.tick("resumed", len(self.progress.curves) * self.task.steps_per_epoch)
        return state["optimizer"]

    # -- what is trainable -------------------------------------------------------------------------------------------

    def _freeze(self, phase: Phase) -> None:
        trained = False
        for name, parameter in self.strategy.named_parameters():
            if not is_auxiliary(name):
                parameter.requires_grad_(phase.trainable(name))
                parameter.grad = None
                trained = trained or parameter.requires_grad
        if not trained:
            raise UserError(f"phase {phase.name} of {self.spec.method} must train some parameter, found none")

    def _modes(self, phase: Phase) -> None:
        """Train mode, except for modules that hold tensors of which none is trainable: buffers too."""
        self.strategy.train()
        names = list(self.strategy.state_dict(keep_vars=True))
        for prefix, module in self.strategy.named_modules():
            if not prefix or is_auxiliary(prefix):
                continue
            inside = [n for n in names if n.startswith(prefix + ".")]
            if inside and not any(phase.trainable(n) for n in inside):
                module.eval()

    def _snapshot(self, phase: Phase) -> dict[str, Tensor]:
        return {
            name: value.detach().to("cpu", copy=True)
            for name, value in self.strategy.state_dict().items()
            if isinstance(value, Tensor) and phase.trainable(name) and not is_auxiliary(name)
        }

    # -- cost and outcome --------------------------------------------------------------------------------------------

    def _cost(self, phase: Phase) -> dict[str, Any]:
        """Seconds of training and of evaluation, and samples through each encoder, forward and backward."""
        zero = dict.fromkeys(self.task.modalities, 0)
        return {
            "phase": phase.name,
            "seconds": 0.0,
            "cpu_seconds": 0.0,
            "evaluation_seconds": 0.0,
            "forward": dict(zero),
            "backward": dict(zero),
            "reused_from": None,
        }

    def _metered(self) -> _Meter:
        return _Meter(self)

    def _outcome(self) -> dict[str, Any]:
        """Evaluate every reading on val and test; equal readings are evaluated once."""
        target = self.loader.target("test")
        readings: dict[str, Any] = {}
        done: dict[tuple[int, ...], str] = {}
        for reading in READINGS:
            snapshots = self._composed(reading)
            if snapshots is None:
                continue
            epochs = tuple(s["epoch"] for s in snapshots)
            if epochs in done:
                readings[reading] = readings[done[epochs]]
                continue
            done[epochs] = reading
            for snapshot in snapshots:
                load_tensors(self.strategy, snapshot["tensors"])
            give_back_memory()
            probes = fit_probes(self.strategy, self.loader, self.task.modalities)
            val, test = (
                evaluate(self.strategy, self.loader, split, self.task.modalities, subsets=True, probes=probes)
                for split in ("val", "test")
            )
            if not all(math.isfinite(v) for v in (*val.scores.values(), *test.scores.values())):
                raise RunFailed(
                    f"scores must be finite, found {test.scores} in reading {reading} of {self.spec.method}, "
                    f"seed {self.spec.seed}: lower optimizer.lr"
                )
            readings[reading] = {
                "epochs": list(epochs),
                "val": val.scores,
                "test": test.scores,
                "predictions": {name: pack(values) for name, values in test.predicted.items()},
            }
        trained = {name for s in self.progress.snapshots for name in next(iter(s.values()))["tensors"]}
        sizes = [p.numel() for name, p in self.strategy.named_parameters() if name in trained]
        result = {
            "readings": readings,
            "curves": self.progress.curves,
            "test_target": pack(target),
            "modalities": self.task.modalities,
            "parameters": sum(sizes),
            "passes": self._passes(),
            "facts": self.strategy.facts(),
        }
        return {"result": result, "cost": {"phases": self.progress.costs}}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """``{reading: {tensor name: value}}`` of the finished run, on the CPU: all that ``predict`` needs."""
        state = {n: v.detach().cpu() for n, v in self.strategy.state_dict().items() if not is_auxiliary(n)}
        kept: dict[str, dict[str, Tensor]] = {}
        for reading in READINGS:
            if (snapshots := self._composed(reading)) is not None:
                kept[reading] = {**state, **{n: v for s in snapshots for n, v in s["tensors"].items()}}
        return kept

    def _composed(self, reading: str) -> list[dict[str, Any]] | None:
        """The snapshots that a reading is made of, one a phase; None where the run has no such reading.

        What a later phase was trained on is what it is read with: of a chain only the last phase has readings, and
        earlier ones stand as they were handed over. Independent phases have a reading each.
        """
        *earlier, last = self.progress.snapshots
        if self.strategy.independent_phases:
            found = [*earlier, last]
            return [s[reading] for s in found] if all(reading in s for s in found) else None
        if reading not in last:
            return None
        kept = [phase.keep for i in range(len(earlier)) if (phase := self.strategy.phase(i)) is not None]
        return [*(s[keep] for s, keep in zip(earlier, kept, strict=True)), last[reading]]

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of one reading of :meth:`weights` in place.

        Raises:
            UserError: they are those of another network.
        """
        own = {n: v for n, v in self.strategy.state_dict().items() if not is_auxiliary(n)}
        if _shapes(own) != _shapes(tensors):
            raise UserError(f"weights must be those of {self.spec.method} in this run, found other names or shapes")
        load_tensors(self.strategy, tensors)

    def _passes(self) -> dict[str, dict[str, int]]:
        """Samples through each encoder if the run had been made alone: shared phases count in full."""
        costs = self.progress.costs
        return {
            way: {m: sum(c[way][m] for c in costs) for m in self.task.modalities} for way in ("forward", "backward")
        }


class _Meter:
    """Adds the time and the passes spent inside to the current phase's cost."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        self._passes = self._count()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        cost = self.trainer.progress.costs[-1]
        cost["seconds"] += time.perf_counter() - self._wall
        cost["cpu_seconds"] += time.process_time() - self._cpu
        for (way, m), count in self._count().items():
            cost[way][m] += count - self._passes[way, m]

    def _count(self) -> dict[tuple[str, str], int]:
        passes = self.trainer.strategy.model.passes
        return {(way, m): n for way in ("forward", "backward") for m, n in getattr(passes, way).items()}


def give_back_memory() -> None:
    """Hand what the GNU C library keeps of freed memory to the system; elsewhere nothing.

    After an epoch of convolutional networks on a CPU that is a gigabyte, in pieces that evaluation has no use for, and
    the other way round.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def is_auxiliary(name: str) -> bool:
    """Whether a tensor belongs to a network that the method optimises itself (``aux_*`` attributes of the strategy)."""
    return name.startswith("aux_")


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the named tensors into the module, in place."""
    own = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def fits(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether ``state`` holds the module's tensors, by name and shape."""
    return _shapes(module.state_dict()) == _shapes(state)


def _shapes(values: Mapping[str, Any]) -> dict[str, torch.Size | None]:
    return {name: value.shape if isinstance(value, Tensor) else None for name, value in values.items()}
