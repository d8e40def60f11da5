"""Several runs at once end as one after the other; what breaks, dies or is stopped is told once."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from calls import ROOT, content, finish, records, shas, spawn

from benchmarks import run

DIGITS = ("--dataset", "digits", "--protocol", "quick", "--device", "cpu")
NOTED = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from balancebench_udi import runner
from benchmarks.run import main

trains, here = runner._run, pathlib.Path(os.environ["NOTES"])

def noted(job, *rest):
    name = f"{{job.spec.method}}-{{job.spec.seed}}"
    with (here / f"{{os.getpid()}}.log").open("a") as handle:
        handle.write(name + "\\n")
    while name == os.environ.get("HELD") and not list(here.glob(os.environ["UNTIL"])):
        time.sleep(0.02)
    return trains(job, *rest)

runner._run = noted
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
"""The command, whose workers note what they train; the run HELD waits for a file UNTIL."""
NEVER = "never"


@pytest.fixture
def noted(tmp_path):
    """``noted(*arguments, held=, until=)``: the command as a process, and the folder of the notes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    script = tmp_path / "noted.py"
    script.write_text(NOTED)
    started = []

    def call(*arguments, held="", until=NEVER):
        env = {"NOTES": str(notes), "HELD": held, "UNTIL": until}
        started.append(spawn(*arguments, cwd=tmp_path, script=script, env=env))
        return started[-1], notes

    yield call
    for process in started:
        process.kill()
        for worker in trained(notes):
            if alive(worker):
                os.kill(worker, signal.SIGKILL)


def trained(notes):
    """Process -> the runs that it took, in order."""
    return {int(path.stem): path.read_text().split() for path in notes.glob("*.log")}


def stat(process):
    """State and parent of a process."""
    state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def alive(process):
    try:
        return stat(process)[0] not in "ZX"
    except OSError:
        return False


def workers_of(parent):
    """The worker processes of a call, from their birth on."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if stat(path.name)[1] == parent and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_for(condition, process, seconds=60):
    """Wait until ``condition()`` while the call runs."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
    return found


