"""Curves for TensorBoard: TensorBoard reads what the records hold, also after a crash, and nothing else moves."""

from __future__ import annotations

import sys
import threading

import numpy as np
from calls import records, shas
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from balancebench_udi.watch import TensorBoard

SMALL = [f"--set=synthetic.n_{split}=64" for split in ("train", "val", "test")]
DATA = ("--dataset", "synthetic", "--protocol", "quick", "--device", "cpu", *SMALL)
TEXT = "phase/text_summary"


def place(record):
    """Where the curves of a run are, below the folder that the user names."""
    spec = record["spec"]
    return f"{spec['dataset']}/{spec['protocol']}/{spec['method']}-{record['key']}-seed{spec['seed']}"


def seen(folder):
    """What TensorBoard shows of one run: name -> [(step, value)]; the names of the phases are texts."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        name: [(event.step, make_ndarray(event.tensor_proto).ravel()[0]) for event in reader.Tensors(name)]
        for name in reader.Tags()["tensors"]
    }


def expected(record):
    """The same from the record: a step is an epoch, counted over all phases from 1."""
    found, before = {TEXT: []}, None
    for step, entry in enumerate(record["result"]["curves"], 1):
        if entry["phase"] != before:
            before = entry["phase"]
            found[TEXT].append((step, before.encode()))
        found.setdefault("lr", []).append((step, np.float32(entry["lr"])))
        for part in ("train", "val", "test", "gradients"):
            for name, value in entry.get(part, {}).items():
                found.setdefault(f"{part}/{name}", []).append((step, np.float32(value)))
    return found


def agree(out, folder):
    """Every run of ``out`` is in ``folder``, and nothing else."""
    made = list(records(out).values())
    assert {p.parent for p in folder.rglob("*tfevents*")} == {folder / place(r) for r in made}
    for record in made:
        assert seen(folder / place(record)) == expected(record), place(record)
    return made


def older(folder):
    """Date the files of ``folder`` back: TensorBoard reads files in the order of the second in their names."""
    for number, path in enumerate(sorted(folder.rglob("*tfevents*"))):
        path.rename(path.with_name(f"events.out.tfevents.{number:010d}.before"))


def test_curves_are_those_of_the_records(cli, tmp_path):
    """Three methods, of which the last takes over phases of another; test is evaluated in every epoch."""
    arguments = ("--methods", "joint,unimodal,udi", *DATA, "--epochs", "2", "--seeds", "0", "--test-each-epoch")
    out, folder = tmp_path / "out", tmp_path / "new" / "curves"
    called = cli(*arguments, "--out", out, "--tensorboard", folder)
    assert called.code == 0, called
    assert not [t for t in threading.enumerate() if "Writer" in type(t).__name__]  # every file is closed
    made = {record["spec"]["method"]: record for record in agree(out, folder)}
    phases = made["udi"]["cost"]["phases"]
    assert [p["reused_from"] for p in phases] == [made["unimodal"]["key"], made["unimodal"]["key"], None]
    found = seen(folder / place(made["udi"]))
    assert len(found[TEXT]) == len(phases)
    assert [step for step, _ in found["val/accuracy"]] == list(range(1, 2 * len(phases) + 1))
    parts = {name.partition("/")[0] for name in seen(folder / place(made["joint"]))}
    assert parts == {"lr", "phase", "train", "val", "test", "gradients"}

    assert cli(*arguments, "--out", tmp_path / "plain").code == 0
    assert shas(tmp_path / "plain") == shas(out)


def test_workers_write_their_own(cli, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "curves"
    arguments = ("--methods", "joint", *DATA, "--epochs", "1", "--seeds", "0-1", "--out", out)
    called = cli(*arguments, "--jobs", "2", "--tensorboard", folder)
    assert called.code == 0, called
    assert len(agree(out, folder)) == 2


def stop_after(monkeypatch, epochs):
    """Ctrl-C as soon as the curves have so many entries of this call."""
    original = TensorBoard.__call__

    def begin(self, spec):
        watch, left = original(self, spec), epochs

        def watched(entry):
            nonlocal left
            watch(entry)
            left -= 1
            if not left:
                raise KeyboardInterrupt

        return watched

    monkeypatch.setattr(TensorBoard, "__call__", begin)


def test_a_resumed_run_writes_no_epoch_twice(cli, tmp_path, monkeypatch):
    """Stopped in the first phase, then in a later one, each time after an epoch that is in no checkpoint yet."""
    arguments = ("--methods", "udi", *DATA, "--epochs", "3", "--seeds", "0", "--checkpoint-every", "0")
    out, folder = tmp_path / "out", tmp_path / "curves"
    for epochs in (2, 8):
        with monkeypatch.context() as patched:
            stop_after(patched, epochs)
            called = cli(*arguments, "--out", out, "--tensorboard", folder)
        assert called.code == 130, called
        assert not records(out)
        (run,) = {p.parent for p in folder.rglob("*tfevents*")}
        assert [step for step, _ in seen(run)["lr"]] == list(range(1, epochs + 1))
        older(folder)
    called = cli(*arguments, "--out", out, "--tensorboard", folder)
    assert called.code == 0, called
    assert "1 begun" in called.out
    assert len(list(folder.rglob("*tfevents*"))) == 3
    agree(out, folder)
    assert cli(*arguments, "--out", tmp_path / "peace").code == 0
    assert shas(tmp_path / "peace") == shas(out)


def test_a_run_begun_without_it_has_its_whole_curves(cli, tmp_path, monkeypatch):
    arguments = ("--methods", "joint", *DATA, "--epochs", "4", "--seeds", "0", "--checkpoint-every", "0")
    out, folder = tmp_path / "out", tmp_path / "curves"
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert cli(*arguments, "--out", out, "--tensorboard", tmp_path / "elsewhere").code == 130
    assert cli(*arguments, "--out", out, "--tensorboard", folder).code == 0
    agree(out, folder)


def test_an_epoch_can_be_seen_at_once(tmp_path):
    """Before the run is over, and while its file is still open."""
    spec = type("Spec", (), {"dataset": "d", "protocol": "p", "method": "m", "key": "0123", "seed": 7})
    with TensorBoard(tmp_path) as begin:
        watch = begin(spec)
        for epoch in range(3):
            watch({"phase": "training", "epoch": epoch, "lr": 0.5, "train": {"loss": 1.0 / (epoch + 1)}})
            found = seen(tmp_path / "d/p/m-0123-seed7")
            assert found["train/loss"] == [(i + 1, np.float32(1 / (i + 1))) for i in range(epoch + 1)]
            assert found[TEXT] == [(1, b"training")]


def test_without_the_package_it_is_one_sentence_and_nothing_else_needs_it(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments = ("--methods", "joint", *DATA, "--epochs", "1", "--seeds", "0", "--out", tmp_path / "out")
    called = cli(*arguments, "--tensorboard", tmp_path / "curves")
    assert (called.code, called.out) == (2, "")  # before the data are read and a plan is made
    assert called.err == (
        "error: writing for TensorBoard needs the package tensorboard, found none: "
        "install it with pip install tensorboard\n"
    )
    assert not list(tmp_path.glob("out*"))
    assert not (tmp_path / "curves").exists()
    assert cli(*arguments).code == 0


def test_a_folder_that_cannot_be_is_one_sentence(cli, tmp_path):
    (tmp_path / "taken").write_text("a file")
    arguments = ("--methods", "joint", *DATA, "--epochs", "1", "--seeds", "0", "--out", tmp_path / "out")
    called = cli(*arguments, "--tensorboard", tmp_path / "taken")
    assert called.code == 2
    said = called.err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path / 'taken'} must take the events for TensorBoard, found that it cannot be")
    assert "Traceback" not in called.err
    assert not list((tmp_path / "out").glob("failures/*"))


def test_a_plan_alone_writes_nothing(cli, tmp_path):
    arguments = ("--methods", "joint", *DATA, "--out", tmp_path / "out", "--tensorboard", tmp_path / "curves")
    assert cli(*arguments, "--dry-run").code == 0
    assert not (tmp_path / "curves").exists()
