#!/usr/bin/env python
"""Train methods on a dataset under one protocol and compare them.

    python benchmarks/run.py --methods udi,ogm,joint --dataset cgmnist --data-root DIR --seeds 0-4

Prints the plan, trains the runs that have no record yet, and ends with the table. Call it again after a crash, a
Ctrl-C, a SIGTERM or a ``kill -9``: it goes on where it was. Several calls may work on one plan at the same time.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import torch

import registry
from balancebench_udi.catalogue import Catalogue
from balancebench_udi.data.base import Dataset
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.places import check_folders
from balancebench_udi.protocol import Protocol, check_names, load_protocol
from balancebench_udi.runner import Job, Outcome, estimate, plan, resolve_precision, run_all
from balancebench_udi.spec import canonical
from balancebench_udi.store import Store
from balancebench_udi.text import found
from balancebench_udi.watch import check_curves, watching
from benchmarks.command import (
    PROTOCOLS,
    STATUSES,
    Parser,
    check_jobs,
    choose_device,
    data_root,
    default_out,
    duration,
    fitting,
    fitting_in_memory,
    folder_name,
    guarded,
    manage_memory_for,
    parse_settings,
    short,
    words,
)
from benchmarks.workers import run_side_by_side

REFERENCE = "joint"
"""The method against which costs are given."""
ELSEWHERE = 3
"""Exit status where runs are missing because another process trains them."""
MOST_SEEDS = 10_000
LARGEST_SEED = 2**63 - 1
"""What every reader of a record can hold."""
FEW_STEPS = 50
"""With fewer to make, the first two of them are not made beforehand to tell how long all will take."""
SMALL = 2**15
"""Most values in a sample of which runs are trained two at a time on a CPU."""


def parser() -> Parser:
    """The command line."""
    style = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="run.py", description=__doc__, epilog=STATUSES, formatter_class=style)
    p.add_argument("--methods", default="udi,ogm,joint", help="names, wildcards or 'all', separated by commas")
    p.add_argument("--dataset", default="digits", help="name of the dataset (default: digits, which needs no files)")
    p.add_argument("--seeds", default="0-2", help="such as 0,1,2 or 0-4 (default: 0-2)")
    p.add_argument("--protocol", default="default", help="name of a preset in benchmarks/protocols, or a YAML file")
    p.add_argument("--epochs", type=int, help="epochs of a phase, instead of the protocol's")
    p.add_argument("--batch-size", type=int, help="instead of the protocol's")
    p.add_argument("--fusion", help="concat, sum, film or gated, instead of the protocol's")
    p.add_argument("--precision", help="fp32, bf16 or auto (bf16 where the device has it), instead of the protocol's")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.OPTION=VALUE",
        help="an option of a method, of the dataset, of 'optimizer', 'schedule' or 'encoder.MODALITY'; repeatable",
    )
    p.add_argument("--test-each-epoch", action="store_true", help="evaluate test every epoch (for --select best_test)")
    p.add_argument(
        "--select", default="best_val", choices=("last", "best_val", "best_test"), help="which epoch the table reads"
    )
    p.add_argument("--data-root", type=Path, help="folder with the datasets (default: $BALANCEBENCH_DATA, else data/)")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    p.add_argument(
        "--jobs", type=int, metavar="N", help="runs trained at once (default: 2 of small inputs on a CPU, else 1)"
    )
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    p.add_argument("--name", help="name of the table (default: dataset and protocol)")
    p.add_argument("--checkpoint-every", type=float, default=20.0, metavar="S", help="least seconds between two")
    p.add_argument("--keep-weights", action="store_true", help="keep the trained networks: weights/<key>.pt")
    p.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write the curves of what is trained for TensorBoard"
    )
    p.add_argument(
        "--spare-memory",
        action=argparse.BooleanOptionalAction,
        help="on a CPU: give freed memory back at once, which takes some 40 %% (fp32) or 26 %% (bf16) "
        "less of it with large networks, for some 20 or 30 %% more time; the results are the same (default: in fp32)",
    )
    p.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    p.add_argument("--list", action="store_true", help="print methods with their options, datasets and protocols")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 some run failed, 2 a mistake, 3 runs are missing because another process trains them, 4 what was printed
    could not be written, 130, 143 or 129 interrupted by Ctrl-C, SIGTERM or SIGHUP, 141 nobody reads the output.
    """
    return guarded(run, parser(), arguments, "the same command goes on from the last checkpoint")


