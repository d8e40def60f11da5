"""Plans runs, trains what is missing, and keeps what is done: a killed sweep goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import balancebench_udi
from balancebench_udi.data.base import Bundle, Dataset
from balancebench_udi.errors import UserError
from balancebench_udi.interruption import unsaved
from balancebench_udi.nets.encoders import build_encoder, encoder_options
from balancebench_udi.nets.fusion import check_fusion
from balancebench_udi.protocol import Protocol
from balancebench_udi.spec import RunSpec
from balancebench_udi.store import Store, sealed
from balancebench_udi.strategy import Batch, Strategy
from balancebench_udi.text import shortened
from balancebench_udi.trainer import Trainer, Watch, give_back_memory

LONGEST = 300
"""Characters of what a broken run says in one line."""
PROBE_SECONDS = 2.0
"""Time after which no further step is taken to tell how long a step takes."""


@dataclass(frozen=True)
class Job:
    """One run that is wanted."""

    spec: RunSpec
    method: type[Strategy]
    options: Any
    bundle: Bundle

    @property
    def epochs(self) -> int:
        """Epochs of all its phases."""
        return self.method.planned_epochs(self.options, self.spec.epochs, list(self.bundle.modalities))

    @property
    def steps(self) -> int:
        """Training steps of all its phases."""
        return self.epochs * -(-len(self.bundle.train) // self.spec.batch_size)


@dataclass
class Outcome:
    """What became of the jobs of one call."""

    done: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    elsewhere: list[Job] = field(default_factory=list)


class Bar(Interface):
    """What a progress bar must do; tqdm's does."""

    n: float
    total: float

    def update(self, n: float) -> Any: ...

    def set_description(self, desc: str, refresh: bool) -> Any: ...


