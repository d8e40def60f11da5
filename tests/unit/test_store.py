"""The store: written once, claimed while made, never half there, every refusal a sentence."""

import errno
import json
import multiprocessing
import os
import signal
import time

import pytest
import torch

from balancebench_udi.errors import UserError
from balancebench_udi.store import Store, read_record, sealed
from tests.helpers import make_spec, tiny_bundle

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture(scope="module")
def spec():
    return make_spec(tiny_bundle(), "joint")


def record(spec, **result):
    whole = {"readings": {}, "modalities": [], **result}
    return sealed(spec, whole, {}, {}, {})


def leftovers(store):
    return sorted(p for p in store.root.rglob("*") if p.is_file() and p.parent.name != "claims")


def test_a_record_comes_back(store, spec):
    assert store.load(spec) is None
    path = store.write(spec, record(spec, accuracy=0.5))
    assert path == store.root / "records" / "tiny" / "joint" / f"{spec.key}.json"
    assert store.load(spec) == record(spec, accuracy=0.5)
    assert list(store.records()) == [record(spec, accuracy=0.5)]
    assert leftovers(store) == [path]


def test_a_record_is_written_once(store, spec):
    before = store.write(spec, record(spec, accuracy=0.5)).read_bytes()
    after = store.write(spec, record(spec, accuracy=0.9)).read_bytes()
    assert after == before
    assert leftovers(store) == [store.record_path(spec)]


def test_a_record_ends_its_checkpoint_and_its_failure(store, spec):
    store.write_failure(spec, "it broke")
    store.replace(store.checkpoint_path(spec), lambda handle: handle.write(b"state"))
    assert store.failure_path(spec).read_text() == "it broke"
    store.write(spec, record(spec))
    assert leftovers(store) == [store.record_path(spec)]


def test_records_come_in_the_order_of_their_paths(store):
    specs = [make_spec(tiny_bundle(), "joint", seed=s) for s in range(5)]
    for spec in specs:
        store.write(spec, record(spec))
    assert [r["key"] for r in store.records()] == sorted(s.key for s in specs)


def test_not_a_number_is_not_written(store, spec):
    with pytest.raises(ValueError, match="JSON"):
        store.write(spec, record(spec, loss=float("nan")))
    assert not store.record_path(spec).exists()


def _race(root, spec, number, barrier):
    barrier.wait()
    Store(root).write(spec, record(spec, writer=number, text="x" * 200_000))


def test_of_many_writers_at_once_one_wins_whole(store, spec):
    barrier = FORK.Barrier(6)
    writers = [FORK.Process(target=_race, args=(store.root, spec, i, barrier)) for i in range(6)]
    for w in writers:
        w.start()
    path = store.record_path(spec)
    while any(w.is_alive() for w in writers):
        if path.exists():
            assert len(read_record(path)["result"]["text"]) == 200_000
    for w in writers:
        w.join()
        assert w.exitcode == 0
    first = store.load(spec)["result"]["writer"]
    store.write(spec, record(spec, writer=99))
    assert store.load(spec)["result"]["writer"] == first
    assert leftovers(store) == [path]


def test_a_claim_is_exclusive_and_ends(store, spec):
    other = make_spec(tiny_bundle(), "joint", seed=5)
    with store.claim(spec) as mine:
        assert mine
        with Store(store.root).claim(spec) as second, store.claim(other) as elsewhere:
            assert not second
            assert elsewhere
    with store.claim(spec) as again:
        assert again


def test_a_claim_ends_with_an_error_inside(store, spec):
    with pytest.raises(ZeroDivisionError), store.claim(spec):
        raise ZeroDivisionError
    with store.claim(spec) as again:
        assert again


def _hold(root, spec, held):
    with Store(root).claim(spec) as mine:
        if mine:
            held.set()
        time.sleep(60)


def test_a_killed_process_lets_go(store, spec):
    held = FORK.Event()
    worker = FORK.Process(target=_hold, args=(store.root, spec, held))
    worker.start()
    try:
        assert held.wait(20)
        with store.claim(spec) as mine:
            assert not mine
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(20)
    assert worker.exitcode == -signal.SIGKILL
    with store.claim(spec) as mine:
        assert mine


def _race_for_claim(root, spec, barrier, results, done):
    barrier.wait()
    with Store(root).claim(spec) as mine:
        results.put(mine)
        done.wait(20)