def run(given: argparse.Namespace) -> int:
    """Plan, train, compare."""
    if given.list:
        print(listing())
        return 0
    check_jobs(given.jobs)
    if not 0 <= given.checkpoint_every < math.inf:
        raise UserError(f"--checkpoint-every must be a number of seconds >= 0, found {given.checkpoint_every}")
    watcher = watching(given.tensorboard)  # before the data are read: it may refuse
    jobs, store, device, protocol = make_plan(given)
    at_once = print_plan(jobs, store, device, protocol, given.jobs, 0 if given.dry_run else FEW_STEPS)
    if given.dry_run:
        return 0
    label = given.name or fitting(table_name(given, jobs[0]))
    check_folders(store.root / kind / label for kind in ("tables", "figures"))
    check_places(store, jobs)
    if given.tensorboard is not None:
        check_curves(given.tensorboard, [job.spec for job in jobs])
    if at_once > 1:
        outcome = run_side_by_side(plan_again, given, at_once, jobs, store)
    else:
        with watcher as watch:
            outcome = run_all(jobs, store, device, given.checkpoint_every, watch=watch)
    compare_and_write(given, jobs, outcome, store, protocol, label)
    return report_rest(outcome)


def plan_again(given: argparse.Namespace) -> tuple[list[Job], Store, torch.device]:
    """The plan of the same command line in another process."""
    return make_plan(given)[:3]


def make_plan(given: argparse.Namespace) -> tuple[list[Job], Store, torch.device, Protocol]:
    """Everything that the command line asks for, checked."""
    methods = registry.methods.load(words(given.methods, "--methods"))
    settings = parse_settings(given.set, [*methods, given.dataset])
    protocol = load_protocol(given.protocol, PROTOCOLS, run_overrides(given, settings), given.dataset)
    check_names(protocol, registry.methods.names(), registry.datasets.names())
    if given.select == "best_test" and not protocol.run.test_each_epoch:
        raise UserError("--select best_test needs runs that evaluate test every epoch: add --test-each-epoch")
    dataset_class = registry.datasets.get(given.dataset)
    dataset: Dataset = dataset_class(
        dataset_class.Options.build(
            given.dataset, {**protocol.datasets.get(given.dataset, {}), **settings.get(given.dataset, {})}
        )
    )
    seeds = parse_seeds(given.seeds)
    if given.name is not None:
        folder_name(given.name)
    device = choose_device(given.device)
    store = Store(given.out if given.out is not None else default_out(), given.keep_weights)
    protocol = resolve_precision(protocol, device)
    if not manage_memory_for(protocol.run.precision, device, given.spare_memory) and given.spare_memory:
        raise UserError("--spare-memory needs the GNU C library, found another one: leave it out")
    with fitting_in_memory():
        bundle = dataset.load(data_root(given.data_root))
    encoders = {name.split(".", 1)[1]: values for name, values in settings.items() if name.startswith("encoder.")}
    for m in encoders:
        if m not in bundle.modalities:
            raise UserError(f"{given.dataset} has no modality {m!r}{near_misses(m, bundle.modalities)}")
    if encoders and not protocol.name.endswith("+"):
        protocol = dataclasses.replace(protocol, name=f"{protocol.name}+")
    with fitting_in_memory():
        jobs = plan(methods, dataset, bundle, protocol, seeds, settings, encoders)
    return jobs, store, device, protocol


