"""A log that cannot be written is never worth a run: the work is done, and the status says what was not printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from calls import ROOT, records

from benchmarks.streams import Lossy

TINY = [f"--set=synthetic.n_{split}=64" for split in ("train", "val", "test")]
ARGUMENTS = ("--methods", "joint", "--dataset", "synthetic", "--protocol", "quick", "--device", "cpu", *TINY)
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


def in_a_shell(redirected, *arguments, cwd, script="run"):
    """(status, stdout, stderr) of a script whose streams the shell has redirected."""
    words = shlex.join([sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *map(str, arguments)])
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "BALANCEBENCH_DATA")}
    done = subprocess.run(
        ["bash", "-c", f"{words} {redirected}"],
        cwd=cwd,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@FULL
@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        ("2>/dev/full", 0, ""),
        ("2>&- >&-", 4, ""),
        (">/dev/full", 4, "error: stdout must take the output, found: No space left on device; all else is done"),
        ("| true; exit ${PIPESTATUS[0]}", 141, "stopped: nobody reads the output any more"),
    ],
)
def test_training_goes_on_and_is_recorded(tmp_path, redirected, status, said):
    code, out, err = in_a_shell(redirected, *ARGUMENTS, "--epochs", "1", "--seeds", "0", "--out", "out", cwd=tmp_path)
    assert code == status, (out, err)
    assert len(records(tmp_path / "out")) == 1
    assert len(list(tmp_path.glob("out/tables/*/comparison.*"))) == 3
    assert "Traceback" not in out + err
    assert ("joint   1/1" in out) == (">&-" not in redirected and "2>" in redirected)
    assert err.splitlines()[-1:] == ([said] if said else [])


@FULL
def test_workers_go_on_without_a_log(tmp_path):
    arguments = (*ARGUMENTS, "--epochs", "1", "--seeds", "0-1", "--jobs", "2", "--out", "out")
    assert in_a_shell("2>/dev/full", *arguments, cwd=tmp_path)[0] == 0
    assert len(records(tmp_path / "out")) == 2


@FULL
@pytest.mark.parametrize(("script", "word"), [("tables", "--list"), ("prepare", "--list"), ("speed", "--help")])
def test_other_commands_say_that_nothing_was_printed(tmp_path, script, word):
    code, _, err = in_a_shell(">/dev/full", word, cwd=tmp_path, script=script)
    assert code == 4
    assert err.splitlines() == ["error: stdout must take the output, found: No space left on device; all else is done"]


@FULL
def test_a_mistake_that_cannot_be_told_is_still_one(tmp_path):
    assert in_a_shell("2>/dev/full", "--methods", "omg", cwd=tmp_path)[0] == 2


@FULL
def test_what_cannot_be_written_is_dropped_and_why_is_kept():
    with Lossy("/dev/full", "w") as file:
        assert file.problem is None
        assert file.write(b"four") == 4
        assert file.problem.strerror == "No space left on device"


def test_a_log_that_has_room_again_is_written(tmp_path, monkeypatch):
    with Lossy(tmp_path / "log", "w") as file:
        file.write(b"a")
        with monkeypatch.context():
            limit = os.dup(file.fileno())
            null = os.open("/dev/full", os.O_WRONLY)
            os.dup2(null, file.fileno())
            file.write(b"b")
            os.dup2(limit, file.fileno())
            os.close(limit)
            os.close(null)
        file.write(b"c")
        assert file.problem is not None
    assert (tmp_path / "log").read_bytes() == b"ac"