def test_of_many_claims_at_once_one_is_granted(store, spec):
    barrier, results, done = FORK.Barrier(5), FORK.Queue(), FORK.Event()
    workers = [FORK.Process(target=_race_for_claim, args=(store.root, spec, barrier, results, done)) for _ in range(5)]
    for w in workers:
        w.start()
    granted = [results.get(timeout=20) for _ in workers]
    done.set()
    for w in workers:
        w.join(20)
    assert sorted(granted) == [False] * 4 + [True]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"null", b'"text"', b'{"key": "x"}', b'{"key": 1, "spec": {}}'],
)
def test_a_damaged_record_is_named(store, spec, content):
    path = store.record_path(spec)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for read in (lambda: store.load(spec), lambda: list(store.records())):
        with pytest.raises(UserError) as error:
            read()
        assert str(path) in str(error.value)
        assert "damaged" in str(error.value)
        assert "delete it to train again" in str(error.value)


def test_the_record_of_another_run_is_not_taken(store, spec):
    other = make_spec(tiny_bundle(), "joint", seed=5)
    store.write(other, record(other))
    os.rename(store.record_path(other), store.record_path(spec))
    with pytest.raises(UserError, match=f"must hold the record {spec.key}, found {other.key}: "):
        store.load(spec)


def _refuse(code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("function", ["fsync", "link", "replace"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "it is not writable"),
        (errno.EACCES, "it is not writable"),
        (errno.EIO, "the disk reports an error"),
        (errno.ESTALE, os.strerror(errno.ESTALE)),
    ],
)
def test_a_refusing_disk_gives_one_sentence_and_leaves_nothing(store, spec, monkeypatch, function, code, words):
    monkeypatch.setattr(os, function, _refuse(code))
    tries = {
        "link": [lambda: store.write(spec, record(spec))],
        "replace": [lambda: store.write_failure(spec, "broke")],
        "fsync": [lambda: store.write(spec, record(spec)), lambda: store.write_failure(spec, "broke")],
    }[function]
    for attempt in tries:
        with pytest.raises(UserError) as error:
            attempt()
        assert words in str(error.value)
        assert str(store.root) in str(error.value)
        assert "finished runs are kept" in str(error.value)
    assert leftovers(store) == []


def test_a_full_disk_leaves_the_older_file_as_it_was(store, spec, monkeypatch):
    path = store.checkpoint_path(spec)
    store.replace(path, lambda handle: handle.write(b"old"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _refuse(errno.ENOSPC))
        with pytest.raises(UserError, match="the disk is full"):
            store.replace(path, lambda handle: handle.write(b"new"))
    assert path.read_bytes() == b"old"
    assert leftovers(store) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full")
def test_a_disk_that_fills_while_a_checkpoint_is_written(store, spec, monkeypatch):
    def onto_the_full_device(handle):
        with open("/dev/full", "wb") as full:
            torch.save({"weights": torch.zeros(300_000)}, full)

    with pytest.raises(UserError, match="the disk is full"):
        store.replace(store.checkpoint_path(spec), onto_the_full_device)
    assert leftovers(store) == []


def test_a_file_where_the_folder_should_be(tmp_path, spec):
    (tmp_path / "results").write_text("I am a file")
    store = Store(tmp_path / "results")
    for attempt in (lambda: store.write(spec, record(spec)), lambda: store.claim(spec).__enter__()):
        with pytest.raises(UserError, match="a file lies where a folder should be"):
            attempt()


def test_a_half_written_file_is_never_visible(store, spec):
    path = store.checkpoint_path(spec)
    store.replace(path, lambda handle: handle.write(b"old"))

    def write(handle):
        handle.write(b"half")
        handle.flush()
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.replace(path, write)
    assert path.read_bytes() == b"old"
    assert leftovers(store) == [path]


def test_a_record_appears_only_when_it_is_whole_and_on_disk(store, spec, monkeypatch):
    path = store.record_path(spec)
    seen = []
    sync = os.fsync

    def watched(descriptor):
        seen.append(path.exists())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    store.write(spec, record(spec))
    assert seen == [False, True]  # the file, before it has its name, then its folder
    assert json.loads(path.read_bytes()) == record(spec)


def _write_half(root, path, spec, half):
    def write(handle):
        handle.write(b"half a file")
        handle.flush()
        half.set()
        time.sleep(60)

    Store(root).replace(path, write)


@pytest.mark.parametrize("which", ["checkpoint_path", "record_path"])
def test_a_process_killed_while_writing_leaves_no_half_file(store, spec, which):
    path = getattr(store, which)(spec)
    half = FORK.Event()
    worker = FORK.Process(target=_write_half, args=(store.root, path, spec, half))
    worker.start()
    try:
        assert half.wait(20)
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(20)
    assert not path.exists()
    assert store.load(spec) is None
    assert list(store.records()) == []
    store.write(spec, record(spec, fine=True))
    assert store.load(spec)["result"]["fine"] is True
