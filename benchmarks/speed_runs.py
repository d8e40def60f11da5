"""The trainings that ``benchmarks/speed.py`` times: workloads of random data, single runs, rounds, peak memory."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import wavfile
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import registry
from balancebench_udi.data.base import Affine, Bundle, Dataset, Modality, Split, Transform, fingerprint
from balancebench_udi.data.frames import FrameTransform
from balancebench_udi.data.manifest import Manifest
from balancebench_udi.data.pack import prepare
from balancebench_udi.errors import UserError
from balancebench_udi.nets.model import build_model
from balancebench_udi.protocol import Protocol, RunOptions
from balancebench_udi.replay import FIRST, Logs
from balancebench_udi.runner import Job, plan
from balancebench_udi.seeding import generator
from balancebench_udi.spec import Optimizer
from balancebench_udi.strategy import Batch, Strategy, make_optimizer
from balancebench_udi.trainer import Trainer
from benchmarks.command import choose_device, manage_memory_for

REFERENCE = "joint"
BARE = "bare loop"
REPLAYED = "bare loop, replayed"
"""On a GPU, the bare loop recorded once and replayed, as the harness does with its steps."""
CANDIDATES, STORED = 3, 256
"""Candidate frames kept of a clip, and their side in pixels."""
LONG = 100
"""Epochs that :attr:`Lap.long` stands for: the house protocol on CREMA-D."""
HELD_OUT = 8
"""Samples in the validation and in the test split: their evaluation is not measured."""

# -- workloads ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """One modality: its kind, the shape of a sample, its encoder, and whether it is stored as uint8 or float16.

    Frames are stored as packs store them: candidates of which some are chosen, cropped at random and mirrored.
    """

    kind: str
    shape: tuple[int, ...]
    encoder: str
    stored: str = "uint8"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of a sample in memory."""
        return (max(CANDIDATES, self.shape[1]), STORED, STORED, 3) if self.kind == "frames" else self.shape

    @property
    def transform(self) -> Transform:
        """From the stored values to about [-1, 1]."""
        channels = self.shape[0]
        if self.kind == "frames":
            return FrameTransform(self.shape[1], self.stored_shape[0])
        return Affine.normalise((0.5,) * channels, (0.5,) * channels) if self.stored == "uint8" else Affine()


@dataclass(frozen=True)
class Case:
    """A workload: random data of given shapes, and how long a run of it is.

    Attributes:
        steps: training steps in an epoch, all of ``batch`` samples.
        rounds: how often every competitor runs.
        folder: where the training data are memory-mapped from; None keeps them in memory.
    """

    name: str
    inputs: Mapping[str, Input]
    batch: int
    steps: int
    epochs: int
    rounds: int
    classes: int = 10
    folder: str | None = None

    @property
    def samples(self) -> int:
        return self.batch * self.steps

    @property
    def stored_bytes(self) -> int:
        """Of the training inputs."""
        size = {"uint8": 1, "float16": 2}
        return self.samples * sum(math.prod(x.stored_shape) * size[x.stored] for x in self.inputs.values())

    def bundle(self) -> Bundle:
        """The data; the same at every call."""
        modalities = {m: Modality(x.kind, x.shape, x.encoder, x.transform) for m, x in self.inputs.items()}
        target = torch.arange(self.samples + HELD_OUT) % self.classes
        train = Split({m: self._stored(m) for m in self.inputs}, target[: self.samples])
        held = {m: _draw(x, HELD_OUT, "held", m) for m, x in self.inputs.items()}
        rest = Split(held, target[-HELD_OUT:])
        names = tuple(map(str, range(self.classes)))
        key = fingerprint({"case": self.name, "samples": self.samples, "classes": self.classes})
        return Bundle(modalities, names, train, rest, rest, key, {"generated": True})

    def _stored(self, m: str) -> Tensor:
        x, rows = self.inputs[m], 1024
        if self.folder is None:
            return _draw(x, self.samples, m)
        path = Path(self.folder) / f"{self.name}-{m}"
        shape, written = (self.samples, *x.stored_shape), path.exists()
        mapped = np.memmap(path, x.stored, "r+" if written else "w+", shape=shape)
        for start in range(0, 0 if written else self.samples, rows):
            mapped[start : start + rows] = _draw(x, min(rows, self.samples - start), m, start).numpy()
        return torch.from_numpy(mapped)

    def jobs(self, methods: Mapping[str, type[Strategy]], precision: str) -> dict[str, Job]:
        """One run a method, through the runner's own plan.

        Raises:
            UserError: a method that cannot work on these modalities.
        """
        run = RunOptions(epochs=self.epochs, batch_size=self.batch, precision=precision)
        calm = Optimizer(lr=1e-4)  # nothing may diverge on random labels
        planned = plan(methods, Random(), self.bundle(), Protocol("speed", 1, "", run, calm), [0], {}, {})
        return {job.spec.method: job for job in planned}


