"""A damaged pack as the commands meet it: what notices it, and that nothing is trained on it."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
import torch
from calls import Called, records

from balancebench_udi.data.pack import format as layout
from benchmarks import prepare as module

ON = ("--dataset", "manifest", "--set", "manifest.name=mine", "--methods", "joint", "--device", "cpu", "--epochs", "1")


@pytest.fixture
def prepare(cli, capsys):
    """``prepare("manifest", ...)`` in this process, from an empty working directory."""
    threads = torch.get_num_threads()

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        code = module.main([str(a) for a in arguments])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def mine(tmp_path):
    """Data of one's own: a vector and a caption a sample."""
    source = tmp_path / "mine"
    source.mkdir()
    with (source / "clips.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["label", "pose", "caption"])
        for i in range(24):
            np.save(source / f"{i}.npy", np.full(3, i, np.float32))
            table.writerow(["ab"[i % 2], f"{i}.npy", f"word{i}"])
    (source / "manifest.yaml").write_text(
        "csv: clips.csv\nmodalities: {pose: {kind: npy}, caption: {kind: text, length: 4}}\n"
    )
    return source


def sentence(called):
    assert called.code == 2, called
    lines = [line for line in called.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, called.err
    assert "Traceback" not in called.err + called.out
    return lines[0]


def flip(path, restore=False):
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if restore:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_full_check_names_what_is_damaged(prepare, mine, tmp_path):
    root = ("--data-root", tmp_path / "data")
    check = ("manifest", "--verify", "--set", "manifest.name=mine", *root)
    assert "found no pack in" in sentence(prepare(*check))
    assert prepare("manifest", "--source", mine, *root).code == 0
    folder = tmp_path / "data/packed/manifest/mine"
    called = prepare(*check)
    assert called.code == 0, called
    assert "manifest is whole: 5 files" in called.out
    assert json.loads((folder / layout.MANIFEST).read_text())["fingerprint"] in called.out
    flip(folder / "pose.npy", restore=True)
    flip(folder / layout.LABEL, restore=True)
    said = sentence(prepare(*check))
    assert f"found another one of pose.npy, label.npy; remove {folder} and prepare again" in said
    assert layout.LABEL in sentence(prepare("manifest", "--source", mine, *root))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", "--verify"), "--verify needs a FILE with SHA-256 sums for digits"),
        (("cremad", "--verify", "--source", "."), "--verify without a FILE checks what was prepared, found --source"),
        (("cremad", "--verify", "--set", "ave.fps=1"), "takes no part in this call"),
    ],
)
def test_mistakes(prepare, arguments, message):
    assert message in sentence(prepare(*arguments))


def test_digests_are_added_to_a_pack_of_before(prepare, mine, tmp_path):
    arguments = ("manifest", "--source", mine, "--data-root", tmp_path / "data")
    first = prepare(*arguments)
    path = tmp_path / "data/packed/manifest/mine" / layout.MANIFEST
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("digest", "digests")}
    path.write_text(json.dumps({**manifest, "format": layout.BEFORE}))
    called = prepare(*arguments)
    assert called.code == 0, called
    assert "  digests added in" in called.out
    assert called.out.split("fingerprint ")[1] == first.out.split("fingerprint ")[1]
    assert "  already prepared in" in prepare(*arguments).out


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_is_trained_on_a_damaged_pack(cli, prepare, mine, tmp_path, monkeypatch, jobs):
    """Also where several are trained at once: the parent finds it, before it starts a worker."""
    root, out = ("--data-root", tmp_path / "data"), tmp_path / "results"
    assert prepare("manifest", "--source", mine, *root).code == 0
    array = tmp_path / "data/packed/manifest/mine/pose.npy"
    content = array.read_bytes()
    flip(array)
    wanted = (*ON, *root, "--out", out, "--seeds", "0,1", "--jobs", jobs)
    assert "found another one of pose.npy" in sentence(cli(*wanted))
    assert not out.exists() or not records(out)
    array.write_bytes(content)
    called = cli(*wanted)
    assert called.code == 0, called
    assert len(records(out)) == 2
    flip(array)
    assert cli(*wanted).code == 0  # all runs are done: nothing is trained, and nothing is read
