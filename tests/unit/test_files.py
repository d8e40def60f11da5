"""Locks and whole files where the file system lacks flock or hard links, is full, or is another user's."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch

from balancebench_udi import files
from balancebench_udi.errors import UserError
from balancebench_udi.store import Store, save_state
from tests.helpers import make_spec, tiny_bundle
from tests.unit.test_store import _refuse, record

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def spec():
    return make_spec(tiny_bundle(), "joint")


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_flock(monkeypatch, request):
    monkeypatch.setattr(fcntl, "flock", _refuse(request.param))


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def no_links(monkeypatch, request):
    monkeypatch.setattr(os, "link", _refuse(request.param))


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "claims" / "a.lock"


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def elsewhere(path, **changes):
    """Make a lease that of a process on another machine."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another", **changes}))


# -- leases ------------------------------------------------------------------------------------------------------------


def test_without_flock_a_claim_is_exclusive_and_ends(tmp_path, spec, no_flock):
    store = Store(tmp_path)
    other = make_spec(tiny_bundle(), "joint", seed=5)
    with store.claim(spec) as mine:
        assert mine
        with Store(tmp_path).claim(spec) as second, store.claim(other) as third:
            assert (second, third) == (False, True)
    assert list((tmp_path / "claims").iterdir()) == []
    with store.claim(spec) as again:
        assert again


def test_what_is_lost_is_said_once(tmp_path, no_flock, monkeypatch):
    monkeypatch.setattr(os, "link", _refuse(errno.EPERM))
    said = []
    store = Store(tmp_path)
    for _ in range(2):
        store.prepare(said.append)
    (line,) = said
    assert line.startswith(f"the file system of {tmp_path} has no flock: claims are leases of 10 minutes, ")
    assert "no hard links: " in line


def test_nothing_is_said_where_nothing_is_lost(tmp_path):
    said = []
    Store(tmp_path).prepare(said.append)
    assert said == []
    assert list((tmp_path / "claims").iterdir()) == []


def _hold(lock, held):
    fcntl.flock = _refuse(errno.ENOSYS)
    with files.Locks(lock.parent).hold(lock) as mine:
        if mine:
            held.set()
        time.sleep(60)


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(lock, no_flock):
    held = FORK.Event()
    worker = FORK.Process(target=_hold, args=(lock, held))
    worker.start()
    try:
        assert held.wait(20)
        with files.Locks(lock.parent).hold(lock) as mine:
            assert not mine
        assert files.held(lock)
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(20)
    assert lock.exists()
    assert not files.held(lock)
    with files.Locks(lock.parent).hold(lock) as mine:
        assert mine


@pytest.mark.parametrize("content", ["token", "", "[]", "{}", '{"host": 1}'])
def test_a_lease_of_another_machine_is_free_when_it_is_not_renewed(lock, no_flock, content):
    locks = files.Locks(lock.parent)
    with locks.hold(lock):
        token = lock.read_text()
    lock.write_text(token if content == "token" else content)
    if content == "token":
        elsewhere(lock, pid=2**22 + 1)  # no process here
    age(lock, files.LEASE_SECONDS - 60)
    with locks.hold(lock) as mine:
        assert not mine
    assert files.held(lock)
    age(lock, files.LEASE_SECONDS + 60)
    assert not files.held(lock)
    with locks.hold(lock) as mine:
        assert mine
        assert files.held(lock)
    assert list(lock.parent.iterdir()) == []


def test_a_lease_is_renewed(lock, no_flock, monkeypatch):
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.5)
    with files.Locks(lock.parent).hold(lock):
        token = lock.read_bytes()
        for _ in range(2):
            age(lock, 3600)
            deadline = time.monotonic() + 20
            while time.time() - lock.stat().st_mtime > 1000:
                assert time.monotonic() < deadline, "never renewed"
                time.sleep(0.02)
        assert lock.read_bytes() == token


def test_a_lease_that_was_taken_away_is_left_to_its_new_holder(lock, no_flock, monkeypatch):
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.1)
    with files.Locks(lock.parent).hold(lock):
        lock.write_text("another's")
        age(lock, 50)
        time.sleep(0.2)
        assert time.time() - lock.stat().st_mtime > 40
    assert lock.read_text() == "another's"