class Random(Dataset):
    """Stands for the data of a :class:`Case` in a run's specification."""

    name = "random"
    reference = "ours"

    def load(self, root: Path | None) -> Bundle:
        """Not used: the data are made by :meth:`Case.bundle`."""
        raise UserError("the dataset random must be made by a Case of benchmarks/speed.py, found a call of load")


def _draw(x: Input, count: int, *stream: object) -> Tensor:
    source = generator(0, *stream)
    if x.stored == "uint8":
        return torch.randint(1, 256, (count, *x.stored_shape), dtype=torch.uint8, generator=source)
    return torch.randn(count, *x.shape, generator=source).half()


def digits(count: int = 2, encoder: str = "digit") -> dict[str, Input]:
    """``count`` images of 28 x 28, the first gray, the others coloured."""
    return {f"m{i}": Input("digit", (3 if i else 1, 28, 28), encoder) for i in range(count)}


def vectors(count: int = 2) -> dict[str, Input]:
    """``count`` feature vectors of 48 values."""
    return {f"m{i}": Input("vector", (48,), "mlp", "float16") for i in range(count)}


CASES = {"digit": "two DigitNets on 28 x 28", "av": "two ResNet-18 on a 257 x 188 spectrogram and 224 x 224 frames"}


def make_case(name: str, device: torch.device, frames: int = 1, quick: bool = False, **lengths: int) -> Case:
    """One of ``CASES``, in the size that suits the device.

    Args:
        frames: of a clip, for ``av``.
        quick: as small as can be.
        lengths: ``batch``, ``steps``, ``epochs`` or ``rounds`` of the caller's choice.
    """
    cuda = device.type == "cuda"
    if name == "digit":
        case = Case(name, digits(), batch=64, steps=200 if cuda else 60, epochs=2, rounds=7 if cuda else 5)
    else:
        sound = Input("spectrogram", (1, 257, 188), "resnet18", "float16")
        inputs = {"audio": sound, "visual": Input("frames", (3, frames, 224, 224), "resnet18")}
        steps, epochs = (94, 3) if cuda else (16, 2)  # on a GPU epochs of CREMA-D's length
        case = Case(name, inputs, 64 if cuda else 16, steps, epochs, rounds=2, classes=6)
    if quick:
        case = replace(case, batch=8, steps=2, rounds=1)
    return replace(case, **lengths)  # type: ignore[arg-type]


