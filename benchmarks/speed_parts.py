"""The parts of ``benchmarks/speed.py``: each measures one thing and returns its tables."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from balancebench_udi.data.clips import VIDEO, Clip, Clips
from balancebench_udi.data.pack import Listing, prepare
from balancebench_udi.errors import UserError
from balancebench_udi.strategy import Strategy
from benchmarks.command import LARGE_PAGES
from benchmarks.speed_runs import (
    BARE,
    CASES,
    LONG,
    REFERENCE,
    REPLAYED,
    Bare,
    Case,
    Lap,
    barriers,
    compete,
    described,
    digits,
    fresh_processes,
    interleave,
    pack_of_clips,
    paired,
    peak_memory,
    progress,
    recorded,
    shorter,
    spread,
    synchronise,
    train,
    train_together,
    vectors,
)

BUDGETS = {"ogm_ge": 1.10, "pmr": 1.25, "agm": 2.2, "mmpareto": 1.8, "udi": 1.8}
"""Most time that a whole training may take, as a multiple of a joint training of the same epochs."""
LEAST_OF_BARE = {"cpu": 0.90, "cuda": 0.95}
"""Least throughput of joint, as a share of the bare loop's."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MLP_STEPS = 20
"""A training step of an MLP is far shorter than a digit network's: such runs get so many times the steps."""

PEER = "BalanceBenchmark, arXiv 2502.10816, commit 4c1482f, run on 2 CPU cores after repairs"
PEER_SECONDS, PEER_BYTES, PEER_THREADS = 243.0, 5.5e9, 2
PEER_STEP = 7.2
"""Seconds that a step of its networks, with nothing around it, took where it took ``PEER_SECONDS``."""
PEER_TIME = {"fp32": 3 / 4, "bf16": 1 / 3}
"""Most time that :func:`peer`'s workload may take, as a share of ``PEER_SECONDS`` (which are fp32)."""
PEER_MEMORY = 1 / 2
PEER_PACK = "peer"
AS_IT_IS = "as it is"
OTHERWISE = {"fp32": "--no-spare-memory", "bf16": "--spare-memory"}
"""On a CPU: what ``run.py`` does not do where nothing is said."""

Columns = list[tuple[str, str, str]]
TEXT = {name: (name, name, "text") for name in ("case", "precision", "method", "encoder", "verdict")}


@dataclass(frozen=True)
class Table:
    """``columns``: (key of a row's value, heading, kind); kinds are text, number, ratio, percent and MB."""

    title: str
    says: str
    columns: Columns
    rows: Sequence[Mapping[str, Any]]

    def markdown(self) -> list[str]:
        """Title, what it shows, the rows in columns of equal width."""
        cells = [[head for _, head, _ in self.columns]]
        cells += [[_cell(row.get(key), kind) for key, _, kind in self.columns] for row in self.rows]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        left = [kind == "text" for _, _, kind in self.columns]

        def line(row: Sequence[str]) -> str:
            padded = (c.ljust(w) if at else c.rjust(w) for c, w, at in zip(row, widths, left, strict=True))
            return f"| {' | '.join(padded)} |"

        rule = [":" + "-" * (w - 1) if at else "-" * (w - 1) + ":" for w, at in zip(widths, left, strict=True)]
        return [f"### {self.title}", "", self.says, "", line(cells[0]), line(rule), *map(line, cells[1:]), ""]


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        middle, low, high = (_cell(value[k], kind) for k in ("median", "q1", "q3"))
        return middle if kind == "percent" else f"{middle} ({low} to {high})"
    if isinstance(value, str) or (kind == "number" and isinstance(value, int)):
        return str(value)
    if kind == "MB":
        return f"{value / 1e6:.0f}"
    if kind == "number":
        return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return f"{value:.3f}" if kind == "ratio" else f"{100 * value:.1f}"


def verdict(value: float, limit: float | None, least: bool = False) -> str | None:
    """``ok``, or ``over`` (``under`` where ``limit`` is the ``least`` allowed); None without a limit."""
    if limit is None:
        return None
    if least:
        return "ok" if value >= limit else "under"
    return "ok" if value <= limit else "over"