def test_a_lease_is_respected_where_flock_works(lock, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", _refuse(errno.ENOLCK))
        lease = files.Locks(lock.parent)
    locks = files.Locks(lock.parent)
    assert (lease.flock, locks.flock) == (False, True)
    with lease.hold(lock):
        with locks.hold(lock) as mine:
            assert not mine
        token = lock.read_bytes()
    lock.write_bytes(token)
    elsewhere(lock)
    age(lock, files.LEASE_SECONDS + 60)
    with locks.hold(lock) as mine:
        assert mine


# -- flock -------------------------------------------------------------------------------------------------------------


def test_the_claim_of_another_user_is_locked_though_not_writable(lock, monkeypatch):
    locks, opened = files.Locks(lock.parent), os.open
    lock.touch()

    def readable_only(path, flags, *mode):
        if os.fspath(path) == os.fspath(lock) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", readable_only)
    with locks.hold(lock) as mine:
        assert mine
        with locks.hold(lock) as second:
            assert not second
    with pytest.raises(PermissionError), locks.hold(lock):  # it is gone now, and cannot be made
        pass


def _rounds(lock, inside, count, wrong):
    locks = files.Locks(lock.parent)
    for _ in range(count):
        with locks.hold(lock) as mine:
            if mine:
                try:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    os.unlink(inside)
                except OSError:
                    wrong.set()


def test_claims_that_are_removed_at_once_are_never_held_twice(lock, tmp_path):
    wrong = FORK.Event()
    workers = [FORK.Process(target=_rounds, args=(lock, tmp_path / "inside", 400, wrong)) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    assert not wrong.is_set()
    assert list(lock.parent.iterdir()) == []


# -- whole or absent ---------------------------------------------------------------------------------------------------


def test_without_hard_links_a_record_is_written_once(tmp_path, spec, no_links):
    store = Store(tmp_path)
    store.prepare(lambda line: None)
    before = store.write(spec, record(spec, accuracy=0.5)).read_bytes()
    assert store.load(spec)["result"]["accuracy"] == 0.5
    assert store.write(spec, record(spec, accuracy=0.9)).read_bytes() == before
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [store.record_path(spec)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_is_written_all_the_same(tmp_path, spec, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", _refuse(code))
    store = Store(tmp_path)
    store.write(spec, record(spec))
    assert store.load(spec) == record(spec)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700), (0, 0o666, 0o777)])
def test_files_and_folders_have_the_mode_that_the_umask_leaves(tmp_path, spec, mask, file, folder):
    os.chmod(tmp_path, 0o2775)
    store, before = Store(tmp_path), os.umask(mask)
    try:
        store.write(spec, record(spec))
        save_state(store.checkpoint_path(spec), {})
        with store.claim(spec):
            modes = {p: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    assert len(modes) == 8
    assert {m & 0o777 for p, m in modes.items() if p.is_file()} == {file}
    assert {m & 0o777 for p, m in modes.items() if p.is_dir()} == {folder}
    if sys.platform == "linux":
        assert all(m & stat.S_ISGID for p, m in modes.items() if p.is_dir())


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from balancebench_udi.errors import UserError
from balancebench_udi.store import Store
from tests.helpers import make_spec, tiny_bundle

store, spec = Store(Path(sys.argv[1])), make_spec(tiny_bundle(), "joint")
state = {"weights": torch.zeros(100_000), "more": [torch.zeros(5_000) for _ in range(20)]}
store.save_state(store.checkpoint_path(spec), state)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for write in (lambda: store.save_state(store.checkpoint_path(spec), state),
                  lambda: store.save_weights(spec, {"last": state})):
        try:
            write()
        except UserError as error:
            print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of file sizes")
def test_a_checkpoint_or_weights_that_do_not_fit_are_one_sentence(tmp_path, spec):
    limits = [0, 1, 100, 4096, 65_536, 400_000, 600_000, 800_000]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), *map(str, limits)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert len(said) == 2 * len(limits)
    assert all("could not be written because the system says: File too large: " in line for line in said)
    store = Store(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [store.checkpoint_path(spec)]
    assert store.load_state(store.checkpoint_path(spec), lambda state: True, "")["weights"].shape == (100_000,)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_another_library_makes_of_a_full_disk_is_one_sentence(tmp_path, code):
    store = Store(tmp_path)

    def write(handle):
        handle.raw.refusal = OSError(code, os.strerror(code))
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    with pytest.raises(UserError, match=r"the disk (is full|reports an error): choose another --out"):
        store.replace(tmp_path / "x", write)
    with pytest.raises(RuntimeError, match="mine"):
        store.replace(tmp_path / "x", lambda handle: (_ for _ in ()).throw(RuntimeError("mine")))


def test_torch_writes_into_a_folder_on_a_full_disk(tmp_path, monkeypatch):
    """The refusal comes in the middle of what torch writes."""
    written = files.io.FileIO.write

    class Full(files._Watched):
        left = 50_000

        def write(self, data):
            try:
                self.left -= len(data)
                if self.left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return written(self, data)
            except OSError as error:
                self.refusal = error
                raise

    monkeypatch.setattr(files, "_Watched", Full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as error:
        save_state(tmp_path / "x.pt", {"w": [torch.zeros(4_000) for _ in range(9)]})
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
