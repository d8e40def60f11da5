"""Sweeps on file systems that lack something, or that are full."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os

import pytest
import torch
from calls import content

import registry
from balancebench_udi import files, runner
from balancebench_udi.data.pack.preparation import _alone
from balancebench_udi.errors import UserError
from balancebench_udi.store import Store, check_record
from tests.helpers import make_trainer, tiny_bundle

FORK = multiprocessing.get_context("fork")


class Silent:
    """A progress bar that nobody sees."""

    n = 0.0
    total = 0.0

    def update(self, n):
        self.n += n

    def set_description(self, desc, refresh):
        pass


def refuse(code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture(scope="module")
def jobs():
    """Two methods that share phases and one that does not, two seeds each."""
    bundle, made = tiny_bundle(), []
    for name in ("unimodal", "ensemble", "joint"):
        for seed in range(2):
            trainer = make_trainer(bundle, name, epochs=2, seed=seed)
            made.append(runner.Job(trainer.spec, registry.methods.get(name), trainer.strategy.options, bundle))
    return made


def sweep(jobs, out, say=lambda line: None):
    store = Store(out, weights=True)
    return runner.run_all(jobs, store, torch.device("cpu"), 0.0, say, Silent())


@pytest.fixture(params=[(), ("flock",), ("link",), ("flock", "link")], ids="+".join)
def lacking(request, monkeypatch):
    if "flock" in request.param:
        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    if "link" in request.param:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    return request.param


def test_a_sweep_ends_whatever_the_file_system_lacks(jobs, tmp_path, lacking):
    said = []
    assert sweep(jobs, tmp_path, said.append).done == jobs
    assert len(said) == bool(lacking)
    assert [word in line for line in said for word in ("no flock", "no hard links")] == (
        ["flock" in lacking, "link" in lacking] if lacking else []
    )
    paths = Store(tmp_path).record_paths()
    assert len(paths) == len(jobs)
    for path in paths:
        check_record(path)
    left = {path.parent.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"unimodal", "ensemble", "joint", "weights", "stages"}


def _work(jobs, out, barrier, trained):
    trains = runner._run

    def noted(job, *rest):
        trained.put(job.spec.key)
        return trains(job, *rest)

    runner._run = noted
    barrier.wait()
    sweep(jobs, out)


def test_two_workers_share_a_sweep_whatever_the_file_system_lacks(jobs, tmp_path, lacking):
    barrier, trained = FORK.Barrier(2), FORK.Queue()
    workers = [FORK.Process(target=_work, args=(jobs, tmp_path, barrier, trained)) for _ in range(2)]
    for worker in workers:
        worker.start()
    keys = [trained.get(timeout=120) for _ in jobs]
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert sorted(keys) == sorted(job.spec.key for job in jobs)  # each once
    assert trained.empty()
    assert len(Store(tmp_path).record_paths()) == len(jobs)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs the names of open files")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("folder", ["weights", "records", "checkpoints", "stages"])
def test_a_full_disk_ends_the_sweep_with_one_sentence(jobs, tmp_path, monkeypatch, code, folder):
    sync, tries = files._sync, []

    def full(handle):
        here = os.readlink(f"/proc/self/fd/{handle.fileno()}")
        if f"/{folder}/" in here:
            tries.append(here)
            raise OSError(code, os.strerror(code))
        sync(handle)

    if folder != "stages":
        jobs = jobs[4:]
    assert sweep(jobs[:1], tmp_path).done == jobs[:1]
    before = content(tmp_path / "records")
    why = "the disk is full" if code == errno.ENOSPC else "the disk reports an error"
    with monkeypatch.context() as patched:
        patched.setattr(files, "_sync", full)
        with pytest.raises(UserError, match=f"could not be written because {why}: "):
            sweep([*jobs, *jobs[1:]], tmp_path)
    assert len(tries) == 1  # the next run was not begun
    assert content(tmp_path / "records") == before
    assert not list(tmp_path.glob("failures/*"))
    assert sweep(jobs, tmp_path).done == jobs


def test_a_folder_of_samples_is_locked_without_flock(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    with _alone(tmp_path):
        with pytest.raises(UserError, match="must be built by one process, another is at it"), _alone(tmp_path):
            pass
        assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    with _alone(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