def check_places(store: Store, jobs: Sequence[Job]) -> None:
    """Find out before the first step whether everything that the missing runs write can be written.

    Raises:
        UserError: something cannot.
    """
    missing = [job.spec for job in jobs if not store.record_path(job.spec).exists()]
    if missing or store.weights:
        kinds = ("claims", "checkpoints", "stages", "failures", *["weights"] * store.weights)
        check_folders([store.record_path(spec).parent for spec in missing] + [store.root / kind for kind in kinds])


def print_plan(
    jobs: list[Job],
    store: Store,
    device: torch.device,
    protocol: Protocol,
    at_once: int | None,
    fewest: int = FEW_STEPS,
) -> int:
    """What is done, what is to do, and how long it may take; returns how many runs to train at once.

    Args:
        at_once: runs at once of the caller's choice.
        fewest: steps below which no step is made just to tell how long they may take.
    """
    missing = [job for job in jobs if not store.done(job.spec)]
    first = jobs[0]
    sizes = ", ".join(f"{name} {len(first.bundle.split(name))}" for name in ("train", "val", "test"))
    print(
        f"{first.spec.dataset} ({sizes}; {', '.join(first.bundle.modalities)}) under {protocol.name} "
        f"v{protocol.version}: {first.spec.epochs} epochs, {first.spec.precision}, on {device}"
    )
    for method in dict.fromkeys(job.spec.method for job in jobs):
        mine = [job for job in jobs if job.spec.method == method]
        todo = [job for job in mine if job in missing]
        started = sum(store.checkpoint_path(job.spec).exists() for job in todo)
        note = f", {started} begun" if started else ""
        print(f"  {method:12} {len(mine) - len(todo)} done, {len(todo)} to do{note}")
    if missing:
        seconds = estimate(missing, store, device, fewest)
        at_once = min(len(missing), at_once or default_jobs(missing, device, seconds or 0.0))
        shared = f", {at_once} at once (less, then)" if at_once > 1 else ""
        steps = sum(job.steps for job in missing)
        size = f"{steps} steps" if seconds is None else f"about {duration(seconds)}"
        print(f"{size} for {len(missing)} of {len(jobs)} runs{shared}")
    else:
        print(f"all {len(jobs)} runs are done")
    return at_once or 1


def default_jobs(missing: Sequence[Job], device: torch.device, seconds: float) -> int:
    """How many runs to train at once where nothing is said.

    Two on a CPU of two cores and more, where inputs are small and there is work for a minute: small networks gain half
    as much again by it there (``results/speed``, jobs), large ones less, at twice the memory. One on a GPU: replayed
    steps keep it busy, so that two small networks at once gained 2 % on an H100 and four 5 %.
    """
    small = sum(math.prod(m.shape) for m in missing[0].bundle.modalities.values()) <= SMALL
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 and small and seconds > 60 else 1


def compare_and_write(
    given: argparse.Namespace, jobs: list[Job], outcome: Outcome, store: Store, protocol: Protocol, label: str
) -> None:
    """The table and the figure of the runs that exist, below ``tables/<label>`` and ``figures/<label>``."""
    from balancebench_udi.report.comparison import compare, write  # here: workers, and runs while they train, do
    from balancebench_udi.report.figures.imbalance import accuracy_against_imbalance  # without 100 MB of libraries

    records = [record for job in jobs if (record := store.load(job.spec)) is not None]
    outcome.elsewhere = [job for job in outcome.elsewhere if not store.done(job.spec)]  # the others went on
    if not records:
        return
    published = protocol.published.get(given.dataset, [])
    wanted = len(parse_seeds(given.seeds))
    comparison = compare(records, given.select, wanted=wanted, reference=REFERENCE, published=published)
    paths = write(comparison, store.root / "tables" / label)
    paths += accuracy_against_imbalance(comparison, registry.methods.names(), label).save(
        store.root / "figures" / label, accuracy_against_imbalance.__name__
    )
    print(comparison.text())
    print("written: " + ", ".join(short(path) for path in paths))


