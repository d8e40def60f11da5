"""What nothing in a results folder uses is listed, and removed when asked; what is used or held stays."""

from __future__ import annotations

import os
import time

import pytest
from calls import Called, content

from balancebench_udi import cleaning
from balancebench_udi.store import Store, save_state, sealed
from benchmarks import records
from tests.helpers import make_spec, tiny_bundle

BUNDLE = tiny_bundle()
RECORDED, MISSING, HELD = (make_spec(BUNDLE, "joint", seed=seed) for seed in range(3))


@pytest.fixture
def call(capsys, tmp_path):
    def call(*arguments):
        capsys.readouterr()
        code = records.main(["--out", str(tmp_path), *map(str, arguments)])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return call


def put(path, age, text="x" * 1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def store(tmp_path):
    """A results folder; ``store.used`` and ``store.unused`` name its files."""
    store = Store(tmp_path)
    hour, day = 2 * cleaning.HOUR, 2 * cleaning.DAY
    record = store.write(RECORDED, sealed(RECORDED, {"readings": {}, "modalities": []}, {}, {}, {}))
    store.unused = {
        *(put(store.checkpoint_path(RECORDED), age) for age in (0,)),
        *(put(store.failure_path(spec), 0) for spec in (RECORDED,)),
        put(tmp_path / "claims" / f"{MISSING.key}.lock", 0, ""),
        put(tmp_path / "stages" / f".{'a' * 12}.pt.0123abcd", hour),
        put(tmp_path / "stages" / f"{'b' * 12}.0123abcd.damaged", 0),
        put(tmp_path / "stages" / f"{'c' * 12}.pt", day),
        put(record.parent / f".{'d' * 12}.json.abcd_123", hour),
    }
    store.used = {
        record,
        put(store.checkpoint_path(MISSING), day),
        put(store.failure_path(MISSING), day),
        put(store.weights_path(RECORDED), day),
        put(store.weights_path(RECORDED).with_suffix(".sha256"), day),
        put(tmp_path / "stages" / f"{'e' * 12}.pt", hour),
        put(tmp_path / "stages" / f".{'e' * 12}.pt.0123abcd", 60),
        put(tmp_path / "tables" / "x" / "table.md", day),
        put(tmp_path / "mine" / ".notes.0123abcd", day),
    }
    return store


def there(store):
    return {path for path in store.root.rglob("*") if path.is_file()}


def test_what_nothing_uses_is_listed_and_nothing_removed(store, call):
    before = content(store.root)
    called = call("--clean")
    assert (called.code, called.err) == (0, "")
    *kinds, last = called.out.splitlines()
    assert [int(line.split()[0]) for line in kinds] == [2, 1, 1, 1, 1, 1]
    assert last.startswith("7 files, 0.0 MB; nothing was removed: ")
    assert content(store.root) == before


def test_what_nothing_uses_is_removed_and_the_rest_stays(store, call):
    called = call("--clean", "--yes")
    assert called.code == 0
    assert called.out.splitlines()[-1] == "removed: 7 of 7 files, of 0.0 MB"
    assert there(store) == store.used
    assert call("--clean", "--yes").out == f"nothing in {store.root} is unused\n"


@pytest.mark.parametrize("flock", [True, False])
def test_what_a_live_process_holds_stays(store, call, flock):
    store.locks.flock = flock
    with store.claim(RECORDED) as mine, store.claim(HELD) as other:
        assert mine
        assert other
        save_state(store.checkpoint_path(HELD), {})
        before, listed = there(store), {path for kind in cleaning.unused(store) for path in kind.paths}
        assert call("--clean", "--yes").code == 0
        gone = before - there(store)
    kept = {p for p in store.unused if p.parent.name == "checkpoints" or p.name == f"{'c' * 12}.pt"}
    kept |= {store.failure_path(RECORDED)}
    assert gone == listed == store.unused - kept


def test_what_is_taken_after_it_was_listed_stays(store):
    kinds = cleaning.unused(store)
    with store.claim(RECORDED) as mine:
        assert mine
        gone = set(cleaning.remove(store, kinds))
        assert store.checkpoint_path(RECORDED).exists()
    assert gone == store.unused - {store.checkpoint_path(RECORDED), store.failure_path(RECORDED)}


@pytest.mark.parametrize("arguments", [("--yes",), ("--clean", "--check"), ("--clean", "--to", "x.csv")])
def test_mistakes(store, call, arguments):
    before = content(store.root)
    called = call(*arguments)
    assert called.code == 2
    assert called.err.startswith("error: --clean takes no other option than --yes and --out")
    assert content(store.root) == before


def test_a_folder_that_is_not_there_is_not_made(tmp_path, call):
    assert call("--out", tmp_path / "no", "--clean").out.startswith("nothing in ")
    assert not (tmp_path / "no").exists()


def test_cleaning_and_checking_read_a_folder_that_cannot_be_written(store, call, monkeypatch):
    opened = os.open

    def reading(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, os.strerror(30), str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", reading)
    assert call("--clean").out.splitlines()[-1].startswith("7 files")
    assert call("--check").out == "1 records are as they were written\n"
    called = call("--clean", "--yes")
    assert called.code == 2
    assert "could not be written because it is not writable" in called.err
