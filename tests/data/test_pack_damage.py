"""Damage to the files of a pack: what notices it, and when."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from balancebench_udi import runner
from balancebench_udi.data.pack import INDEX, LABEL, MANIFEST, digests, verify_pack
from balancebench_udi.data.pack.format import VERIFIED
from balancebench_udi.data.pack.tables import read_table, write_table
from balancebench_udi.protocol import load_protocol
from balancebench_udi.store import Store
from baselines.joint import Joint
from benchmarks.command import PROTOCOLS
from tests.packs import ARRAYS, SMALL_FILES, every_way, flip, refused, reseal, values
from tests.unit.test_pack import Toy, contents, prepare

# whole packs


def test_changed_labels_are_noticed_wherever_the_pack_is_read(source, root, folder):
    label = np.load(folder / LABEL)
    label[:3] = 1 - label[:3]
    np.save(folder / LABEL, label)
    for call in every_way(source, root):
        assert f"found another one of {LABEL}; remove {folder} and prepare again" in refused(call)


@pytest.mark.parametrize("name", SMALL_FILES)
def test_any_bit_of_a_small_file_is_noticed_at_open(source, root, folder, name):
    original, path = values(root), folder / name
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 40)):
        flip(path, at, bit=at % 7, restore=True)
        refused(lambda: Toy().load(root))
        path.write_bytes(content)
    assert values(root) == original


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("at", [-1, -9, -20])
def test_any_bit_of_an_array_is_noticed_before_training(root, folder, name, at):
    flip(folder / name, at)
    bundle = Toy().load(root)
    assert f"found another one of {name};" in refused(bundle.verify)
    assert f"found another one of {name};" in refused(bundle.verify)  # it is not remembered as good


@pytest.mark.parametrize("name", ARRAYS)
def test_with_its_time_restored_it_is_noticed_by_a_full_check(root, folder, name):
    flip(folder / name, -1, restore=True)
    other = folder / (set(ARRAYS) - {name}).pop()
    flip(other, -1)
    said = refused(lambda: verify_pack(Toy(), root, quiet=True))
    assert name in said
    assert other.name in said
    flip(other, -1)
    flip(folder / name, -1)
    assert verify_pack(Toy(), root, quiet=True).folder == folder


@pytest.mark.parametrize("change", ["dtype", "order", "count", "shape", "no array"])
def test_headers_are_compared_with_the_manifest(source, root, folder, change):
    path = folder / "wide.npy"
    array, size = np.load(path), path.stat().st_size
    changed = {
        "dtype": array.view(np.int32),
        "order": np.asfortranarray(array),
        "count": array.reshape(-1, 2, 4)[:, 0] if len(array) % 2 == 0 else array[1:],
        "shape": array.reshape(-1, 2, 2),
        "no array": None,
    }[change]
    path.write_bytes(bytes(size)) if changed is None else np.save(path, changed)
    reseal(folder, bytes={p.name: p.stat().st_size for p in folder.iterdir() if p.name not in (MANIFEST, VERIFIED)})
    for call in every_way(source, root):
        assert "wide.npy" in refused(call)


def test_arrays_are_read_once_after_they_were_copied(root, folder, reads):
    Toy().load(root).verify()
    assert not set(reads) & set(ARRAYS)  # they were hashed when they were made
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    Toy().load(root).verify()
    assert [name for name in reads if name in ARRAYS] == list(ARRAYS)
    Toy().load(root).verify()
    assert len([name for name in reads if name in ARRAYS]) == 2
    os.utime(folder / "wide.npy")
    Toy().load(root).verify()
    assert len([name for name in reads if name in ARRAYS]) == 4


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", None])
def test_a_note_that_is_damaged_counts_for_nothing(root, folder, reads, content):
    (folder / VERIFIED).unlink()
    if content is None:
        (folder / VERIFIED).mkdir()
    else:
        (folder / VERIFIED).write_bytes(content)
    flip(folder / "wide.npy", -1, restore=True)
    assert "wide.npy" in refused(Toy().load(root).verify)


def test_where_nothing_can_be_written_the_process_remembers(root, folder, reads, monkeypatch):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    os.utime(folder / "wide.npy")
    monkeypatch.setattr(digests, "write_verified", refuse)
    for _ in range(3):
        Toy().load(root).verify()
    assert [name for name in reads if name in ARRAYS] == list(ARRAYS)
    monkeypatch.setattr(digests, "_trusted", set())  # another process
    Toy().load(root).verify()
    assert len([name for name in reads if name in ARRAYS]) == 4


def test_building_reads_no_array_again(source, root, monkeypatch):
    def refuse(*args):
        raise AssertionError("read again")

    monkeypatch.setattr(digests, "_whole_array", refuse)
    prepare(source, root)
    Toy().load(root).verify()
    monkeypatch.undo()
    verify_pack(Toy(), root, quiet=True)  # and the digests are those of the files


def test_a_disk_that_cannot_be_read_is_a_sentence(root, folder, monkeypatch):
    def broken(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(digests.os, "pread", broken)
    assert "wide.npy, small.npy" in refused(lambda: verify_pack(Toy(), root, quiet=True))


def test_nothing_is_trained_on_damaged_data(source, root, tmp_path, monkeypatch):
    folder = prepare(source, root).folder
    flip(folder / "wide.npy", -1)
    dataset, store, trained = Toy(), Store(tmp_path / "results"), []
    protocol = load_protocol("default", PROTOCOLS, {})
    planned = runner.plan({"joint": Joint}, dataset, dataset.load(root), protocol, [0, 1], {}, {})
    monkeypatch.setattr(runner, "_run", lambda job, *rest: trained.append(job))
    assert "wide.npy" in refused(lambda: runner.run_all(planned, store, torch.device("cpu")))
    assert trained == []
    assert not store.root.exists()
    runner.run_all(planned, store, torch.device("cpu"), verified=True)  # a worker, whose parent has checked
    assert trained == planned
    trained.clear()
    flip(folder / "wide.npy", -1)
    runner.run_all(planned, store, torch.device("cpu"))
    assert trained == planned


# packs of before


def age(folder):
    """Make a pack as it was before packs had digests."""
    (folder / VERIFIED).unlink()
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest = {name: v for name, v in manifest.items() if name not in ("digests", "digest")}
    times = (folder / MANIFEST).stat()
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 2}, indent=1) + "\n")
    os.utime(folder / MANIFEST, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_pack_of_before_gets_digests(source, root, folder, reads):
    expected, found = contents(folder), values(root)
    age(folder)
    for call in (lambda: Toy().load(root), lambda: verify_pack(Toy(), root)):
        assert "must have format 3, found 2; prepare again, which adds the digests of its files" in refused(call)
    made = prepare(source, root)
    assert (made.decoded, made.resumed, made.newer, made.upgraded) == (0, 0, 0, True)
    assert {name: json.loads(c) if name == MANIFEST else c for name, c in contents(folder).items()} == {
        name: json.loads(c) if name == MANIFEST else c for name, c in expected.items()
    }
    reads.clear()
    assert values(root) == found
    assert not set(reads) & set(ARRAYS)
    assert not prepare(source, root).upgraded
    assert prepare(source, root).newer == 0


@pytest.mark.parametrize("how", ["a label", "its class, too", "a size", "a header"])
def test_a_pack_of_before_that_is_damaged_gets_none(source, root, folder, how):
    label = np.load(folder / LABEL)
    label[0] = 1 - label[0]
    np.save(folder / LABEL, label)
    if how == "its class, too":
        frame = read_table(folder / INDEX)
        frame.loc[0, "class"] = "dog"
        write_table(frame, folder / INDEX)
    elif how == "a size":
        os.truncate(folder / "wide.npy", 20)
    elif how == "a header":
        flip(folder / "wide.npy", 30)
    age(folder)
    before = contents(folder)
    assert "prepare again" in refused(lambda: prepare(source, root))
    assert contents(folder) == before


def test_a_full_disk_while_digests_are_added(source, root, folder, monkeypatch):
    age(folder)
    before = contents(folder)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "must have more room" in refused(lambda: prepare(source, root))
    assert contents(folder) == before
    assert prepare(source, root).upgraded