def resolve_precision(protocol: Protocol, device: torch.device) -> Protocol:
    """The protocol with ``precision: auto`` replaced by what ``device`` is good at."""
    if protocol.run.precision != "auto":
        return protocol
    precision = "bf16" if has_bf16(device) else "fp32"
    return dataclasses.replace(protocol, run=dataclasses.replace(protocol.run, precision=precision))


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 matrices itself; elsewhere bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return any(able.get(unit, False) for unit in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def plan(
    methods: Mapping[str, type[Strategy]],
    dataset: Dataset,
    bundle: Bundle,
    protocol: Protocol,
    seeds: Sequence[int],
    options: Mapping[str, Mapping[str, Any]],
    encoders: Mapping[str, Mapping[str, Any]],
) -> list[Job]:
    """The runs of ``methods`` x ``seeds``, everything checked: nothing can be refused once training has started.

    Args:
        options: method name -> options from the command line, over those of the protocol.
        encoders: modality -> encoder description from the command line, over those of the protocol.

    Raises:
        UserError: anything that cannot work.
    """
    fusion = check_fusion(protocol.run.fusion, len(bundle.modalities))
    described = {}
    for m, modality in bundle.modalities.items():
        wanted = {"name": modality.encoder, **protocol.encoders.get(m, {})}
        given = dict(encoders.get(m, {}))
        if given.get("name", wanted["name"]) != wanted["name"]:
            wanted = {}  # another encoder: the options of the first one do not apply
        wanted.update(given)
        try:
            described[m] = encoder_options(wanted.pop("name"), modality.kind, wanted)
        except UserError as error:
            raise UserError(f"modality {m}: {error}") from None
    preset = protocol.options_on(dataset.name)
    jobs = []
    for name, method in methods.items():
        chosen = method.Options.build(name, {**preset.get(name, {}), **options.get(name, {})})
        method.check(chosen, list(bundle.modalities), fusion.additive)
        jobs += [
            Job(
                RunSpec(
                    protocol=protocol.name,
                    protocol_version=protocol.version,
                    dataset=dataset.name,
                    dataset_version=dataset.version,
                    dataset_options=dataset.options.as_dict(),
                    fingerprint=bundle.fingerprint,
                    method=name,
                    method_version=method.version,
                    method_options=chosen.as_dict(),
                    encoders=described,
                    fusion=protocol.run.fusion,
                    optimizer=protocol.optimizer.as_dict(),
                    schedule=protocol.schedule.as_dict(),
                    epochs=protocol.run.epochs,
                    batch_size=protocol.run.batch_size,
                    precision=protocol.run.precision,
                    seed=seed,
                    test_each_epoch=protocol.run.test_each_epoch,
                ),
                method,
                chosen,
                bundle,
            )
            for seed in seeds
        ]
    for job in jobs[:: max(1, len(seeds))]:
        Trainer(job.spec, bundle, job.method, job.options, torch.device("cpu"))  # builds everything, trains nothing
    return jobs


def estimate(jobs: Sequence[Job], store: Store, device: torch.device, fewest: int = 0) -> float | None:
    """Seconds that ``jobs`` will take on ``device``.

    By the pace of records of the same data and encoders, of the same method where there are any; without records, by
    timing up to two training steps of the first job, or None where all jobs have fewer than ``fewest``.
    """
    if not jobs:
        return 0.0
    wanted = jobs[0].spec.as_dict()
    paces: dict[str, list[float]] = {}
    for record in store.records(jobs[0].spec.dataset):
        alike = all(record["spec"][part] == wanted[part] for part in ("fingerprint", "encoders", "precision"))
        phases = [p for p in record["cost"]["phases"] if p["reused_from"] is None]
        if alike and phases and record["machine"]["device_type"] == device.type:
            trained = {p["phase"] for p in phases}
            epochs = sum(c["phase"] in trained for c in record["result"]["curves"])
            seconds = sum(p["seconds"] + p["evaluation_seconds"] for p in phases)
            paces.setdefault(record["spec"]["method"], []).append(seconds / epochs)
    pace = {name: statistics.median(values) for name, values in paces.items()}
    if not pace and sum(job.steps for job in jobs) < fewest:
        return None
    general = statistics.median(pace.values()) if pace else _probe(jobs[0], device)
    return sum(job.epochs * pace.get(job.spec.method, general) for job in jobs)


def _probe(job: Job, device: torch.device) -> float:
    """Seconds of one epoch of ``job``, from two of its steps, or one where it takes over two seconds.

    A step of two samples comes before them, which is slower than it should be: it prepares kernels.
    """
    trainer = Trainer(job.spec, job.bundle, Strategy, Strategy.Options(), device)
    times: list[float] = []
    trainer.task.optimizer = trainer.task.make_optimizer(trainer.strategy.parameters())
    for batch, _ in zip(trainer.loader.train(0, trainer.task.modalities), range(2), strict=False):
        if not times:
            trainer.strategy.step(Batch({m: x[:2] for m, x in batch.inputs.items()}, batch.target[:2], batch.index[:2]))
        started = time.perf_counter()
        trainer.strategy.step(batch)["loss"].item()
        times.append(time.perf_counter() - started)
        if sum(times) > PROBE_SECONDS:
            break
    return min(times) * trainer.task.steps_per_epoch


def run_all(
    jobs: Sequence[Job],
    store: Store,
    device: torch.device,
    checkpoint_every: float = 20.0,
    say: Callable[[str], None] = tqdm.write,
    bar: Bar | None = None,
    watch: Callable[[RunSpec], Watch] | None = None,
    verified: bool = False,
) -> Outcome:
    """Train every job that has no record. Runs that another process holds are left to it.

    A run that breaks is stored as a failure and the rest goes on.

    Args:
        checkpoint_every: least seconds between two checkpoints of a run.
        say: prints a line.
        bar: counts training steps; None draws one.
        watch: called with the specification of a run when it starts; what it returns gets the curves as they grow.
        verified: another process has checked the stored data in full, and said what the file system lacks.

    Raises:
        UserError: damaged data, before anything is trained; results cannot be written, what is finished is kept.
    """
    outcome = Outcome()
    missing: list[Job] = []
    for job in jobs:
        (outcome.done if store.done(job.spec) else missing).append(job)
    for job in missing if not verified else ():
        job.bundle.verify()  # the first time in full
    if missing:
        store.prepare((lambda line: None) if verified else say)  # before the bar is drawn
        _commit()  # of the code that runs, whatever happens to the files meanwhile
    with contextlib.ExitStack() as stack:
        bar = bar if bar is not None else stack.enter_context(step_bar(missing))
        for job in missing:
            with store.claim(job.spec) as mine:
                if not mine:
                    outcome.elsewhere.append(job)
                    bar.total -= job.steps
                    continue
                if not store.done(job.spec):  # another process may have finished it since the plan was made
                    error = _run(job, store, device, checkpoint_every, bar, watch)
                    unsaved(False)  # a signal that waited for this run ends the call here
                    if error is not None:
                        outcome.failed.append((job, error))
                        say(f"failed: {job.spec.method} seed {job.spec.seed}: {error}")
                        continue
                outcome.done.append(job)
    give_back_memory()  # of the last run: tables and figures come now
    return outcome


def step_bar(missing: Sequence[Job]) -> tqdm:
    """A progress bar over the training steps of ``missing``."""
    pace = 0.5 if sys.stderr.isatty() else 15.0  # a log file needs a line now and then, not a moving bar
    total = sum(j.steps for j in missing)
    return tqdm(total=total, unit="step", smoothing=0.05, mininterval=pace, miniters=1, disable=not missing)


def _run(
    job: Job,
    store: Store,
    device: torch.device,
    checkpoint_every: float,
    bar: Bar,
    watch: Callable[[RunSpec], Watch] | None,
) -> str | None:
    """Train one job and write its record; returns what went wrong, if anything did."""
    before = bar.n

    def tick(phase: str, steps: int) -> None:
        bar.set_description(f"{job.spec.method} seed {job.spec.seed} {phase}", refresh=False)
        bar.update(min(steps, before + job.steps - bar.n))

    fresh = _reset_peak_memory(device)
    try:
        look: Watch = watch(job.spec) if watch is not None else lambda entry: None
        trainer = Trainer(job.spec, job.bundle, job.method, job.options, device, store, checkpoint_every, tick, look)
        made = trainer.run()
    except UserError:
        raise
    except Exception as error:  # one broken run must not take the sweep with it
        path = store.write_failure(job.spec, traceback.format_exc())
        bar.update(before + job.steps - bar.n)
        return f"{type(error).__name__}: {shortened(str(error).partition(chr(10))[0], LONGEST)} (traceback in {path})"
    bar.update(before + job.steps - bar.n)
    if store.weights:
        store.save_weights(job.spec, trainer.weights())
    cost = {**made["cost"], **_compute(job, made["result"]["passes"])}
    cost["wall_seconds"] = trainer.wall_seconds()
    cost["peak_memory_bytes"] = _peak_memory(device) if fresh else None
    cost["peak_memory_of"] = "run"
    data = {
        "classes": list(job.bundle.classes),
        "facts": dict(job.bundle.facts),
        "groups": None if job.bundle.groups is None else job.bundle.groups.as_dict(),
    }
    store.write(job.spec, sealed(job.spec, made["result"], cost, data, describe_machine(device)))
    return None


def _reset_peak_memory(device: torch.device) -> bool:
    """Begin to measure anew, without the runs before; False where the system cannot."""
    gc.collect()  # a trainer and its method refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return True
    give_back_memory()  # of the run before
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU, or resident on a CPU, where they include the data and the libraries."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _compute(job: Job, passes: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Floating-point operations of the encoders: forward as counted by torch, backward as twice that."""
    per_sample = {}
    for m, modality in job.bundle.modalities.items():
        encoder = build_encoder(dict(job.spec.encoders[m]), modality.shape).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(torch.zeros(1, *modality.shape))
        per_sample[m] = counter.get_total_flops()
    total = sum(per_sample[m] * (passes["forward"][m] + 2 * passes["backward"][m]) for m in per_sample)
    return {"flops_per_sample": per_sample, "flops": total}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a number may depend on besides its specification."""
    return {
        "device_type": device.type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "system": platform.system(),
        "balancebench_udi": balancebench_udi.__version__,
        "commit": _commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def _commit() -> str | None:
    """The commit of this checkout when first asked, ``+`` where tracked code differs from it; None outside one.

    Protocols do not count: their content is in the spec.
    """
    here = Path(__file__).resolve().parent
    code = (".", "../baselines", "../registry.py", "../benchmarks/*.py")

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "HEAD")[:12] + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