def report_rest(outcome: Outcome) -> int:
    """Say what is missing from the table, and return the exit status."""
    if outcome.elsewhere:
        print(f"{len(outcome.elsewhere)} runs are being trained by another process; call again for the whole table")
    if outcome.failed:
        print(f"{len(outcome.failed)} runs failed and are not in the table; the same command tries them again:")
        for job, error in outcome.failed:
            print(f"  {job.spec.method} seed {job.spec.seed}: {error}")
        return 1
    return ELSEWHERE if outcome.elsewhere else 0


def table_name(given: argparse.Namespace, job: Job) -> str:
    """``<dataset>-<protocol>``, with six digits more where the command line changed the protocol."""
    changes = {
        "set": sorted(given.set),
        **{k: getattr(given, k) for k in ("epochs", "batch_size", "fusion", "precision")},
        "test": given.test_each_epoch,
    }
    name = f"{given.dataset}-{job.spec.protocol}"
    if any(changes.values()):
        name += "-" + hashlib.sha256(canonical(changes).encode()).hexdigest()[:6]
    return name if given.select == "best_val" else f"{name}-{given.select}"


def run_overrides(given: argparse.Namespace, settings: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """What the command line changes in the protocol."""
    run = {k: getattr(given, k) for k in ("epochs", "batch_size", "fusion", "precision")}
    run = {k: v for k, v in run.items() if v is not None}
    if given.test_each_epoch:
        run["test_each_epoch"] = True
    return {"run": run, **{part: settings.get(part, {}) for part in ("optimizer", "schedule")}}


def parse_seeds(text: str) -> list[int]:
    """``"0-2,7"`` as ``[0, 1, 2, 7]``."""
    seeds: dict[int, None] = {}
    for word in words(text, "--seeds"):
        first, dash, last = (part.strip() for part in word.partition("-"))
        last = last if dash else first
        if not all(part.isascii() and part.isdecimal() for part in (first, last)):
            raise UserError(f"--seeds takes whole numbers and ranges such as 0-4, found {found(word)}")
        low, high = (int(part.lstrip("0")[:20] or 0) for part in (first, last))  # int takes 4300 digits at most
        if max(low, high) > LARGEST_SEED:
            raise UserError(f"--seeds takes numbers up to {LARGEST_SEED}, found {found(word)}")
        if high < low:
            raise UserError(f"--seeds takes ranges from low to high, found {word!r}")
        if high - low >= MOST_SEEDS or len(seeds) + high - low >= MOST_SEEDS:
            raise UserError(f"--seeds takes at most {MOST_SEEDS} seeds, found more at {word!r}")
        seeds.update(dict.fromkeys(range(low, high + 1)))
    return list(seeds)


def listing() -> str:
    """Every method with its options, every dataset with what it needs, every protocol."""
    lines = ["methods (--set NAME.OPTION=VALUE):"]
    lines += _members(registry.methods, lambda cls: f"{cls.family}; {cls.reference}")
    lines.append("datasets:")
    lines += _members(registry.datasets, lambda cls: f"needs --data-root with {cls.needs}" if cls.needs else "no files")
    lines.append("protocols:")
    for path in sorted(PROTOCOLS.glob("*.yaml")):
        protocol = load_protocol(path.stem, PROTOCOLS, {})
        lines.append(f"  {protocol.name} v{protocol.version}: {' '.join(protocol.about.split())}")
    return "\n".join(lines)


def _members(catalogue: Catalogue, describe: Any) -> list[str]:
    lines = []
    for name in catalogue.names():
        try:
            cls = catalogue.get(name)
        except UserError as error:  # a broken file breaks only itself
            lines.append(f"  {name}: {error}")
            continue
        lines.append(f"  {name}: {describe(cls)}")
        lines += [f"    {o} = {default}: {doc} [{source}]" for o, default, doc, source in cls.Options.describe()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