def pack_of_clips(root: Path, parts: Mapping[str, int], frames: int) -> None:
    """Prepare noise as a user's own clips, sound in wav and ``frames`` pictures each, below the data root ``root``."""
    stream, source = np.random.default_rng(0), root / "peer"
    lines = ["label,split,sound,pictures"]
    for part, count in parts.items():
        for i in range(count):
            name = f"{part}{i}"
            (source / name).mkdir(parents=True)
            wavfile.write(source / f"{name}.wav", 22050, stream.integers(-9999, 9999, 66150, dtype=np.int16))
            for frame in range(frames):
                pixels = stream.integers(0, 256, (90, 120, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(source / name / f"{frame}.png")
            lines.append(f"{i % 6},{part},{name}.wav,{name}")
    (source / "clips.csv").write_text("\n".join(lines) + "\n")
    (source / "manifest.yaml").write_text(
        "csv: clips.csv\nmodalities:\n  audio: {kind: audio, column: sound}\n"
        f"  visual: {{kind: video, column: pictures, candidates: {frames}, n_frames: {frames}}}\n"
    )
    dataset = Manifest().for_source(source)
    prepare(dataset, source, root, torch.get_num_threads(), quiet=True)


# -- one run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lap:
    """One training.

    Attributes:
        wall: seconds of all phases without evaluation.
        steps: training steps.
        even: ``wall`` by a :class:`Clock`.
        long: the same of ``LONG`` epochs a phase, the first as it was and the others like the mean of those after it.
        passes: samples through the encoders, forward + 2 x backward.
        waiting, stepping: seconds inside the loader's iterator and inside the method's step; 0 where not watched.
        window: share of the epochs inside the method's window; None where it has none.
    """

    wall: float
    steps: int
    even: float
    long: float
    passes: float = 0.0
    waiting: float = 0.0
    stepping: float = 0.0
    window: float | None = None


@dataclass(frozen=True)
class Stretch:
    """Some work: ``steps``, each over the beats around it, and the seconds of the ``rest`` at an even pace."""

    steps: Sequence[float]
    rest: float


class Clock:
    """Seconds as they would be if the machine kept the pace that it had at first.

    The speed of a shared CPU changes by tens of percent, from one second to the next and for all work alike. So a
    beat, some fixed work, follows every step; a step counts by its ratio to the beats on both sides, and the rest by
    what a beat took on average meanwhile.

    Args:
        beat: the work; None where the pace is known to be even.
    """

    def __init__(self, beat: Callable[[], None] | None = None) -> None:
        self._beat = beat
        self._beats, self._steps, self._spent = [1.0], list[float](), 0.0
        if beat is not None:
            beat()  # loads kernels
            self._beats = []
            self.tick(0.0)
            self._steps.clear()
        self.first = self._beats[0]

    def tick(self, step: float) -> float:
        """A beat after a step that took so many seconds; those of the beat, which are no part of the stretch."""
        if self._beat is None:
            return 0.0
        started = time.perf_counter()
        self._beat()
        beat = time.perf_counter() - started
        self._steps.append(2 * step / ((self._beats or [beat])[-1] + beat))
        self._spent += step
        self._beats.append(beat)
        return beat

    def stretch(self, seconds: float) -> Stretch:
        """What took ``seconds``, steps included, ends here, and the next one begins; one without beats has the last."""
        pace = sum(self._beats) / len(self._beats) / self.first
        found = Stretch(self._steps, (seconds - self._spent) / pace)
        self._beats, self._steps, self._spent = [self._beats[-1]], [], 0.0
        return found

    def evened(self, stretches: Sequence[Stretch]) -> list[float]:
        """Seconds of each of a phase's epochs; all its steps are taken to be like the median one."""
        step = self.first * float(np.median([x for s in stretches for x in s.steps] or [0.0]))
        return [len(s.steps) * step + s.rest for s in stretches]


def prolonged(epochs: Sequence[float]) -> float:
    """Seconds of ``LONG`` epochs, from those of the first few."""
    first, *later = epochs
    return first + (LONG - 1) * (sum(later) / len(later) if later else first)


def train(job: Job, device: torch.device, watch: bool = False, finish: bool = False, clock: Clock | None = None) -> Lap:
    """A whole training of ``job``, evaluation left out of its time.

    Args:
        clock: ticks after every step.
        finish: also evaluate the trained networks and fit probes, which is work and memory, though not this time.
        watch: also time the loader and the steps one by one; on a GPU every such time waits for the device, which makes
            the whole slower.
    """
    gc.collect()
    steps = 0
    seconds = {"waiting": 0.0, "stepping": 0.0}
    clock = clock or Clock()
    phases: dict[str, list[Stretch]] = {}
    counted = 0.0

    def tick(phase: str, count: int) -> None:
        nonlocal steps
        steps += count

    def uncounted() -> float:
        nonlocal counted
        total = sum(cost["seconds"] for cost in trainer.progress.costs)
        before, counted = counted, total
        return total - before

    def epoch_done(entry: Mapping[str, Any]) -> None:
        phases.setdefault(entry["phase"], []).append(clock.stretch(uncounted()))

    trainer = Trainer(job.spec, job.bundle, job.method, job.options, device, tick=tick, watch=epoch_done)
    load, step = trainer.loader.train, trainer.step

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        synchronise(device)
        started = time.perf_counter()
        yield
        synchronise(device)
        seconds[what] += time.perf_counter() - started

    def timed_load(*arguments: Any) -> Iterator[Batch]:
        batches = load(*arguments)
        while True:
            with timed("waiting"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def timed_step(batch: Batch) -> Logs:
        with timed("stepping"):
            return step(batch)

    def ticking_step(batch: Batch) -> Logs:
        started = time.perf_counter()
        logs = timed_step(batch) if watch else step(batch)
        trainer.progress.costs[-1]["seconds"] -= clock.tick(time.perf_counter() - started)
        return logs

    trainer.step = ticking_step  # type: ignore[method-assign]
    if watch:
        trainer.loader.train = timed_load  # type: ignore[method-assign, assignment]
    if not finish:
        trainer._outcome = lambda: {"cost": {"phases": trainer.progress.costs}}  # type: ignore[method-assign]
    costs = trainer.run()["cost"]["phases"]
    last = clock.stretch(uncounted()).rest  # the end of the last phase
    epochs = [clock.evened(stretches) for stretches in phases.values()]
    window = getattr(job.options, "window", None)
    lasted = range(job.spec.epochs)
    return Lap(
        wall=sum(p["seconds"] for p in costs),
        steps=steps,
        even=sum(map(sum, epochs)) + last,
        long=sum(map(prolonged, epochs)) + last,
        passes=sum(sum(p["forward"].values()) + 2 * sum(p["backward"].values()) for p in costs),
        **(seconds if watch else {}),
        window=None if window is None else sum(trainer.task.within(window, e) for e in lasted) / len(lasted),
    )


class Bare:
    """The least that training a job's networks takes: forward, loss, backward, optimiser, on one resident batch.

    Networks, precision and optimiser are made as for the job; the inputs are already floats, in the memory layout that
    the encoders want.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        spec, self.device = job.spec, device
        self.autocast = spec.precision == "bf16"
        shapes = {m: modality.shape for m, modality in job.bundle.modalities.items()}
        encoders = {m: dict(e) for m, e in spec.encoders.items()}
        self.model = build_model(encoders, shapes, spec.fusion, len(job.bundle.classes), spec.seed).to(device).train()
        self.optimizer = make_optimizer(Optimizer(**spec.optimizer), self.model.parameters())
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        self.inputs = {}
        for m, shape in shapes.items():
            x = torch.randn(spec.batch_size, *shape, generator=generator(0, "bare", m))
            self.inputs[m] = x.to(device).contiguous(memory_format=layouts.get(x.dim(), torch.contiguous_format))
        self.target = job.bundle.train.target[: spec.batch_size].to(device)

    def step(self) -> None:
        """One update."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            read = {m: encoder(self.inputs[m]) for m, encoder in self.model.encoders.items()}
        loss = F.cross_entropy(self.model.fusion({m: f.float() for m, f in read.items()}), self.target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def train_bare(job: Job, device: torch.device, replay: bool = False, clock: Clock | None = None) -> Lap:
    """As many steps of :class:`Bare` as a joint training of ``job`` has.

    Args:
        replay: record a step, before the time begins, and replay it.
        clock: ticks after every step.
    """
    gc.collect()
    bare = Bare(job, device)
    step = recorded(bare.step, device) if replay else bare.step
    clock = clock or Clock()
    wall = 0.0
    stretches = []
    synchronise(device)
    for _ in range(job.spec.epochs):
        beats = 0.0
        started = time.perf_counter()
        for _ in range(job.steps // job.spec.epochs):
            begun = time.perf_counter()
            step()
            beats += clock.tick(time.perf_counter() - begun)
        synchronise(device)
        taken = time.perf_counter() - started - beats
        wall += taken
        stretches.append(clock.stretch(taken))
    epochs = clock.evened(stretches)
    return Lap(wall, job.steps, even=sum(epochs), long=prolonged(epochs))


def recorded(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A replay of ``step``, recorded as a CUDA graph after it has run a few times."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(FIRST):
            step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def synchronise(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def shorter(job: Job) -> Job:
    """One step and one epoch of ``job``: enough to load its kernels."""
    batch = job.bundle.train.take(torch.arange(job.spec.batch_size))
    return replace(job, spec=replace(job.spec, epochs=1), bundle=replace(job.bundle, train=batch))


# -- rounds ------------------------------------------------------------------------------------------------------------


def progress(total: int, label: str, unit: str = "run") -> tqdm:
    """A bar with the time left; in a log file a line now and then."""
    pace = 0.5 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, desc=label, unit=unit, mininterval=pace, miniters=1)


def described(label: str, error: Exception) -> str:
    """What broke, in one line."""
    return f"{label}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def interleave(
    warm: Mapping[str, Callable[[], Lap]],
    runs: Mapping[str, Callable[[], Lap]],
    rounds: int,
    label: str,
    failed: list[str],
    until: float = math.inf,
) -> dict[str, list[Lap]]:
    """``rounds`` turns of all ``runs``, starting with another one each time, after one turn of ``warm``.

    Args:
        until: no turn but the first begins that would end after this, by ``time.monotonic``.

    Returns:
        name -> one :class:`Lap` a round. A run that breaks is left out and described in ``failed``.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in runs}
    longest = 0.0
    with progress(len(warm) + rounds * len(runs), label) as bar:
        for turn in range(-1, rounds):
            started = time.monotonic()
            if turn > 0 and started + longest > until:
                break
            names = [name for name in (warm if turn < 0 else runs) if name in laps]
            first = max(turn, 0) % max(len(names), 1)
            for name in names[first:] + names[:first]:
                try:
                    if turn < 0:
                        warm[name]()
                    else:
                        laps[name].append(runs[name]())
                except UserError:
                    raise
                except Exception as error:  # one broken method must not take the others with it
                    failed.append(described(f"{label}: {name}", error))
                    del laps[name]
                bar.update()
            longest = max(longest, time.monotonic() - started)
    return laps


def compete(
    case: Case,
    methods: Mapping[str, type[Strategy]],
    precision: str,
    device: torch.device,
    failed: list[str],
    until: float = math.inf,
) -> tuple[dict[str, list[Lap]], dict[str, list[Lap]]]:
    """The bare loop and ``methods`` in turns; ``until`` as in :func:`interleave`.

    Returns:
        the timed laps, and the watched ones: the same on a CPU, one more round on a GPU, or none for lack of time.
    """
    manage_memory_for(precision, device)
    jobs = case.jobs(methods, precision)
    on_cpu, label = device.type == "cpu", f"{case.name} {precision}"
    bare = replace(next(iter(jobs.values())), method=Strategy, options=Strategy.Options())
    clock = Clock(Bare(bare, device).step if on_cpu else None)
    warm = {BARE: functools.partial(train_bare, shorter(bare), device)}
    runs = {BARE: functools.partial(train_bare, bare, device, clock=clock)}
    if not on_cpu:
        warm[REPLAYED] = functools.partial(train_bare, shorter(bare), device, replay=True)
        runs[REPLAYED] = functools.partial(train_bare, bare, device, replay=True)
    for name, job in jobs.items():
        warm[name] = functools.partial(train, shorter(job), device)
        runs[name] = functools.partial(train, job, device, watch=on_cpu, clock=clock)
    started = time.monotonic()
    laps = interleave(warm, runs, case.rounds, label, failed, until)
    if on_cpu:
        return laps, laps
    watched = {name: functools.partial(train, job, device, watch=True) for name, job in jobs.items() if name in laps}
    turns = 1 + max(map(len, laps.values()), default=0)
    if time.monotonic() + (time.monotonic() - started) / turns > until:
        return laps, {}
    return laps, interleave({}, watched, 1, f"{label} watched", failed)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles; of fewer than four values their extremes."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75) if len(values) > 3 else (0, 0.5, 1)).tolist()
    return {"median": middle, "q1": low, "q3": high, "n": len(values)}


def paired(laps: Sequence[Lap], others: Sequence[Lap], of: Callable[[Lap], float]) -> dict[str, float]:
    """Spread of the ratio ``of(lap) / of(other)`` within the rounds."""
    return spread([of(a) / of(b) for a, b in zip(laps, others, strict=True)])


# -- other processes ---------------------------------------------------------------------------------------------------

STATUS = Path("/proc/self/status")


def resident() -> dict[str, int]:
    """Bytes of this process's own memory (``own``) and of mapped files (``mapped``) that are in RAM."""
    found = {k: int(v) * 1024 for k, v in re.findall(r"^(Rss\w+):\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)}
    return {"own": found["RssAnon"], "mapped": found["RssFile"] + found["RssShmem"]}


class Peak:
    """Context: ``values`` is the highest :func:`resident` inside, read a thousand times a second by a thread."""

    def __enter__(self) -> Peak:
        self.values = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.values = {k: max(v, self.values[k]) for k, v in resident().items()}

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def peak_memory(case: Case, method: str, precision: str, device_type: str, threads: int) -> dict[str, int]:
    """Peak bytes of one run: ``own``, ``mapped``, and ``device`` on a GPU. Call it in a process of its own."""
    torch.set_num_threads(threads)
    device = choose_device(device_type)
    manage_memory_for(precision, device)
    with Peak() as peak:
        train(case.jobs({method: registry.methods.get(method)}, precision)[method], device, finish=True)
    on_device = {"device": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
    return {**peak.values, **on_device}


def fresh_processes(
    workers: int, gates: Mapping[int, Any] | None = None, tasks: int | None = None
) -> ProcessPoolExecutor:
    """A pool of processes that have imported torch and used nothing of it.

    Args:
        gates: for :func:`train_together`.
        tasks: how many each process does before another one takes its place; None for any number.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    return ProcessPoolExecutor(workers, context, _wait_at, (gates or {},), max_tasks_per_child=tasks)


def barriers(counts: Sequence[int]) -> dict[int, Any]:
    """Number of processes -> where they wait for each other."""
    return {count: multiprocessing.get_context("forkserver").Barrier(count) for count in counts}


_gates: dict[int, Any] = {}


def _wait_at(gates: Mapping[int, Any]) -> None:
    _gates.update(gates)


def train_together(case: Case, precision: str, device_type: str, threads: int, count: int) -> tuple[float, float, int]:
    """Train joint once all ``count`` processes are ready: start and end by the machine's clock, and samples trained."""
    torch.set_num_threads(threads)
    device = choose_device(device_type)
    manage_memory_for(precision, device)
    job = case.jobs({REFERENCE: registry.methods.get(REFERENCE)}, precision)[REFERENCE]
    train(shorter(job), device)
    _gates[count].wait(timeout=300)
    start = time.monotonic()
    lap = train(job, device)
    return start, time.monotonic(), lap.steps * case.batch