@dataclass
class Setting:
    """What every part needs to know.

    Attributes:
        quick: everything as small as can be.
        laps: what the part ``methods`` of this call has measured, by case and precision.
        failed: one sentence a run that broke.
        clips: a folder of videos for the part ``preparing``.
        until: when no further round should begin, by ``time.monotonic``.
    """

    device: torch.device
    methods: Mapping[str, type[Strategy]]
    precisions: Sequence[str]
    cases: Sequence[Case]
    quick: bool = False
    laps: dict[tuple[str, str], dict[str, list[Lap]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    clips: Path | None = None
    until: float = math.inf

    @property
    def joint(self) -> dict[str, type[Strategy]]:
        """Joint alone."""
        return {REFERENCE: self.methods[REFERENCE]}

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    @property
    def on_device(self) -> Columns:
        """A column for the GPU's memory, where there is one."""
        return [("device", "device, MB", "MB")] if self.device.type == "cuda" else []


# -- methods -----------------------------------------------------------------------------------------------------------


def methods(setting: Setting) -> list[Table]:
    """Whole trainings of every method against joint, and joint against the bare loop."""
    tables, against_bare = [], []
    least = LEAST_OF_BARE[setting.device.type]
    for case in setting.cases:
        for precision in setting.precisions:
            laps, watched = compete(case, setting.methods, precision, setting.device, setting.failed, setting.until)
            if not {BARE, REFERENCE} <= set(laps):
                continue
            setting.laps[case.name, precision] = laps
            rows = {name: _method_row(name, laps, watched, case) for name in laps}
            shown = replace(case, rounds=len(laps[BARE]))
            tables.append(_method_table(shown, precision, list(rows.values()), setting.device))
            if case.name == "av":
                tables.append(_whole_table(laps, case, precision))
            share = paired(laps[BARE], laps[REFERENCE], lambda lap: lap.even)
            replayed = paired(laps[REPLAYED], laps[REFERENCE], lambda lap: lap.even) if REPLAYED in laps else None
            against_bare.append(
                {
                    "case": case.name,
                    "precision": precision,
                    **{name: rows[name]["samples_per_second"] for name in (BARE, REPLAYED, REFERENCE) if name in rows},
                    "share": share,
                    "replayed": replayed,
                    "budget": least,
                    "verdict": verdict((replayed or share)["median"], least, least=True),
                }
            )
    says = (
        "Throughput of joint as a share of the bare loop's: the same networks, precision and optimiser on one resident "
        "batch that is already transformed, and nothing else. What is missing to 1 is loading, transforming, logging."
    )
    if setting.device.type == "cpu":
        says += (
            " A shared machine's speed changes from one second to the next: here and in the ratios of time below, a "
            "step counts by its ratio to the steps of a bare loop made right before and after it, by the median of a "
            "phase; work between the steps by what those took on average."
        )
    columns: Columns = [TEXT["case"], TEXT["precision"]]
    on_gpu = setting.device.type == "cuda"
    if on_gpu:
        says += (
            " The harness replays recorded steps, so that it can pass a loop that launches every kernel by itself: "
            "replayed is that loop with its step recorded, too, which the verdict is on."
        )
    columns += [(name, f"{name}, samples/s", "number") for name in (BARE, *[REPLAYED] * on_gpu, REFERENCE)]
    columns += [("share", "joint / bare", "ratio"), *[("replayed", "joint / bare, replayed", "ratio")] * on_gpu]
    columns.append(("budget", "at least", "ratio"))
    return [Table("Joint against a bare loop", says, [*columns, TEXT["verdict"]], against_bare), *tables]


def _method_row(
    name: str, laps: Mapping[str, list[Lap]], watched: Mapping[str, list[Lap]], case: Case
) -> dict[str, Any]:
    mine, joint = laps[name], laps[REFERENCE]
    long = paired(mine, joint, lambda lap: lap.long)
    budget = BUDGETS.get(name)
    row = {
        "method": name,
        "steps": mine[0].steps,
        "samples_per_second": spread([lap.steps * case.batch / lap.wall for lap in mine]),
        "ms_per_step": spread([1e3 * lap.wall / lap.steps for lap in mine]),
        "time": paired(mine, joint, lambda lap: lap.even),
        "long": long,
        "budget": budget,
        "verdict": verdict(long["median"], budget),
    }
    if name in (BARE, REPLAYED):
        return row
    row |= {"window": mine[0].window, "passes": mine[0].passes / joint[0].passes}
    if seen := watched.get(name):
        row["waiting"] = spread([lap.waiting / lap.wall for lap in seen])
        row["between"] = spread([1 - (lap.waiting + lap.stepping) / lap.wall for lap in seen])
        if REFERENCE in watched:
            row["step"] = paired(seen, watched[REFERENCE], lambda lap: lap.stepping / lap.wall * lap.even / lap.steps)
    return row


def _method_table(case: Case, precision: str, rows: Sequence[Mapping[str, Any]], device: torch.device) -> Table:
    says = (
        f"{CASES[case.name]}, batch {case.batch}, {precision}; one run is {case.epochs} epochs of {case.steps} steps a "
        f"phase; medians (quartiles; of fewer than four, extremes) of {case.rounds} rounds. **time / joint**: seconds "
        "of all phases of a whole training over those of a joint training of the same epochs, with the work that is "
        "done once an epoch or once "
        f"a phase. **In {LONG} epochs**: the same of as many, of which every phase's first is as measured and the "
        "others are like the mean of those after it; what is done once a phase hardly counts there. **Between steps**: "
        "the share of work outside steps and loader. **acts in**: share of these epochs inside the method's window; "
        "outside it the method costs what joint costs, so that a longer run, of which the default window covers less, "
        "has a lower ratio. **step / joint**: one step over one of joint's. **waiting**: share of the time inside the "
        "loader's iterator. **passes**: samples through the encoders, forward + 2 x backward."
    )
    if device.type == "cuda":
        says += (
            " Where steps and batches are timed each by itself, nothing runs beside them: waiting is what making the "
            "batches takes, which otherwise happens while a step runs."
        )
    columns: Columns = [
        TEXT["method"],
        ("steps", "steps", "number"),
        ("samples_per_second", "samples/s", "number"),
        ("ms_per_step", "ms / step", "number"),
        ("time", "time / joint", "ratio"),
        ("long", f"in {LONG} epochs", "ratio"),
        ("budget", "at most", "ratio"),
        TEXT["verdict"],
        ("step", "step / joint", "ratio"),
        ("passes", "passes / joint", "ratio"),
        ("waiting", "waiting %", "percent"),
        ("between", "between steps %", "percent"),
        ("window", "acts in %", "percent"),
    ]
    return Table(f"Methods, {case.name}, {precision}", says, columns, rows)


SIX = ("joint", "ogm_ge", "agm", "pmr", "mmpareto", "udi")
"""The methods of the table whose time :func:`methods` tells."""
TABLE_SAMPLES, TABLE_SEEDS = 6028, 3
"""CREMA-D's training clips without a tenth for validation, and the house protocol's seeds."""


def _whole_table(laps: Mapping[str, list[Lap]], case: Case, precision: str) -> Table:
    """What the measured trainings say of a whole table on CREMA-D."""
    factor = TABLE_SAMPLES * TABLE_SEEDS / case.samples
    hours = {name: spread([lap.long * factor / 3600 for lap in laps[name]]) for name in SIX if name in laps}
    total = {key: sum(found[key] for found in hours.values()) for key in ("median", "q1", "q3")}
    rows = [{"method": name, "hours": found} for name, found in hours.items()] + [{"method": "all", "hours": total}]
    says = (
        f"Extrapolated from the runs above to {TABLE_SAMPLES} clips, {LONG} epochs and {TABLE_SEEDS} seeds, "
        f"training only; {precision}. The share of each method's window is that of the short runs."
    )
    return Table(f"One CREMA-D table, {precision}", says, [TEXT["method"], ("hours", "hours", "number")], rows)


# -- scaling -----------------------------------------------------------------------------------------------------------


def scaling(setting: Setting) -> list[Table]:
    """Joint with more samples, modalities and classes, in fp32."""
    quick = setting.quick
    base = Case("", {}, 8 if quick else 64, steps=2 if quick else 10, epochs=1, rounds=setting.cases[0].rounds)
    encoders = {
        "MLP on vectors": (vectors, replace(base, steps=base.steps * MLP_STEPS)),
        "DigitNet": (digits, base),
    }
    modalities: list[dict[str, Any]] = []
    classes: list[dict[str, Any]] = []
    several, many = ([2, 3], [10, 100]) if quick else ([2, 3, 4, 5, 6], [10, 100, 1000])
    for encoder, (inputs, case) in encoders.items():
        cases = {m: replace(case, name=f"{encoder} x {m}", inputs=inputs(m)) for m in several}
        modalities += [{"encoder": encoder, **row} for row in _ladder(f"modalities, {encoder}", cases, setting)]
        cases = {c: replace(case, name=f"{encoder}, {c} classes", inputs=inputs(2), classes=c) for c in many}
        classes += [{"encoder": encoder, **row} for row in _ladder(f"classes, {encoder}", cases, setting)]
    columns: Columns = [("ms_per_step", "ms / step", "number"), ("relative", "/ first", "ratio")]
    columns += [("waiting", "waiting %", "percent")]
    growth = "Joint in fp32 with more modalities: a step should grow in proportion to them, no faster."
    head = "Joint in fp32 with more classes: only the last layer and the loss should grow."
    return [
        _samples(setting, base, columns),
        Table("Modalities", growth, [TEXT["encoder"], ("value", "modalities", "number"), *columns], modalities),
        Table("Classes", head, [TEXT["encoder"], ("value", "classes", "number"), *columns], classes),
    ]


def _samples(setting: Setting, base: Case, columns: Columns) -> Table:
    """Data that are memory-mapped: times in this process, memory in a process of its own for every size."""
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            base.batch * n: replace(base, name=f"samples-{n}", inputs=digits(2, "mlp"), steps=n, folder=folder)
            for n in ((1, 2) if setting.quick else (16, 64, 256, 1024))
        }
        rows = _ladder("samples", cases, setting)
        calls = {n: (case, REFERENCE, "fp32", setting.device.type, setting.threads) for n, case in cases.items()}
        peaks = _peaks(calls, "scaling memory", setting.failed)
    for row in rows:
        peak = peaks.get(row["value"], {})
        row |= {"data": cases[row["value"]].stored_bytes, **peak}
        if peak and rows[0].get("own"):
            row["growth"] = peak["own"] - rows[0]["own"]
    says = (
        f"One epoch of joint in fp32, batch {base.batch}, with two small MLPs on memory-mapped 28 x 28 images: neither "
        "the time of a step nor what the process allocates itself (own: RssAnon, interpreter and libraries included) "
        "should grow with the data; mapped pages are the system's to drop."
    )
    memory: Columns = [("data", "data, MB", "MB"), ("own", "own, MB", "MB"), ("growth", "above first, MB", "MB")]
    memory += [("mapped", "mapped, MB", "MB"), *setting.on_device]
    return Table("Samples", says, [("value", "samples", "number"), *columns, *memory], rows)


def _ladder(label: str, cases: Mapping[int, Case], setting: Setting) -> list[dict[str, Any]]:
    """A row for each of ``cases``, joint training in fp32, in turns."""
    jobs = {str(value): case.jobs(setting.joint, "fp32")[REFERENCE] for value, case in cases.items()}
    warm = {value: partial(train, shorter(job), setting.device) for value, job in jobs.items()}
    runs = {value: partial(train, job, setting.device, watch=True) for value, job in jobs.items()}
    laps = interleave(warm, runs, next(iter(cases.values())).rounds, label, setting.failed)
    first = next(iter(laps.values()), [])
    return [
        {
            "value": int(value),
            "ms_per_step": spread([1e3 * lap.wall / lap.steps for lap in mine]),
            "relative": paired(mine, first, lambda lap: lap.wall / lap.steps),
            "waiting": spread([lap.waiting / lap.wall for lap in mine]),
        }
        for value, mine in laps.items()
    ]


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(setting: Setting) -> list[Table]:
    """Peak memory of every method, each in a process of its own."""
    calls = {
        (case.name, precision, name): (
            replace(case, steps=2, epochs=2),
            name,
            precision,
            setting.device.type,
            setting.threads,
        )
        for case in setting.cases
        for precision in setting.precisions
        for name in (setting.joint if setting.quick else setting.methods)
    }
    peaks = _peaks(calls, "memory", setting.failed)
    rows = []
    for (case, precision, method), peak in peaks.items():
        row: dict[str, Any] = {"case": case, "precision": precision, "method": method, **peak}
        if joint := peaks.get((case, precision, REFERENCE)):
            kind = "device" if "device" in peak else "own"
            row["ratio"] = peak[kind] / joint[kind]
        rows.append(row)
    says = (
        "Highest memory of a training of two steps an epoch, so that the data are as good as nothing. Own: what the "
        "process allocates (RssAnon, interpreter and libraries included); mapped: files and libraries; device: what "
        "torch allocates on the GPU."
    )
    columns: Columns = [TEXT["case"], TEXT["precision"], TEXT["method"], ("own", "own, MB", "MB")]
    columns += [("mapped", "mapped, MB", "MB"), *setting.on_device, ("ratio", "/ joint", "ratio")]
    return [Table("Peak memory", says, columns, rows)]


def _peaks(calls: Mapping[Any, tuple[Any, ...]], label: str, failed: list[str]) -> dict[Any, dict[str, int]]:
    """:func:`peak_memory` of each of ``calls``, one process after the other."""
    found = {}
    with progress(len(calls), label, "process") as bar:
        for key, arguments in calls.items():
            with fresh_processes(1) as pool:
                try:
                    found[key] = pool.submit(peak_memory, *arguments).result()
                except Exception as error:
                    failed.append(described(f"{label}: {key}", error))
            bar.update()
    return found


# -- peer --------------------------------------------------------------------------------------------------------------

WATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "said": done.stderr.strip()[-200:], "seconds": seconds,
                  "cpu_seconds": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024}))