def gone(processes, seconds=5):
    """Whether all of them end soon."""
    deadline = time.monotonic() + seconds
    while any(alive(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(p) for p in processes)


def test_two_at_once_end_as_one_after_the_other(noted, cli, tmp_path):
    arguments = ("--methods", "joint,unimodal", *DIGITS, "--epochs", "2", "--seeds", "0-1")
    # the first run waits until the other worker has finished one, so that both take part
    process, notes = noted(*arguments, "--out", "out", "--jobs", "2", held="joint-0", until="../out/records/*/*/*.json")
    called = finish(process)
    assert called.code == 0, called
    took = trained(notes)
    assert len(took) == 2
    assert process.pid not in took
    assert sorted(run for runs in took.values() for run in runs) == ["joint-0", "joint-1", "unimodal-0", "unimodal-1"]
    for once in (r"digits \(train", r"for 4 of 4 runs, 2 at once", r"^method ", r"^joint +2/2 ", r"^written: "):
        assert len(re.findall(once, called.out, re.M)) == 1, once
    assert "Traceback" not in called.err
    bars = set(re.findall(r" (\d+)/(\d+) \[", called.err))
    assert {total for _, total in bars} == {"204"}  # six phases of 2 epochs of 17 steps
    assert ("204", "204") in bars

    assert cli(*arguments, "--out", tmp_path / "single").code == 0
    assert shas(tmp_path / "out") == shas(tmp_path / "single")


def test_more_jobs_than_runs_and_their_share_of_the_cores(cli, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", *DIGITS, "--epochs", "1", "--out", out)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert cli(*arguments, "--seeds", "0").code == 0
    before = content(out / "records")
    called = cli(*arguments, "--seeds", "0-2", "--jobs", "9")
    assert called.code == 0
    assert re.search(r"joint +1 done, 2 to do\n", called.out)
    assert re.search(r"^joint +3/3 ", called.out, re.M)
    after = content(out / "records")
    assert len(after) == 3
    assert before.items() <= after.items()  # what was there is not trained again
    made = {r["spec"]["seed"]: r["machine"]["threads"] for r in records(out).values()}
    assert made == {0: 2, 1: 1, 2: 1}
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert cli(*arguments, "--seeds", "0-2", "--jobs", "9").code == 0
    assert content(out / "records") == after


def test_a_failing_run_is_tried_and_told_once(noted, tmp_path):
    out = tmp_path / "out"
    arguments = ("--methods", "joint,agm", "--set", "agm.alpha=1e30", *DIGITS, "--epochs", "1", "--seeds", "0")
    # joint goes on when agm has failed: its worker must not try agm again
    process, notes = noted(*arguments, "--out", "out", "--jobs", "2", held="joint-0", until="../out/failures/*.txt")
    called = finish(process)
    assert called.code == 1, called
    assert sorted(run for runs in trained(notes).values() for run in runs) == ["agm-0", "joint-0"]
    (failure,) = out.glob("failures/*.txt")
    why = rf"agm seed 0: RunFailed: the training loss must stay finite, .*{failure.name}\)$"
    assert len(re.findall(rf"^failed: {why}", called.out, re.M)) == 1
    assert len(re.findall(rf"^  {why}", called.out, re.M)) == 1
    assert "1 runs failed and are not in the table" in called.out
    assert [r["spec"]["method"] for r in records(out).values()] == ["joint"]
    assert "Traceback" not in called.err


def test_a_killed_worker_takes_nothing_with_it(noted, cli, tmp_path):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", *DIGITS, "--epochs", "1", "--seeds", "0-2", "--out", out)
    process, notes = noted(*arguments, "--jobs", "2", held="joint-0")
    (victim,) = wait_for(lambda: [p for p, took in trained(notes).items() if took[:1] == ["joint-0"]], process)
    os.kill(victim, signal.SIGKILL)
    called = finish(process)
    assert called.code == 2
    said = called.err.splitlines()[-1]
    assert said.startswith("error: a worker must end by itself, one ended with status -9; what is finished is kept")
    assert called.err.count("error: ") == 1
    assert "Traceback" not in called.err
    assert sorted(r["spec"]["seed"] for r in records(out).values()) == [1, 2]
    before = content(out / "records")
    again = cli(*arguments)
    assert again.code == 0
    assert "joint        2 done, 1 to do" in again.out
    assert before.items() <= content(out / "records").items()
    assert len(records(out)) == 3


LONG = ("--methods", "joint", *DIGITS, "--epochs", "5000", "--seeds", "0-1", "--checkpoint-every", "0", "--jobs", "2")


def both_train(out):
    """Whether two runs have come to a checkpoint."""
    return lambda: len(list(out.glob("checkpoints/*.pt"))) == 2


def test_workers_of_a_killed_call_end_by_themselves(noted, tmp_path):
    process, notes = noted(*LONG, "--out", "out")
    wait_for(both_train(tmp_path / "out"), process)
    workers = list(trained(notes))
    assert len(workers) == 2
    assert all(alive(worker) for worker in workers)
    process.kill()
    assert gone(workers)
    assert not list(tmp_path.glob("out/failures/*"))
    finish(process)


@pytest.mark.parametrize("when", ["the workers start", "both train"])
def test_ctrl_c_ends_all(tmp_path, when):
    """The terminal sends it to the call and to its workers."""
    process = spawn(*LONG, "--out", "out", cwd=tmp_path)
    started = wait_for(lambda: [w for w in [workers_of(process.pid)] if len(w) == 2], process)[0]
    try:
        if when == "both train":
            wait_for(both_train(tmp_path / "out"), process)
        else:
            time.sleep(0.3)  # they import
        for each in (*started, process.pid):
            os.kill(each, signal.SIGINT)
        called = finish(process, timeout=20)
        assert called.code == 130
        assert "Traceback" not in called.err
        assert called.err.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
        assert gone(started)
    finally:
        for worker in filter(alive, started):
            os.kill(worker, signal.SIGKILL)
    assert not records(tmp_path / "out")
    assert not list(tmp_path.glob("out/failures/*"))


def test_no_jobs(cli, tmp_path):
    called = cli("--methods", "joint", *DIGITS, "--jobs", "0", "--out", tmp_path / "out")
    assert (called.code, called.err) == (2, "error: --jobs must be at least 1, found 0\n")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_cannot_write_says_so(cli, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "claims").touch()
    called = cli("--methods", "joint", *DIGITS, "--epochs", "1", "--seeds", "0-1", "--jobs", "2", "--out", out)
    assert called.code == 2
    assert "Traceback" not in called.err
    assert called.err.count("error: ") == 1
    said = called.err.splitlines()[-1]
    assert said.startswith(f"error: {out}/claims could not be written because a file lies where a folder should be")


@pytest.mark.parametrize(
    ("threads", "device", "shape", "seconds", "expected"),
    [
        (2, "cpu", (1, 28, 28), 61, 2),
        (8, "cpu", (1, 28, 28), 61, 2),
        (1, "cpu", (1, 28, 28), 61, 1),
        (2, "cuda", (1, 28, 28), 61, 1),
        (2, "cpu", (3, 224, 224), 61, 1),
        (2, "cpu", (1, 28, 28), 59, 1),
    ],
)
def test_how_many_at_once_where_nothing_is_said(monkeypatch, threads, device, shape, seconds, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    modality = SimpleNamespace(shape=shape)
    job = SimpleNamespace(bundle=SimpleNamespace(modalities={"a": modality, "b": modality}))
    assert run.default_jobs([job], torch.device(device), seconds) == expected
