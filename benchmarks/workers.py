"""Several runs at once: worker processes to which the runs of one plan are dealt."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from multiprocessing.resource_tracker import ensure_running
from typing import Any

import torch

from balancebench_udi.errors import UserError
from balancebench_udi.interruption import PATIENCE, Stopped, listening, postponed
from balancebench_udi.runner import Bar, Job, Outcome, run_all, step_bar
from balancebench_udi.store import Store
from balancebench_udi.watch import watching
from benchmarks.streams import lossy

SPARE = 5.0
"""Seconds that a worker has to leave, besides those that it may spend on its epoch."""
Plan = Callable[[Any], tuple[list[Job], Store, torch.device]]
"""From the parsed command line to the jobs, the results folder and the device; a function of some module."""


class Messenger:
    """A worker's line to the parent, and its progress bar."""

    def __init__(self, parent: Connection) -> None:
        self.parent = parent
        self.n: float = 0
        self.total: float = 0

    def tell(self, kind: str, value: Any = None) -> None:
        """Send one message.

        Raises:
            KeyboardInterrupt: the parent is gone.
        """
        try:
            self.parent.send((kind, value))
        except OSError:
            raise KeyboardInterrupt from None

    def next(self) -> int | None:
        """Number of the job to train; None when all are dealt."""
        self.tell("next")
        try:
            return self.parent.recv()
        except (EOFError, OSError):
            raise KeyboardInterrupt from None

    def update(self, n: float) -> None:
        self.n += n
        self.tell("steps", n)

    def set_description(self, desc: str, refresh: bool) -> None:
        """A bar of several runs names none."""


def run_side_by_side(plan: Plan, given: Any, count: int, jobs: Sequence[Job], store: Store) -> Outcome:
    """Train what is missing of ``jobs`` in ``count`` processes, each with its share of the cores.

    Each worker has a pipe of its own, so that none can hold up the others by dying. A signal that ends this process is
    passed on: the workers save what they have, and all have left when this returns or raises.

    Args:
        plan: makes the same jobs again, in each worker.
        given: what ``plan`` is called with; ``checkpoint_every`` and ``tensorboard`` of it are passed on.

    Raises:
        UserError: damaged data, before a worker starts; what a worker raised, once all have stopped.
    """
    missing = [number for number, job in enumerate(jobs) if not store.done(job.spec)]
    for number in missing:
        jobs[number].bundle.verify()  # here, once for all workers
    if missing:
        store.prepare()
    count = min(count, len(missing))
    threads = max(1, torch.get_num_threads() // max(1, count))
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    try:
        with postponed(), _inherited(threads):
            for _ in range(count):
                here, there = context.Pipe()
                worker = context.Process(target=_work, args=(plan, given, threads, there), daemon=True)
                try:
                    worker.start()
                except OSError as error:
                    raise UserError(
                        f"--jobs must be as many processes as the system starts, found {len(workers)} of {count} "
                        f"({error.strerror}): name fewer"
                    ) from None
                workers[here] = worker
                there.close()
        with step_bar([jobs[number] for number in missing]) as bar:
            failed = _listen(workers, iter(missing), bar)
    finally:
        _dismiss(workers.values())
    outcome = Outcome()
    for job in jobs:
        if store.done(job.spec):
            outcome.done.append(job)
        elif job.spec.key in failed:
            outcome.failed.append((job, failed[job.spec.key]))
        else:
            outcome.elsewhere.append(job)
    return outcome


@contextlib.contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What workers get by birth: their number of threads, read when torch is imported, and deafness to Ctrl-C."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    ensure_running()  # it would unblock the signal
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if os.name == "posix" else set()
    try:
        yield
    finally:
        if os.name == "posix":
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)  # a Ctrl-C of the meantime arrives here
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def _dismiss(workers: Collection[BaseProcess]) -> None:
    """Ask the workers that are left to end, and make sure that they do; a second signal does not wait for them."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + PATIENCE + SPARE
    try:
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _listen(workers: dict[Connection, BaseProcess], waiting: Iterator[int], bar: Any) -> dict[str, str]:
    """Deal the jobs and follow the workers to their end; key of a failed run -> why."""
    failed: dict[str, str] = {}
    mistake = None
    while workers:
        for line in wait(list(workers)):
            assert isinstance(line, Connection)
            try:
                kind, value = line.recv()
                if kind == "next":
                    line.send(next(waiting, None))
            except (EOFError, OSError):
                worker = workers.pop(line)
                worker.join()
                if worker.exitcode:
                    mistake = mistake or (
                        f"a worker must end by itself, one ended with status {worker.exitcode}; what is finished is "
                        "kept: call again, with fewer --jobs if memory ran out"
                    )
                continue
            if kind == "steps":
                bar.update(value)
            elif kind == "line":
                bar.write(value)
            elif kind == "failed":
                failed.update(value)
            elif kind == "error":
                mistake = value
    if mistake is not None:
        raise UserError(mistake)
    return failed


def _work(plan: Plan, given: Any, threads: int, parent: Connection) -> None:
    """One worker, from its own plan to the last run that it is dealt."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    messenger = Messenger(parent)
    bar: Bar = messenger
    try:
        with lossy(), listening(worker=True):
            jobs, store, device = plan(given)
            with watching(given.tensorboard) as watch:
                while (number := messenger.next()) is not None:
                    every, say = given.checkpoint_every, lambda line: messenger.tell("line", line)
                    outcome = run_all([jobs[number]], store, device, every, say, bar, watch, verified=True)
                    messenger.tell("failed", {job.spec.key: error for job, error in outcome.failed})
    except UserError as error:
        messenger.tell("error", str(error))
    except Stopped as stop:
        os._exit(128 + stop.number)  # all is written and closed; tearing down the interpreter may take seconds
    except KeyboardInterrupt:
        pass


def _end_with_parent() -> None:
    """End this process when its parent has, even by ``kill -9`` and in the middle of a step: its runs are free again.

    A checkpoint is on disk as after a ``kill -9`` of this process.
    """
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