"""
"""Runs a command from a process so small that the command's peak memory cannot be its parent's (Linux hands it on)."""


def peer(setting: Setting) -> list[Table]:
    """The workload that BalanceBenchmark was timed on, through ``benchmarks/run.py``, from command to table.

    A shared machine is a fifth slower in one minute than in another, and theirs was timed at another time: a step of
    its networks is timed before and after every run, and the run is held against their time at that pace.
    """
    parts, batch, frames, epochs = ({"train": 256, "val": 8, "test": 64}, 32, 2, 2)
    if setting.quick:
        parts, batch, frames, epochs = ({"train": 4, "val": 4, "test": 4}, 4, 1, 1)
    comparable = setting.device.type == "cpu" and setting.threads == PEER_THREADS and not setting.quick
    pace = partial(their_pace, batch, frames, steps=6 if comparable else 0)
    rounds = 1 if setting.quick else setting.cases[0].rounds
    chosen = [(p, AS_IT_IS) for p in setting.precisions] * rounds
    if setting.device.type == "cpu" and not setting.quick:
        chosen += [(p, OTHERWISE[p]) for p in setting.precisions]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as root, progress(len(chosen), "peer", "process") as bar:
        pack_of_clips(Path(root), parts, frames)
        before = pace()
        for precision, way in chosen:
            words = ["--methods", REFERENCE, "--dataset", "manifest", "--set", f"manifest.name={PEER_PACK}"]
            words += ["--data-root", root, "--seeds", "0", "--precision", precision]
            words += ["--epochs", str(epochs), "--batch-size", str(batch), "--device", setting.device.type]
            words += [way] if way != AS_IT_IS else []
            seen = run_watched([*words, "--out", "out"], setting.threads)
            after = pace()
            step, before = (before + after) / 2, after
            if seen["code"]:
                setting.failed.append(f"peer {precision}: run.py ended with {seen['code']}: {seen['said']}")
            else:
                theirs = PEER_SECONDS * step / PEER_STEP
                run = {name: float(seen[name]) for name in ("seconds", "cpu_seconds", "memory")}
                run |= {"their_step": step, "their_seconds": theirs, "time": seen["seconds"] / theirs}
                found.setdefault((precision, way), []).append(run | {"memory_ratio": seen["memory"] / PEER_BYTES})
            bar.update()
    rows: list[dict[str, Any]] = []
    for (precision, way), runs in found.items():
        row: dict[str, Any] = {name: spread([run[name] for run in runs]) for name in runs[0]}
        limits = {"time": PEER_TIME[precision], "memory_ratio": PEER_MEMORY}
        for name, limit in limits.items():
            row[f"{name}_target"] = limit
            row[f"{name}_verdict"] = verdict(row[name]["median"], limit) if comparable else None
        rows.append({"precision": precision, "way": way, "their_memory": PEER_BYTES, **row})
    says = (
        f"Joint training of two ResNet-18 on {parts['train']} clips ({frames} frames of 224 x 224, chosen, cropped and "
        "mirrored of stored ones of 256 x 256, a spectrogram of 257 x 188), "
        f"batch {batch}, {epochs} epochs, evaluation on {parts['test']} test clips: the whole process from command to "
        f"table, {setting.threads} threads, from a pack that was prepared before; medians (extremes) of {rounds} runs "
        f"as it is, one otherwise. Beside it: {PEER}, in fp32, on 256 clips of 2 "
        f"frames, batch 32, 2 epochs and 64 test clips; a verdict is given for the same workload on {PEER_THREADS} CPU "
        f"threads only. It took {PEER_SECONDS:.0f} s, where a step of its networks with nothing around it took "
        f"{PEER_STEP} s; theirs is that time at the pace of such steps right before and after the run here."
    )
    columns: Columns = [
        TEXT["precision"],
        ("way", "called", "text"),
        ("seconds", "seconds", "number"),
        ("cpu_seconds", "CPU seconds", "number"),
        ("their_step", "their step, s", "number"),
        ("their_seconds", "theirs", "number"),
        ("time", "ratio", "ratio"),
        ("time_target", "at most", "ratio"),
        ("time_verdict", "verdict", "text"),
        ("memory", "peak memory, MB", "MB"),
        ("their_memory", "theirs, MB", "MB"),
        ("memory_ratio", "ratio", "ratio"),
        ("memory_ratio_target", "at most", "ratio"),
        ("memory_ratio_verdict", "verdict", "text"),
    ]
    return [Table("Against BalanceBenchmark", says, columns, rows)]


def their_pace(batch: int, frames: int, steps: int) -> float:
    """:func:`their_step` in a process that manages memory as theirs does: by default.

    Without ``steps`` what it was where the peer was timed.
    """
    if not steps:
        return PEER_STEP
    work = f"from benchmarks.speed_parts import their_step; print(their_step({batch}, {frames}, {steps}))"
    environment = {k: v for k, v in os.environ.items() if k != LARGE_PAGES}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    called = subprocess.run(
        [sys.executable, "-c", work], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(called.stdout)


def their_step(batch: int, frames: int, steps: int) -> float:
    """Mean seconds of a step of the peer's networks and optimiser on random clips, in fp32, after one more step."""
    from torchvision.models import resnet18  # here: it doubles the time a process needs to start

    sound, sight = resnet18(num_classes=6), resnet18(num_classes=6)
    sound.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    optimizer = torch.optim.AdamW([*sound.parameters(), *sight.parameters()])
    heard, seen, target = torch.randn(batch, 1, 257, 188), torch.randn(batch * frames, 3, 224, 224), torch.arange(batch)
    started = 0.0
    for step in range(steps + 1):
        if step == 1:
            started = time.perf_counter()
        logits = sound(heard) + sight(seen).view(batch, frames, -1).mean(1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, target % 6).backward()
        optimizer.step()
    return (time.perf_counter() - started) / steps


