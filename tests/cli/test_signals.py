"""What a scheduler, a terminal and ``kill -9`` send: checkpoints are left, workers are gone, the next call goes on."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from calls import ROOT, finish, records, shas, spawn
from test_jobs import DIGITS, LONG, alive, both_train, gone, noted, trained, wait_for  # noqa: F401

from balancebench_udi import interruption, runner
from balancebench_udi.store import Store
from balancebench_udi.trainer import Trainer

SCRIPTS = ("run", "tables", "report", "prepare", "records", "reproduction", "embedding", "speed")
HINT = "interrupted; the same command goes on from the last checkpoint"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_of_the_last_finished_epoch(cli, tmp_path, monkeypatch, number):
    """However seldom checkpoints are written."""
    arguments = ("--methods", "joint", *DIGITS, "--epochs", "6", "--seeds", "0", "--checkpoint-every", "3600")
    out, epochs = tmp_path / "out", []
    original = Trainer._train_epoch

    def epoch(self, phase):
        if len(epochs) == 3:  # in the fourth
            os.kill(os.getpid(), number)
        epochs.append(phase.name)
        return original(self, phase)

    with monkeypatch.context() as patched:
        patched.setattr(interruption, "PATIENCE", 100.0)
        patched.setattr(Trainer, "_train_epoch", epoch)
        called = cli(*arguments, "--out", out)
    assert called.code == 128 + number
    assert called.err.splitlines()[-1] == HINT
    assert "Traceback" not in called.err
    (path,) = out.glob("checkpoints/*.pt")
    assert torch.load(path, weights_only=True)["progress"]["epoch"] == 4
    called = cli(*arguments, "--out", out)
    assert called.code == 0
    assert "1 begun" in called.out
    assert cli(*arguments, "--out", tmp_path / "peace").code == 0
    assert shas(out) == shas(tmp_path / "peace")


def test_a_signal_at_the_end_of_a_run_lets_it_be_recorded(cli, tmp_path, monkeypatch):
    arguments = ("--methods", "joint", *DIGITS, "--epochs", "2", "--seeds", "0-1", "--out", tmp_path / "out")
    original = Trainer._outcome

    def outcome(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(interruption, "PATIENCE", 100.0)
    monkeypatch.setattr(Trainer, "_outcome", outcome)
    assert cli(*arguments).code == 143
    assert [r["spec"]["seed"] for r in records(tmp_path / "out").values()] == [0]


EPOCHS = f"""
import os, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from balancebench_udi import interruption
from balancebench_udi.trainer import Trainer
from benchmarks import workers
from benchmarks.run import main

interruption.PATIENCE = workers.PATIENCE = 60.0  # on a busy machine an epoch may take longer than is waited for
validate = Trainer._validate

def noted(self, phase, epoch, *rest):
    validate(self, phase, epoch, *rest)
    if epoch == 1:  # the first epoch is over by all means
        pathlib.Path(f"{{os.getpid()}}.epoch").touch()

Trainer._validate = noted
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
"""The command, whose workers leave a file with their number when they have finished two epochs."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_alone_ends_the_workers_with_their_checkpoints(tmp_path, number):
    out, script = tmp_path / "out", tmp_path / "epochs.py"
    script.write_text(EPOCHS)
    seldom = [text if text != "0" else "3600" for text in LONG]
    process = spawn(*seldom, "--out", "out", cwd=tmp_path, script=script)
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.epoch"))) == 2, process, seconds=300)
    except BaseException:
        process.kill()
        raise
    process.send_signal(number)
    called = finish(process, timeout=100)
    assert called.code == 128 + number, called
    assert called.err.splitlines()[-1] == HINT
    assert "Traceback" not in called.err
    assert not any(alive(int(path.stem)) for path in tmp_path.glob("*.epoch"))  # gone before the parent
    assert both_train(out)()
    assert not list(out.glob("failures/*"))


def test_a_worker_in_a_long_step_ends_with_a_killed_parent(noted, tmp_path):  # noqa: F811
    """It tells nobody of its progress meanwhile, and so would not notice that its pipe is closed."""
    arguments = ("--methods", "joint", *DIGITS, "--epochs", "1", "--seeds", "0-1", "--jobs", "2")
    process, notes = noted(*arguments, "--out", "out", held="joint-0")
    (worker,) = wait_for(lambda: [p for p, took in trained(notes).items() if took[:1] == ["joint-0"]], process)
    process.kill()
    assert gone([worker])
    finish(process)


def test_runs_of_another_process_have_a_status_of_their_own(cli, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", *DIGITS, "--epochs", "1", "--seeds", "0-1", "--out", out)
    specs = []
    original = runner.run_all

    def noted_specs(jobs, *rest, **more):
        specs.extend(job.spec for job in jobs)
        with Store(out).claim(specs[1]) as mine:
            assert mine
            return original(jobs, *rest, **more)

    monkeypatch.setattr("benchmarks.run.run_all", noted_specs)
    called = cli(*arguments)
    assert called.code == 3
    assert "1 runs are being trained by another process; call again" in called.out
    assert len(records(out)) == 1


EARLY = """
import os, pathlib, time
pathlib.Path(os.environ["READY"]).touch()
time.sleep(60)
"""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_libraries_are_imported(tmp_path, script, number):
    for name in ("torch", "pandas", "numpy", "yaml", "tqdm"):
        (tmp_path / f"{name}.py").write_text(EARLY)
    ready = tmp_path / "ready"
    process = spawn(
        "--list",
        cwd=tmp_path,
        script=ROOT / "benchmarks" / f"{script}.py",
        env={"PYTHONPATH": str(tmp_path), "READY": str(ready)},
    )
    wait_for(ready.exists, process)
    process.send_signal(number)
    called = finish(process, timeout=20)
    assert (called.code, called.out, called.err) == (128 + number, "", "\ninterrupted\n")
