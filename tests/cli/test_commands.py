"""The one command ``balancebench``: its first word names a script, without one it trains."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from calls import ROOT

from benchmarks.__main__ import COMMANDS


def called(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=cwd,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_script(name: str) -> None:
    script, _ = COMMANDS[name]
    assert callable(importlib.import_module(f"benchmarks.{script}").main)


def test_clean_lists_and_removes_what_nothing_uses(tmp_path: Path) -> None:
    left = tmp_path / "results" / "failures" / "0123456789ab.txt.damaged"
    left.parent.mkdir(parents=True)
    left.write_text("x")
    (tmp_path / "results" / "records").mkdir()
    listed = called("clean", "--out", "results", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert left.exists()
    removed = called("clean", "--out", "results", "--yes", cwd=tmp_path)
    assert removed.returncode == 0, removed.stderr
    assert not left.exists()


@pytest.mark.parametrize("words", [["--methods", "omg"], ["run", "--methods", "omg"], ["records", "--dataset", "x"]])
def test_a_mistake_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    done = called(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