def run_watched(words: Sequence[str], threads: int) -> dict[str, Any]:
    """``benchmarks/run.py`` with ``words``, in an empty folder and a process of its own.

    Returns:
        ``code`` (exit status), ``said`` (end of stderr), ``seconds``, ``cpu_seconds``, ``memory`` (peak bytes).
    """
    script = Path(__file__).resolve().parent / "run.py"
    with tempfile.TemporaryDirectory() as folder:
        called = subprocess.run(
            [sys.executable, "-c", WATCH, sys.executable, str(script), *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(called.stdout)


# -- floor -------------------------------------------------------------------------------------------------------------


def floor(setting: Setting) -> list[Table]:
    """What the hardware allows: arithmetic and memory traffic of a step at the measured peak rates."""
    device = setting.device
    side, values = (8192, 1 << 29) if device.type == "cuda" else (2048, 1 << 26)
    if setting.quick:
        side, values = 256, 1 << 20
    rates = {precision: matrix_rate(side, precision, device) for precision in setting.precisions}
    bandwidth = copy_rate(values, device)
    rows = []
    for case in setting.cases:
        for precision in setting.precisions:
            laps = setting.laps.get((case.name, precision))
            if laps is None:
                laps, _ = compete(case, setting.joint, precision, device, setting.failed)
            if not {BARE, REFERENCE} <= set(laps):
                continue
            flops, traffic = least_work(Bare(case.jobs(setting.joint, precision)[REFERENCE], device))
            arithmetic, moving = 1e3 * flops / rates[precision], 1e3 * traffic / bandwidth
            step = {name: spread([1e3 * lap.wall / lap.steps for lap in laps[name]]) for name in (BARE, REFERENCE)}
            rows.append(
                {
                    "case": case.name,
                    "precision": precision,
                    "flops": flops / 1e9,
                    "bytes": traffic / 1e6,
                    "arithmetic": arithmetic,
                    "traffic": moving,
                    "floor": max(arithmetic, moving),
                    **step,
                    "share": max(arithmetic, moving) / step[REFERENCE]["median"],
                }
            )
    says = (
        "No step can be faster than its multiplications at the rate of a large matrix product, or than its bytes at "
        "the rate of a large copy. Operations: forward and backward as torch counts them. Bytes: inputs read once, "
        "parameters and optimiser state read and written once, gradients written and read once; activations are left "
        "out. Times in ms a step; share: floor over joint."
    )
    hardware = [{"what": f"matrix product, {p}", "rate": rate / 1e9, "unit": "GFLOP/s"} for p, rate in rates.items()]
    hardware.append({"what": "copy", "rate": bandwidth / 1e9, "unit": "GB/s"})
    best = f"Best of several: the product of two {side} x {side} matrices; a copy of {values * 4 / 1e6:.0f} MB."
    columns: Columns = [TEXT["case"], TEXT["precision"], ("flops", "GFLOP", "number"), ("bytes", "MB", "number")]
    columns += [(name, name, "number") for name in ("arithmetic", "traffic", "floor", BARE, REFERENCE)]
    units: Columns = [("what", "what", "text"), ("rate", "rate", "number"), ("unit", "unit", "text")]
    return [
        Table("Peak rates", best, units, hardware),
        Table("Floor", says, [*columns, ("share", "share", "ratio")], rows),
    ]


def matrix_rate(side: int, precision: str, device: torch.device) -> float:
    """Floating-point operations a second of a square matrix product, in TF32 where convolutions are."""
    a = torch.randn(side, side, device=device, dtype=PRECISIONS[precision])
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2 * side**3 / _shortest(lambda: a @ a, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_rate(values: int, device: torch.device) -> float:
    """Bytes a second, read and written, of a copy of ``values`` float32."""
    source = torch.ones(values, device=device)
    target = torch.zeros_like(source)
    return 2 * 4 * values / _shortest(lambda: target.copy_(source), device)


def _shortest(work: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times)


def least_work(bare: Bare) -> tuple[int, int]:
    """Floating-point operations and bytes that one step of ``bare`` cannot do without; takes that step."""
    with FlopCounterMode(display=False) as counter:
        bare.step()
    parameters = list(bare.model.parameters())
    state = [v for p in parameters for v in bare.optimizer.state[p].values() if isinstance(v, Tensor) and v.dim()]
    moved = 4 * sum(p.nbytes for p in parameters) + 2 * sum(v.nbytes for v in state)
    return counter.get_total_flops(), moved + sum(x.nbytes for x in bare.inputs.values())


# -- jobs --------------------------------------------------------------------------------------------------------------


def jobs(setting: Setting) -> list[Table]:
    """Total throughput of several trainings at once, each in a process with its share of the threads."""
    counts = (1, 2) if setting.quick else (1, 2, 4)
    case, precision = setting.cases[0], setting.precisions[0]
    share = {count: max(1, setting.threads // count) for count in counts}
    rates: dict[int, list[float]] = {count: [] for count in counts}
    warm = max(counts)  # starts all processes, which load their kernels side by side
    with (
        fresh_processes(warm, barriers(counts)) as pool,
        progress(case.rounds * len(counts) + 1, "jobs", "round") as bar,
    ):
        for turn, count in [(-1, warm), *itertools.product(range(case.rounds), counts)]:
            call = (case, precision, setting.device.type, share[count], count)
            try:
                ran = [f.result() for f in [pool.submit(train_together, *call) for _ in range(count)]]
            except Exception as error:
                setting.failed.append(described(f"{count} jobs", error))
                return []
            seconds = max(end for _, end, _ in ran) - min(start for start, _, _ in ran)
            if turn >= 0:
                rates[count].append(sum(samples for _, _, samples in ran) / seconds)
            bar.update()
    rows = [
        {
            "jobs": count,
            "threads": share[count],
            "samples_per_second": spread(found),
            "relative": spread([a / b for a, b in zip(found, rates[1], strict=True)]),
        }
        for count, found in rates.items()
    ]
    best = max(counts, key=lambda count: spread(rates[count])["median"])
    says = (
        f"Samples a second of all processes together; each makes a whole training of joint on {case.name} in "
        f"{precision}, set-up and evaluation after every epoch included, with its share of "
        f"{setting.threads} threads. Most in total: {best} at once."
    )
    columns: Columns = [("jobs", "jobs", "number"), ("threads", "threads each", "number")]
    columns += [("samples_per_second", "samples/s", "number"), ("relative", "/ one job", "ratio")]
    return [Table("Several trainings at once", says, columns, rows)]


# -- compile -----------------------------------------------------------------------------------------------------------


def compiled(setting: Setting) -> list[Table]:
    """Each encoder's forward and backward pass as it is and through ``torch.compile``, in turns."""
    rows = []
    chosen = [(case, m, p) for case in setting.cases for m in case.inputs for p in setting.precisions]
    with progress(len(chosen), "compile", "encoder") as bar:
        for case, m, precision in chosen:
            bare = Bare(case.jobs(setting.joint, precision)[REFERENCE], setting.device)
            encoder, x = bare.model.encoders[m], bare.inputs[m]
            started = time.perf_counter()
            try:
                passes: dict[str, Callable[[], Any]] = {"eager": partial(_pass, encoder, x, precision)}
                passes["compiled"] = partial(_pass, torch.compile(copy.deepcopy(encoder)), x, precision)
                passes["compiled"]()
            except Exception as error:  # torch.compile needs a compiler that may not be there
                setting.failed.append(described(f"compile {case.name} {m}", error))
                return []
            seconds = time.perf_counter() - started
            if setting.device.type == "cuda":  # as they would be trained: launching is no part of the comparison
                passes = {name: recorded(work, setting.device) for name, work in passes.items()}
            times: dict[str, list[float]] = {name: [] for name in passes}
            for turn in range(-1, 1 if setting.quick else 7):
                for name, work in passes.items():
                    took = _shortest(work, setting.device, repeats=1)
                    if turn >= 0:
                        times[name].append(1e3 * took)
            ratio = spread([c / e for c, e in zip(times["compiled"], times["eager"], strict=True)])
            found = {name: spread(values) for name, values in times.items()}
            rows.append(
                {"case": f"{case.name}, {m}", "precision": precision, **found, "ratio": ratio, "seconds": seconds}
            )
            bar.update()
    says = (
        "Forward and backward of one encoder, ms, as it is and compiled (below 1 it would pay), and what compiling "
        "took, once a process. Encoders are not compiled where this does not pay."
    )
    if setting.device.type == "cuda":
        says += " Both are replays of a recorded pass."
    columns: Columns = [TEXT["case"], TEXT["precision"], ("eager", "eager, ms", "number")]
    columns += [("compiled", "compiled, ms", "number"), ("ratio", "compiled / eager", "ratio")]
    return [Table("torch.compile", says, [*columns, ("seconds", "to compile, s", "number")], rows)]


def _pass(encoder: Any, x: Tensor, precision: str) -> None:
    encoder.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = encoder(x)
    features.float().square().mean().backward()


# -- prepare -----------------------------------------------------------------------------------------------------------

CREMAD_CLIPS = 7442
PREPARE_MINUTES = 30.0
"""Most time that preparing the whole of CREMA-D may take on 2 cores."""


def preparing(setting: Setting) -> list[Table]:
    """The real clips of ``--clips``, each many times, through ``prepare`` with one thread and with all."""
    folder_of_clips = setting.clips or Path("no folder")
    clips = find_videos(folder_of_clips)
    count = len(clips) if setting.quick else 240
    rows, threads = [], setting.threads
    torch.set_num_threads(1)  # the workers are the parallelism
    try:
        for workers in dict.fromkeys((1, threads)):
            with tempfile.TemporaryDirectory() as folder:
                made = prepare(_Repeated(clips, count), folder_of_clips, Path(folder), workers)
            pace = made.decoded / made.seconds
            minutes = CREMAD_CLIPS / pace / 60
            row = {"workers": workers, "pace": pace, "minutes": minutes, "budget": PREPARE_MINUTES}
            rows.append({**row, "verdict": verdict(minutes, PREPARE_MINUTES) if workers == 2 else None})
    finally:
        torch.set_num_threads(threads)
    says = (
        f"{len(clips)} clips, {count} decodings, three candidate frames a second and the spectrogram of OGM-GE; what "
        f"that makes of all {CREMAD_CLIPS} clips of CREMA-D. The files are in the system's cache after the first round."
    )
    columns: Columns = [("workers", "workers", "number"), ("pace", "clips/s", "number")]
    columns += [("minutes", "all of CREMA-D, minutes", "number"), ("budget", "at most", "number"), TEXT["verdict"]]
    return [Table("Preparing CREMA-D", says, columns, rows)]


def find_videos(folder: Path) -> list[Path]:
    """The clips for :func:`preparing`.

    Raises:
        UserError: there are none.
    """
    clips = sorted(p for p in folder.glob("*") if p.suffix in VIDEO)
    if not clips:
        raise UserError(f"the part preparing needs --clips FOLDER with video files, found none in {folder}")
    return clips


class _Repeated(Clips):
    """The same clips again and again."""

    name = "repeated"
    reference = "ours"

    def __init__(self, clips: Sequence[Path], count: int) -> None:
        super().__init__()
        self.clips, self.count = clips, count

    def listing(self, source: Path) -> Listing:
        """``count`` items."""
        chosen = (self.clips[i % len(self.clips)] for i in range(self.count))
        items = [self.item(f"{i:05d}", "any", Clip(p, (p,)), {}) for i, p in enumerate(chosen)]
        return Listing(items, ("any",))


PARTS: dict[str, Callable[[Setting], list[Table]]] = {
    part.__name__: part for part in (methods, scaling, memory, peer, floor, jobs, compiled, preparing)
}
