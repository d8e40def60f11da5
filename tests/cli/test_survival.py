"""A run that is killed, interrupted or shared ends with the same result as one that is left in peace."""

from __future__ import annotations

import re
import signal
import time

import pytest
from calls import ROOT, content, finish, records, shas, spawn

from balancebench_udi.store import load_state, save_state

DIGITS = ("--dataset", "digits", "--protocol", "quick", "--device", "cpu", "--checkpoint-every", "0")
UDI = ("udi", "--set", "udi.weights=static")
MARK = 1000.0
"""Seconds added to a checkpoint's cost, which is no part of a result: a record that has them went on from there."""


def position(out):
    """(phase, epoch) of the only checkpoint below ``out``, or None."""
    paths = list(out.glob("checkpoints/*.pt"))
    if not paths:
        return None
    state = load_state(paths[0])
    return None if state is None else (state["progress"]["phase"], state["progress"]["epoch"])


def stop(process, out, at, how):
    """Send ``how`` once the checkpoint has reached ``at``; returns how the call ended."""
    deadline = time.monotonic() + 100
    try:
        while (position(out) or (-1, -1)) < at:
            assert process.poll() is None, f"the run ended before it reached {at}: {finish(process)}"
            assert time.monotonic() < deadline, f"the run never reached {at}"
            time.sleep(0.005)
        process.send_signal(how)
    except BaseException:
        process.kill()
        raise
    return finish(process)


def mark(out):
    """Mark the only checkpoint; its phase."""
    (path,) = out.glob("checkpoints/*.pt")
    state = load_state(path)
    state["progress"]["costs"][-1]["seconds"] += MARK
    save_state(path, state)
    return state["progress"]["phase"]


@pytest.mark.parametrize(
    ("method", "epochs", "stops"),
    [
        (("joint",), 8, [((0, 2), signal.SIGKILL), ((0, 4), signal.SIGINT)]),
        (UDI, 4, [((0, 2), signal.SIGKILL), ((2, 1), signal.SIGKILL)]),
    ],
    ids=["joint", "udi"],
)
def test_killed_and_interrupted_runs_end_with_the_same_bytes(cli, tmp_path, method, epochs, stops):
    arguments = ("--methods", *method, *DIGITS, "--epochs", epochs, "--seeds", "0")
    assert cli(*arguments, "--out", tmp_path / "peace").code == 0
    out = tmp_path / "out"
    marked = []
    for at, how in stops:
        called = stop(spawn(*arguments, "--out", out, cwd=tmp_path), out, at, how)
        assert ", 1 begun" in called.out or not marked
        assert not records(out)
        assert not list(out.glob("failures/*"))
        if how == signal.SIGINT:
            assert called.code == 130
            assert "Traceback" not in called.err
            said = called.err.splitlines()[-1]
            assert said == "interrupted; the same command goes on from the last checkpoint"
        else:
            assert called.code == -signal.SIGKILL
        marked.append(mark(out))
    called = cli(*arguments, "--out", out)
    assert called.code == 0
    assert re.search(rf"{method[0]} +0 done, 1 to do, 1 begun\n", called.out)
    assert shas(out) == shas(tmp_path / "peace")
    (record,) = records(out).values()
    (peace,) = records(tmp_path / "peace").values()
    for phase, cost in enumerate(record["cost"]["phases"]):
        assert cost["seconds"] // MARK == marked.count(phase)
        assert cost["forward"] == peace["cost"]["phases"][phase]["forward"]
    assert not list(out.glob("checkpoints/*"))


WORKER = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from balancebench_udi import runner
from benchmarks.run import main

trains, log = runner._run, pathlib.Path(os.environ["LOG"])

def noted(job, *rest):
    with log.open("a") as handle:
        handle.write(f"{{os.getpid()}} {{job.spec.key}}\\n")
    return trains(job, *rest)

runner._run = noted
(log.parent / f"ready-{{os.getpid()}}").touch()
while len(list(log.parent.glob("ready-*"))) < 2:
    time.sleep(0.01)
sys.exit(main(sys.argv[1:]))
"""


def test_two_workers_share_a_sweep(cli, tmp_path):
    arguments = ("--methods", "joint,unimodal", *DIGITS, "--epochs", "3", "--seeds", "0-1")
    script, log, out = tmp_path / "worker.py", tmp_path / "log", tmp_path / "out"
    script.write_text(WORKER)
    workers = [spawn(*arguments, "--out", out, cwd=tmp_path, script=script, env={"LOG": str(log)}) for _ in range(2)]
    called = [finish(worker) for worker in workers]
    codes = sorted(c.code for c in called)
    assert codes in ([0, 0], [0, 3]), called  # 3: the other still trained the last run
    assert all("Traceback" not in c.err for c in called)

    trained = [line.split() for line in log.read_text().splitlines()]
    made = records(out)
    assert len(made) == 4
    assert sorted(key for _, key in trained) == sorted(path.stem for path in made)  # each once
    assert len({process for process, _ in trained}) == 2  # both took part
    before = content(out / "records")
    last = cli(*arguments, "--out", out)
    assert last.code == 0
    assert "all 4 runs are done" in last.out
    assert content(out / "records") == before

    assert cli(*arguments, "--out", tmp_path / "single").code == 0
    assert shas(out) == shas(tmp_path / "single")
